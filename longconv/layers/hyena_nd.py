"""Hyena in N dimensions (Zimerman and Wolf 2023, "Multi-Dimensional Hyena for Spatial Inductive Bias", section 3)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.filters.hyena_nd import HyenaFilterND
from longconv.functional import fft_conv, fft_conv2d
from longconv.kernels.shortconv import short_conv

from .base import LayerCard, Mixer, packed_lengths


class HyenaND(Mixer):
    """The recurrence of `Hyena` over images, whose pixels come as a sequence, row by row:

        x_0, ..., x_{n-1}, v = short_conv(in_proj(x))
        v <- h_i * (x_i v) + skip_i (x_i v)             for i = n-1, ..., 1
        y = out_proj(x_0 v)

    with convolutions in two dimensions (or one). Along an axis the long filters are causal, as published (one
    quadrant: every pixel sees those above and to the left), or two-sided.

    The authors' code divides the long convolution by the length 2n of its FFT, which nothing undoes. Here it is the
    convolution itself, and `load_hyena_nd_state_dict` puts the factor into the filter.

    No masks and no stream: an image of another size, or a part of one, is not what the filters' positions are
    relative to. Images packed in one row go side by side.

    Args:
        channels: D.
        max_length: the number of pixels; needed if there is no shape.
        shape: (H, W), or (L,); None for a square of `max_length` pixels.
        order: n >= 2; there are n - 1 long filters.
        bidirectional: whether the long filters are two-sided, along all axes or for each.
        filter: options of `longconv.filters.hyena_nd.HyenaFilterND`; `"implicit"` and `"product"` are short for a dict
            with that `kind`.
        short_kernel: K, odd: the short depthwise convolution has K^N taps.
        short_center: the short convolution is centred along all axes, as published, so that a causal axis sees K // 2
            samples ahead. False: along causal axes it is causal too.
        dropout: probability of dropping an element of x_i v.

    Raises:
        ValueError: a shape of other than one or two axes or that does not fit `max_length`, order < 2, an even
            short_kernel, or options that do not fit.
    """

    card = LayerCard(
        title="Hyena N-D",
        paper="Zimerman and Wolf 2023, Multi-Dimensional Hyena for Spatial Inductive Bias",
        url="https://arxiv.org/abs/2309.13600",
        equation="y = x_0 (h_1 * (x_1 ... (h_(n-1) * (x_(n-1) v)))), convolutions over images",
        cost="O(n L log L)",
    )
    causal = False

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        shape: Sequence[int] | None = None,
        order: int = 2,
        bidirectional: bool | Sequence[bool] = False,
        filter: str | dict[str, Any] = "implicit",
        short_kernel: int = 3,
        short_center: bool = True,
        dropout: float = 0.0,
    ) -> None:
        sizes = _shape(shape, max_length)
        super().__init__(channels, math.prod(sizes))
        self.shape = sizes
        if order < 2:
            raise ValueError(f"order must be at least 2, got {order}")
        if short_kernel < 1 or short_kernel % 2 == 0:
            raise ValueError(f"short_kernel must be odd, got {short_kernel}")
        axes = len(self.shape)
        both = (bidirectional,) * axes if isinstance(bidirectional, bool) else tuple(bidirectional)
        if len(both) != axes:
            raise ValueError(f"bidirectional must be a bool, or one for each of {axes} axes, got {bidirectional!r}")
        self.order, self.bidirectional, self.short_center = order, both, short_center
        half = short_kernel // 2
        self._short_ahead = [half if short_center or two_sided else 0 for two_sided in both]
        width = (order + 1) * channels
        self.in_proj = nn.Linear(channels, width)
        self.short_weight = nn.Parameter(torch.empty(width, *[short_kernel] * axes))
        self.short_bias = nn.Parameter(torch.empty(width))
        options: dict[str, Any] = {"kind": filter} if isinstance(filter, str) else filter
        self.nd_filters = nn.ModuleList(HyenaFilterND(channels, self.shape, both, **options) for _ in range(order - 1))
        self.skip = nn.Parameter(torch.empty(order - 1, channels))
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise this module's own parameters: the short taps as `torch.nn.Conv2d` does, the skip ~ N(0, 1)."""
        bound = self.short_weight[0].numel() ** -0.5
        nn.init.uniform_(self.short_weight, -bound, bound)
        nn.init.uniform_(self.short_bias, -bound, bound)
        nn.init.normal_(self.skip)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: Any = None,
        return_state: bool = False,
    ) -> Tensor:
        """Mix images (B, H W, D), or N of them in one row; see `Mixer.forward`.

        Raises:
            ValueError: as there; or a length that is not that of whole images, or a mask.
        """
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        if mask is not None:
            raise ValueError(f"mask: an image of {self.shape} samples has no padding; HyenaND takes whole images")
        pixels = math.prod(self.shape)
        lengths = [x.shape[1]] if cu_seqlens is None else packed_lengths(cu_seqlens, x.shape[1])
        if any(length != pixels for length in lengths):
            name = "x" if cu_seqlens is None else "cu_seqlens"
            raise ValueError(f"{name}: expected images of {self.shape}, i.e. {pixels} samples, got {lengths}")
        images = x.reshape(-1, pixels, self.channels)
        u = self.in_proj(images).mT.unflatten(-1, self.shape)
        *gates, v = self._short(u).chunk(self.order + 1, dim=1)
        for stage, filter in enumerate(self.nd_filters):
            v = self.dropout(gates[self.order - 1 - stage] * v)
            v = self._long(v, filter, self.skip[stage])
        y = self.out_proj((gates[0] * v).flatten(2).mT)
        return y.reshape(x.shape)

    def _short(self, u: Tensor) -> Tensor:
        weight, bias = self.short_weight.to(u.dtype), self.short_bias.to(u.dtype)
        K = weight.shape[-1]
        if len(self.shape) == 1:
            return short_conv(u, weight, bias, padding="same" if self._short_ahead[0] else "causal")
        above, left = self._short_ahead
        u = F.pad(u, (K - 1 - left, left, K - 1 - above, above))
        return F.conv2d(u, weight.flip(-1, -2)[:, None], bias, groups=len(weight))

    def _long(self, v: Tensor, filter: nn.Module, skip: Tensor) -> Tensor:
        assert isinstance(filter, HyenaFilterND)
        k, origin = filter(), filter.origin
        if len(origin) == 2:
            return fft_conv2d(v, k, origin=(origin[0], origin[1]), skip=skip)
        behind = k[:, : origin[0]].flip(-1) if origin[0] else None
        return fft_conv(v, k[:, origin[0] :], k_reverse=behind, skip=skip)

    @property
    def lookahead(self) -> int | None:
        """See `Mixer.lookahead`: along the row of pixels; None if the first axis is two-sided."""
        if self.bidirectional[0]:
            return None
        reach = [min(ahead, size - 1) for ahead, size in zip(self._short_ahead, self.shape, strict=True)]
        if len(reach) == 1:
            return reach[0]
        W = self.shape[1]
        return reach[0] * W + (W - 1 if self.bidirectional[1] else reach[1])

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"channels={self.channels}, shape={self.shape}, order={self.order}, bidirectional={self.bidirectional}"


def _shape(shape: Sequence[int] | None, max_length: int | None) -> tuple[int, ...]:
    if shape is None:
        side = math.isqrt(max_length or 0)
        if max_length is None or side * side != max_length:
            raise ValueError(f"shape is needed, because max_length = {max_length} is not the size of a square image")
        return (side, side)
    sizes = tuple(shape)
    if len(sizes) not in (1, 2) or min(sizes) < 1:
        raise ValueError(f"shape must be (H, W) or (L,), all at least 1, got {sizes}")
    if max_length is not None and math.prod(sizes) > max_length:
        raise ValueError(f"shape {sizes} has more samples than max_length = {max_length}")
    return sizes
