"""What stacks of causal dilated convolutions share: the convolution, its past inputs, looking ahead, streaming.

Channels first inside, (B, C, L). A convolution of K taps at dilation d needs the W = (K-1) d inputs before a chunk.

Looking ahead: a stack that sees `lookahead` samples of the future is a causal stack whose output is that many samples
late. So it runs as a causal one, and `forward` cuts the first `lookahead` outputs off behind an input with that many
zeros appended. Layers keep their inputs aligned with their outputs through delayed residuals; however many layers there
are, the delays add up to `lookahead` and no more.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.functional import dilated_conv
from longconv.kernels.dilated.dense import dense_conv
from longconv.state import GrowingBuffer, LayerState

from .base import Mixer, for_each_sequence, packed_lengths

# Samples that a buffer of past inputs holds beyond what is needed, at least, before it is cut.
SPARE = 64

Past = tuple[GrowingBuffer, ...]


@dataclass
class StackState(LayerState):
    """`past`: of each convolution in turn the last inputs (B, C, >= W); None before the first chunk."""

    past: Past | None = None

    @property
    def is_static(self) -> bool:
        """False: the windows move on in their storage, and at first there are none."""
        return False


class DilatedConv(nn.Module):
    """A causal dilated convolution without padding of its own: (B, I, W + L) -> (B, O, L), W = (K-1) d.

    `taps()` is (O, I, K), or (O, 1, K) if depthwise, in the order of `torch.nn.Conv1d`: the oldest tap first. It is the
    parameter `weight`, or with `weight_norm` computed from `weight_g` and `weight_v`.

    Args:
        in_channels, out_channels: I, O.
        kernel_size: K.
        dilation: d.
        depthwise: no mixing of channels; I = O.
        bias: whether there is one.
        weight_norm: taps = weight_g weight_v / ||weight_v||, norm per output channel (Salimans and Kingma 2016).
        init_std: weights ~ N(0, init_std^2); None for `Conv1d`'s own U(-b, b), b = fan_in^(-1/2). The norm's
            weight_g is that of the weight.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int = 1,
        *,
        depthwise: bool = False,
        bias: bool = True,
        weight_norm: bool = False,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        assert not depthwise or in_channels == out_channels
        self.kernel_size, self.dilation, self.width = kernel_size, dilation, (kernel_size - 1) * dilation
        self.depthwise, self.init_std = depthwise, init_std
        weight = nn.Parameter(torch.empty(out_channels, 1 if depthwise else in_channels, kernel_size))
        self.weight = None if weight_norm else weight
        self.weight_v = weight if weight_norm else None
        self.weight_g = nn.Parameter(torch.empty(out_channels, 1, 1)) if weight_norm else None
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as `torch.nn.Conv1d` does, or with weights ~ N(0, init_std^2)."""
        weight = self.weight if self.weight_v is None else self.weight_v
        assert weight is not None
        bound = weight[0].numel() ** -0.5
        if self.init_std is None:
            nn.init.uniform_(weight, -bound, bound)
        else:
            nn.init.normal_(weight, std=self.init_std)
        if self.weight_g is not None:
            with torch.no_grad():
                self.weight_g.copy_(torch.linalg.vector_norm(weight, dim=(1, 2), keepdim=True))
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def taps(self) -> Tensor:
        """The weight (O, I, K) or (O, 1, K), oldest tap first."""
        if self.weight is not None:
            return self.weight
        assert self.weight_v is not None
        norm = torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)
        return self.weight_v * (self.weight_g / norm)

    def forward(self, whole: Tensor) -> Tensor:
        """Convolve (B, I, W + L) to (B, O, L)."""
        weight, K, d = self.taps(), self.kernel_size, self.dilation
        L = whole.shape[-1] - self.width
        if torch.compiler.is_compiling() or whole.shape[-1] <= K * L:  # a graph has one way, for every length
            if self.depthwise:
                return dilated_conv(whole, weight[:, 0].flip(-1), self.bias, dilation=d, padding="valid")
            return dense_conv(whole, weight, self.bias, d)
        # A step, or a chunk shorter than the gaps between taps: touch only the inputs under the taps.
        taps = torch.stack([whole[..., s * d : s * d + L] for s in range(K)], dim=2)  # (B, I, K, L)
        y = (weight[:, 0, :, None] * taps).sum(2) if self.depthwise else weight.flatten(1) @ taps.flatten(1, 2)
        return y if self.bias is None else y + self.bias[:, None]

    def of_constant(self, u: Tensor) -> Tensor:
        """What comes out, (B, O), when each channel of the input is one constant, u (B, I)."""
        weight = self.taps().sum(-1)
        y = u * weight[:, 0] if self.depthwise else F.linear(u, weight)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        O, I, _ = (self.weight if self.weight_v is None else self.weight_v).shape  # type: ignore[union-attr]
        depthwise = ", depthwise" if self.depthwise else ""
        return f"{O if self.depthwise else I}, {O}, kernel_size={self.kernel_size}, dilation={self.dilation}{depthwise}"


def extend(
    past: GrowingBuffer | None, u: Tensor, width: int, *, rest: Tensor | None = None, keep: bool = False
) -> tuple[Tensor, GrowingBuffer | None]:
    """Put the inputs before a chunk in front of it.

    Args:
        past: the inputs before the chunk, `width` of them or more; None before the first chunk.
        u: (B, C, L), the chunk.
        width: how many past inputs are needed.
        rest: (B or 1, C), what the input was before the first chunk; None for zeros.
        keep: whether to return the past of the next chunk.

    Returns:
        (B, C, width + L), and the next past or None. Steps cost O(L), amortised, without gradients, and O(width) with.
    """
    L = u.shape[-1]
    if past is None:
        if rest is None:
            whole = F.pad(u, (width, 0))
        else:
            whole = torch.cat([rest[..., None].expand(u.shape[0], -1, width), u], dim=-1)
    elif keep and width > L and not torch.is_grad_enabled():
        grown = past.append(u)
        whole = grown.view[..., grown.length - width - L :].to(u.dtype)
        if grown.length > 2 * width + SPARE:
            grown = GrowingBuffer(grown.view[..., grown.length - width :], dim=-1)
        return whole, grown
    else:
        whole = torch.cat([past.view[..., past.length - width :].to(u.dtype), u], dim=-1)
    return whole, GrowingBuffer(whole[..., L:].clone(), dim=-1) if keep else None


def with_mask(u: Tensor, started: Tensor | None, rest: Tensor | None = None) -> Tensor:
    """Put `rest` (B or 1, C), or zeros, where a row of u (B, C, L) has not `started` (B, L)."""
    if started is None:
        return u
    return torch.where(started[:, None], u, 0.0 if rest is None else rest[..., None])


class Delayed:
    """`forward`, `stream` and `flush` of a stack whose output is `lookahead` samples late: a mix-in.

    A subclass has `lookahead` and `_run`. With a lookahead of 0, `stream` is the causal layer's way of going on.
    """

    def _run(self, u: Tensor, mask: Tensor | None, past: Past | None, keep: bool, **inputs: Any) -> Any:
        """Run the causal stack: u (B, C, L), mask (B, L) bool -> y (B, C', L), output late, and the next past."""
        raise NotImplementedError

    def _check_chunk(self, x: Tensor, state: StackState) -> None:
        raise NotImplementedError

    def _aligned(
        self, x: Tensor, mask: Tensor | None, past: Past | None = None, keep: bool = False, **inputs: Any
    ) -> tuple[Tensor, Past | None]:
        """Run over x (B, L, C) and take the delay out: (B, L, C')."""
        ahead: int = self.lookahead  # type: ignore[attr-defined]
        u = x.mT
        if mask is not None:
            u = with_mask(u, mask)
        if ahead:
            u = F.pad(u, (0, ahead))
            # What belongs to a row: its samples, and as many after the last as the output is late.
            mask = None if mask is None else F.pad(mask, (0, ahead))
            if mask is not None:
                seen = mask.cumsum(1)
                mask = seen > F.pad(seen, (ahead + 1, 0))[:, : -ahead - 1]
        y, past = self._run(u, mask, past, keep, **inputs)
        return y[..., ahead:].mT, past

    def stream(self, x: Tensor, state: StackState | None = None, **inputs: Any) -> tuple[Tensor, StackState]:
        """Mix the next chunk of a stream, `lookahead` samples late.

        The outputs of all chunks together, without the first `lookahead` samples (which belong to times before the
        stream and mean nothing), and `flush` behind them, are the outputs of `forward` for the whole.

        Args:
            x: (B, L, D), L >= 1.
            state: from the call over the preceding chunk; None for the first.
            inputs: further ones that `forward` takes.

        Returns:
            y (B, L, D), the outputs for the times `lookahead` samples before those of x, and the state to go on with.

        Raises:
            ValueError: x has the wrong shape or no samples, or the stream exceeds `max_length`.
        """
        state = StackState(0) if state is None else state
        self._check_chunk(x, state)
        y, past = self._run(x.mT, None, state.past, True, **inputs)
        return y.mT, StackState(state.position + x.shape[1], past)

    def flush(self, state: StackState, **inputs: Any) -> Tensor:
        """The last `lookahead` outputs of a stream that has ended: (B, lookahead, D).

        Raises:
            ValueError: the stream had no samples.
        """
        if state.past is None:
            raise ValueError("state is that of a stream without samples: there is nothing to flush")
        ahead: int = self.lookahead  # type: ignore[attr-defined]
        first = state.past[0].view
        zeros = first.new_zeros(first.shape[0], first.shape[1], max(ahead, 1))
        y, _ = self._run(zeros, None, state.past, False, **inputs)
        return y[..., :ahead].mT


class StackMixer(Delayed, Mixer):
    """A mixer that is a stack of dilated convolutions; a subclass has `_run` and sets `_lookahead`."""

    _lookahead: int = 0

    @property
    def lookahead(self) -> int:
        """How many of the receptive field's inputs are later than the output."""
        return self._lookahead

    def _check_chunk(self, x: Tensor, state: StackState) -> None:
        if x.ndim != 3 or x.shape[-1] != self.channels or x.shape[1] == 0:
            raise ValueError(f"x must be (B, L, D) with L >= 1, D = {self.channels}, got shape {tuple(x.shape)}")
        self.check_length(state.position + x.shape[1])

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: StackState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence or the next chunk of one; see `Mixer.forward`."""
        return self._mix(x, mask, cu_seqlens, state, return_state)

    def _mix(
        self,
        x: Tensor,
        mask: Tensor | None,
        cu_seqlens: Tensor | None,
        state: StackState | None,
        return_state: bool,
        **inputs: Any,
    ) -> Any:
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        if cu_seqlens is not None:
            return self._packed(x, cu_seqlens, **inputs)
        y, past = self._aligned(x, mask, None if state is None else state.past, return_state, **inputs)
        if not return_state:
            return y
        return y, StackState((0 if state is None else state.position) + x.shape[1], past)

    def _packed(self, x: Tensor, cu_seqlens: Tensor, **inputs: Any) -> Tensor:
        return for_each_sequence(lambda piece: self._aligned(piece, None, **inputs)[0], x, cu_seqlens)

    def _packed_as_batch(self, x: Tensor, cu_seqlens: Tensor, **inputs: Any) -> Tensor:
        """Packed sequences as one padded batch, for layers in which the samples of a batch are not independent."""
        lengths = [length for length in packed_lengths(cu_seqlens, x.shape[1]) if length]
        batch = nn.utils.rnn.pad_sequence(list(x[0].split(lengths)), batch_first=True)
        mask = torch.arange(batch.shape[1], device=x.device) < torch.tensor(lengths, device=x.device)[:, None]
        return self._aligned(batch, mask, **inputs)[0][mask][None]

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> StackState:
        """Return the state before the first sample; see `Mixer.init_state`. It is empty: the first chunk fills it."""
        self.check_causal()
        return StackState(0)

    def step(self, x_t: Tensor, state: StackState, **inputs: Any) -> tuple[Tensor, StackState]:
        """Mix one sample; see `Mixer.step`. The cost does not depend on the dilations."""
        self.check_step(x_t, state)
        y, past = self._run(x_t[..., None], None, state.past, True, **inputs)
        return y[..., 0], StackState(state.position + 1, past)
