"""`fft_conv` over a stream in chunks: `fft_conv_chunk`, differentiable also through what it carries over.

Of what came before, a chunk needs the last K - 1 inputs, K the taps. They are put in front of it, and the outputs at
their places are dropped (overlap-save; Oppenheim & Schafer, Discrete-Time Signal Processing, section 8.7.3). Autograd
follows the concatenation.
"""

import torch
from torch import Tensor

from . import fft_conv
from .checks import check_companions, check_rows
from .transforms import lower


def fft_conv_chunk(
    u: Tensor,
    k: Tensor,
    *,
    state: Tensor | None = None,
    skip: Tensor | None = None,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Convolve the next chunk of a stream: `fft_conv` over the whole, cut into chunks of any sizes.

    With ``v = pre_gate * u``, over all chunks so far::

        y[b,d,t] = post_gate[b,d,t] * (sum_{s=0}^{K-1} k[d,s] v[b,d,t-s] + skip[d] v[b,d,t])

    Gradients reach every argument, and through `state` all earlier chunks, as those of the whole do. After
    ``state.detach()`` they stop there (truncated backpropagation): gradients of later chunks then miss what the last
    K - 1 inputs before them contributed.

    A chunk costs about a convolution of L + K - 1 samples, so for single samples there is `OnlineConv`.

    Args:
        u: chunk (B, D, L), floating point, any strides; L >= 1, shorter or longer than K.
        k: taps (D, K), K >= 1, lag 0 first.
        state: from the preceding chunk; None before the first.
        skip: (D,) weight of the input itself.
        pre_gate: (B, D, L), multiplies the input.
        post_gate: (B, D, L), multiplies the output.

    Returns:
        ``(y, state)``: y (B, D, L) of u's dtype, contiguous, and the last n inputs v (B, D, n), oldest first, n = K - 1
        or all if they are fewer. The state is a copy: it keeps no chunk in memory. It has u's dtype; with `pre_gate`,
        whose product with u is not rounded, that of the arithmetic: float32, or float64 if u or k is. Under autocast
        u and the gates take the autocast dtype and the filter keeps its own.

    Raises:
        ValueError: naming the argument whose shape or device does not fit, or `state` for its dtype.
        TypeError: for a tensor that is not floating point.
    """
    check_rows(u, k)
    check_companions(u, k, skip, pre_gate, post_gate)
    device = u.device.type
    if torch.is_autocast_enabled(device):
        lowered = lower(u, device)
        assert lowered is not None
        u, pre_gate, post_gate = lowered, lower(pre_gate, device), lower(post_gate, device)
    # Not below: the operator would round the window, which holds products of gate and input in full.
    with torch.autocast(device, enabled=False):
        wide = torch.promote_types(torch.promote_types(u.dtype, k.dtype), torch.float32)
        v = u if pre_gate is None else pre_gate.to(wide) * u.to(wide)
        if state is not None:
            _check_state(state, v, k.shape[1] - 1)
            v = torch.cat([state, v], dim=-1)
        y = fft_conv(v.to(wide), k, skip=skip)[..., v.shape[-1] - u.shape[-1] :]
        y = y if post_gate is None else post_gate.to(wide) * y
        # Counted from the front: v[..., -n:] would be everything for n = 0.
        state = v[..., max(0, v.shape[-1] - (k.shape[1] - 1)) :].clone(memory_format=torch.contiguous_format)
        return y.to(u.dtype).contiguous(), state


def _check_state(state: Tensor, v: Tensor, reach: int) -> None:
    if state.dim() != 3 or state.shape[:2] != v.shape[:2] or state.shape[2] > reach:
        expected = f"(B, D, n) with B, D = {tuple(v.shape[:2])} as in u and n <= K - 1 = {reach}"
        raise ValueError(f"state must have shape {expected}; got {tuple(state.shape)}")
    if state.dtype != v.dtype:
        raise ValueError(f"state must be {v.dtype}, as the inputs of this chunk; got {state.dtype}")
    if state.device != v.device:
        raise ValueError(f"state must be on the device of u, {v.device}; got {state.device}")
