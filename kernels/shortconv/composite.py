"""`short_conv` in PyTorch's operators around a plain convolution: gates, packed sequences."""

from collections.abc import Callable

from torch import Tensor

from . import direct, packed


def composite(
    convolve: Callable[[Tensor, Tensor, Tensor | None, int, int, bool], Tensor],
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    left: int,
    right: int,
    silu: bool,
) -> Tensor:
    """Evaluate `post_gate * act(bias + convolution of pre_gate * u)`, (B, D, L + left + right - K + 1), in u's dtype.

    Arguments as in `short_conv`, with `left` and `right` zeros around u, and `convolve` as `direct.convolve`. Gates are
    multiplied in the dtype of the arithmetic, so that half precision rounds once.
    """
    dtype, v = direct.compute_dtype(u, weight), u
    if pre_gate is not None:
        v = u.to(dtype) * pre_gate.to(dtype)
    elif post_gate is not None:
        v = u.to(dtype)
    if cu_seqlens is None or weight.shape[1] == 1:
        y = convolve(v, weight, bias, left, right, silu)
    else:
        y = convolve(v, weight, bias, left, right + 1, silu)  # one sample more, for `separate` to write to
        y = packed.separate(
            y, v, cu_seqlens, left, right, lambda x, before, behind: convolve(x, weight, bias, before, behind, silu)
        )
    if post_gate is not None:
        y = y * post_gate.to(dtype)
    return y.to(u.dtype)
