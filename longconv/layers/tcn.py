"""The temporal convolutional network of Bai et al. 2018 (code: locuslab/TCN)."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .base import LayerCard
from .dilated_stack import DilatedConv, Past, StackMixer, extend, with_mask


class TemporalBlock(nn.Module):
    """`relu(skip(u) + v)`, where v is u behind two dilated causal convolutions, each with ReLU and dropout.

    Args:
        in_channels, out_channels: of the block; the skip is the identity if they are equal, else a 1x1 convolution.
        kernel_size: taps of both convolutions.
        dilation: of both.
        lag: by how many samples the skip is delayed, so that the block looks that far ahead of it.
        dropout, depthwise, init_std: as in `TCN`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        dilation: int,
        *,
        lag: int,
        dropout: float,
        depthwise: bool,
        init_std: float | None,
    ) -> None:
        super().__init__()

        def conv(channels: int) -> DilatedConv:
            return DilatedConv(
                channels,
                out_channels,
                kernel_size,
                dilation,
                depthwise=depthwise,
                weight_norm=True,
                init_std=init_std,
            )

        self.lag = lag
        self.conv1, self.conv2 = conv(in_channels), conv(out_channels)
        self.downsample = (
            DilatedConv(in_channels, out_channels, 1, init_std=0.01) if in_channels != out_channels else None
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, u: Tensor, started: Tensor | None, past: Past | None, keep: bool
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Map (B, I, L) to (B, O, L) and the next past of the two convolutions; zero where a row has not started."""
        L, width = u.shape[-1], self.conv1.width
        before = max(width, self.lag)
        whole, past1 = extend(None if past is None else past[0], u, before, keep=keep)
        v = with_mask(self.dropout(F.relu(self.conv1(whole[..., before - width :]))), started)
        skip = whole[..., before - self.lag :][..., :L]
        whole, past2 = extend(None if past is None else past[1], v, width, keep=keep)
        v = self.dropout(F.relu(self.conv2(whole)))
        y = F.relu(v + (skip if self.downsample is None else self.downsample(skip)))
        return with_mask(y, started), (past1, past2)


class TCN(StackMixer):
    """A stack of residual blocks of dilated causal convolutions, block i at dilation growth^i, i = 0, ..., n-1:

        v = dropout(relu(conv1(u))),  v = dropout(relu(conv2(v))),  u <- relu(v + skip(u))

    The convolutions mix channels and are weight-normalised; `skip` is the identity, or a 1x1 convolution where the
    number of channels changes. The receptive field is 1 + 2 (K-1) (growth^n - 1) / (growth - 1). Outside of the
    sequence every convolution's input is zero. The output is not negative, unless a last projection follows.

    With `lookahead = a` the output y_t depends on x up to x_{t+a}, and `causal` is False: `forward` takes no state, and
    streams go through `stream` and `flush`, whose output is a samples late. The first blocks' convolutions are
    shifted against their skips, as far as their receptive field reaches, until the shifts add up to a; so x_t still
    reaches y_t by the skips alone. Zeros follow the last sample.

    With `bidirectional` every block is centred: its convolutions reach (K-1) growth^i samples behind and as many ahead
    of its skip, at every scale alike, so the lookahead is half of the receptive field, (K-1) sum_i growth^i. (The same
    number as `lookahead` would let the fine blocks see nothing but the future, and the coarse ones little but the
    past.) It streams as any lookahead does; with K = 1 there is nothing ahead and it is causal.

    Args:
        channels: D.
        max_length: the longest sequence; None for no limit.
        num_blocks: n; None for as many as `hidden` has entries, or 4.
        kernel_size: K.
        hidden: the blocks' output channels: one number for all, or one each; None for D. If the last is not D, a linear
            map to D follows (their models' decoder).
        dropout: probability of dropping an element behind each convolution.
        dilation_growth: base of the dilations.
        depthwise: convolutions that do not mix channels; needs D channels throughout.
        lookahead: a, less than the receptive field.
        bidirectional: see above; instead of a lookahead.
        init_std: the standard deviation of the convolutions' first weights; None for what the authors' code comes to,
            see `reset_parameters`.

    Raises:
        ValueError: a size that is not positive, numbers of blocks that disagree, depthwise with other than D channels,
            too large a lookahead, or one beside `bidirectional`.
    """

    card = LayerCard(
        title="TCN",
        paper="Bai et al. 2018, An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence "
        "Modeling",
        url="https://arxiv.org/abs/1803.01271",
        equation="u <- relu(skip(u) + relu(h2 * relu(h1 * u))), dilation 2^i in block i",
        cost="O(n K D L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        num_blocks: int | None = None,
        kernel_size: int = 2,
        hidden: int | Sequence[int] | None = None,
        dropout: float = 0.2,
        dilation_growth: int = 2,
        depthwise: bool = False,
        lookahead: int = 0,
        bidirectional: bool = False,
        init_std: float | None = None,
    ) -> None:
        super().__init__(channels, max_length)
        if isinstance(hidden, Sequence):
            if num_blocks not in (None, len(hidden)):
                raise ValueError(f"hidden must have num_blocks = {num_blocks} entries, got {len(hidden)}")
            widths = list(hidden)
        else:
            widths = [channels if hidden is None else hidden] * (4 if num_blocks is None else num_blocks)
        if not widths:
            raise ValueError("num_blocks must be at least 1, got 0")
        sizes = (("kernel_size", kernel_size), ("dilation_growth", dilation_growth), ("hidden", min(widths)))
        for name, value in sizes:
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if depthwise and set(widths) != {channels}:
            raise ValueError(f"depthwise needs {channels} channels in every block, got hidden = {hidden}")
        dilations = [dilation_growth**i for i in range(len(widths))]
        self._reach = sum(2 * (kernel_size - 1) * dilation for dilation in dilations)
        if not 0 <= lookahead <= self._reach:
            raise ValueError(f"lookahead must be in 0 ... receptive field - 1 = {self._reach}, got {lookahead}")
        if bidirectional and lookahead:
            raise ValueError(
                f"lookahead is {self._reach // 2} with bidirectional, and must not be given; got {lookahead}"
            )
        if bidirectional:
            lookahead = self._reach // 2
        self._lookahead, self.causal = lookahead, lookahead == 0
        self.blocks = nn.ModuleList()
        for before, width, dilation in zip([channels, *widths], widths, dilations, strict=False):
            reach = 2 * (kernel_size - 1) * dilation
            lag = reach // 2 if bidirectional else min(lookahead, reach)
            lookahead -= lag
            options: dict[str, Any] = {"dropout": dropout, "depthwise": depthwise, "init_std": init_std}
            self.blocks.append(TemporalBlock(before, width, kernel_size, dilation, lag=lag, **options))
        self.out_proj = nn.Linear(widths[-1], channels) if widths[-1] != channels else None

    def reset_parameters(self) -> None:
        """Initialise the blocks as the authors' code comes to.

        It draws the weights of all convolutions from N(0, 0.01^2), but those of the dilated ones are computed from
        weight_g and weight_v, which keep `Conv1d`'s own initialisation, U(-b, b) with b = fan_in^(-1/2). Only the 1x1
        convolutions get the Gaussian. `init_std=0.01` gives it to the dilated ones, too.
        """
        for module in self.blocks.modules():
            if isinstance(module, DilatedConv):
                module.reset_parameters()

    def _run(self, u: Tensor, mask: Tensor | None, past: Past | None, keep: bool, **inputs: Any) -> Any:
        if inputs:
            raise TypeError(f"TCN takes no input {', '.join(inputs)}")
        started = None if mask is None else mask.cummax(1).values
        after: list[Any] = []
        for i, block in enumerate(self.blocks):
            u, ends = block(u, started, None if past is None else past[2 * i : 2 * i + 2], keep)
            after.extend(ends)
        if self.out_proj is not None:
            u = self.out_proj(u.mT).mT
        return u, tuple(after) if keep else None

    @property
    def receptive_field(self) -> int:
        """1 + 2 (K-1) sum_i growth^i."""
        return 1 + self._reach

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"channels={self.channels}, lookahead={self.lookahead}, max_length={self.max_length}"
