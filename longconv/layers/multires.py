"""Multiresolution memory (Shi, Wang and Fox 2023; code: thjashin/multires-conv)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.kernels.dilated import DelayLines
from longconv.kernels.multires import multires_conv, multires_kernel, multires_levels, multires_state, multires_step
from longconv.state import LayerState

from .base import LayerCard, Mixer


@dataclass
class MultiresState(LayerState):
    """`lines`: what the levels of the tree have seen last, (K-1) (2^J - 1) samples of a channel or more."""

    lines: DelayLines


class MultiresLayer(Mixer):
    """A weighted sum of the coefficients of a causal, undecimated wavelet-like transform with trained filters:

        a_0 = x,  a_{j+1} = h0 *_{2^j} a_j,  b_{j+1} = h1 *_{2^j} a_j,            j = 0, ..., J-1
        z = w_0 a_J + w_1 b_J + ... + w_J b_1 + w_{J+1} x                          ("fading")
        y = out(dropout(activation(z)))

    where h0 and h1 (D, K) serve all levels, and `*_d` is the causal convolution with dilation d. "Uniform" spends
    `memory_size` coefficients on the coarsest levels instead, on all nodes of the tree there; see
    `longconv.functional.multires_conv`. The authors' layer ends with the activation and the dropout; `output="glu"`
    adds what they put behind it in each block, a linear map to 2D channels, a gated linear unit a sigmoid(b), and
    dropout again. Their residual and norm are the model's.

    The published layer is causal. With `bidirectional` the same transform of the reversed sequence is added, with
    filters and weights of its own (`h0_reverse`, `h1_reverse` and `w_reverse`, which is without a column for x, so that
    x is weighed once):

        z_t = z(x)_t + z'(reverse x)_{L-1-t},    z' = w'_0 a'_J + w'_1 b'_J + ... + w'_J b'_1

    Both trees see x_t through their taps at lag 0, as both of MEGA's averages do.

    Args:
        channels: D.
        max_length: the longest sequence; None for no limit.
        kernel_size: K.
        depth: J; None for as many levels as let the first of `max_length` samples reach the last,
            ceil(log2((max_length - 1) / (K - 1) + 1)).
        tree_select: `"fading"` or `"uniform"`.
        memory_size: coefficients of "uniform"; None with "fading", which has J + 1.
        activation: `"gelu"` or `"none"`.
        dropout: probability of dropping a channel of a sequence, at all times.
        output: `"none"` or `"glu"`.
        indep_res_init: draw the weight of x from U(-1, 1), whatever the number of coefficients.
        bidirectional: see above; there is no state then.

    Raises:
        ValueError: a value that is none of these, neither depth nor max_length (or only max_length with K = 1), a
            memory_size that is missing or not wanted.
    """

    card = LayerCard(
        title="MultiresLayer",
        paper="Shi, Wang and Fox 2023, Sequence Modeling with Multiresolution Convolutional Memory",
        url="https://arxiv.org/abs/2305.01638",
        equation="y = act(w_0 a_J + w_1 b_J + ... + w_J b_1 + w_(J+1) x), a_(j+1), b_(j+1) = h0 * a_j, h1 * a_j at 2^j",
        cost="O(K L log L)",
    )

    def __init__(
        self,
        channels: int,
        max_length: int | None = None,
        *,
        kernel_size: int = 2,
        depth: int | None = None,
        tree_select: str = "fading",
        memory_size: int | None = None,
        activation: str = "gelu",
        dropout: float = 0.0,
        output: str = "none",
        indep_res_init: bool = False,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(channels, max_length)
        for name, value, known in (
            ("tree_select", tree_select, ("fading", "uniform")),
            ("activation", activation, ("gelu", "none")),
            ("output", output, ("none", "glu")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
        if depth is None:
            if max_length is None or kernel_size == 1:
                reason = "max_length is None" if max_length is None else "with one tap no number of levels reaches back"
                raise ValueError(f"depth must be given: {reason}")
            depth = multires_levels(max_length, kernel_size)
        if depth < 0:
            raise ValueError(f"depth must be at least 0, got {depth}")
        if (memory_size is None) != (tree_select == "fading"):
            raise ValueError(f"memory_size is for 'uniform', which needs it; got {memory_size} with {tree_select!r}")
        if memory_size is not None and memory_size < 1:
            raise ValueError(f"memory_size must be at least 1, got {memory_size}")
        self.causal = not bidirectional
        self.kernel_size, self.depth, self.tree_select = kernel_size, depth, tree_select
        self.activation, self.dropout, self.indep_res_init = activation, dropout, indep_res_init
        self.h0 = nn.Parameter(torch.empty(channels, kernel_size))
        self.h1 = nn.Parameter(torch.empty(channels, kernel_size))
        coefficients = depth + 1 if memory_size is None else memory_size
        self.w = nn.Parameter(torch.empty(channels, coefficients + 1))
        if bidirectional:
            self.h0_reverse = nn.Parameter(torch.empty(channels, kernel_size))
            self.h1_reverse = nn.Parameter(torch.empty(channels, kernel_size))
            self.w_reverse = nn.Parameter(torch.empty(channels, coefficients))
        self.out_proj = nn.Linear(channels, 2 * channels) if output == "glu" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """h0, h1 ~ U(-1, 1) / sqrt(K), w ~ U(-1, 1) / sqrt(m + 1) for m coefficients and x, `out` as `nn.Linear`.

        The m coefficients are those of both directions, so that z begins with the same variance with one or two.
        """
        filters, weights = [self.h0, self.h1], [self.w]
        if not self.causal:
            filters += [self.h0_reverse, self.h1_reverse]
            weights += [self.w_reverse]
        for filter in filters:
            nn.init.uniform_(filter, -(self.kernel_size**-0.5), self.kernel_size**-0.5)
        bound = sum(weight.shape[1] for weight in weights) ** -0.5
        for weight in weights:
            nn.init.uniform_(weight, -bound, bound)
        if self.indep_res_init:
            nn.init.uniform_(self.w[:, -1], -1.0, 1.0)
        if self.out_proj is not None:
            self.out_proj.reset_parameters()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: MultiresState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence or the next chunk of one; see `Mixer.forward`."""
        mask = self.check_forward(x, mask, cu_seqlens, state, return_state)
        u = x.mT if mask is None else torch.where(mask[:, None], x.mT, 0.0)
        filters, tree = (self.h0, self.h1, self.w), {"levels": self.depth, "tree_select": self.tree_select}
        if state is None and not return_state:
            z: Tensor = multires_conv(u, *filters, cu_seqlens=cu_seqlens, **tree)  # type: ignore[call-overload]
            if not self.causal:
                ends = None if cu_seqlens is None else u.shape[-1] - cu_seqlens.flip(0)
                ahead = multires_conv(u.flip(-1), *self._reverse, cu_seqlens=ends, **tree)  # type: ignore[call-overload]
                z = z + ahead.flip(-1)
            return self._output(z.mT)
        lines = None if state is None else state.lines
        z, after = multires_conv(u, *filters, state=lines, return_state=True, **tree)  # type: ignore[call-overload]
        y = self._output(z.mT)
        return (y, MultiresState((0 if state is None else state.position) + x.shape[1], after)) if return_state else y

    @property
    def _reverse(self) -> tuple[Tensor, Tensor, Tensor]:
        """Filters and weights of the transform of the reversed sequence, which does not weigh x."""
        return self.h0_reverse, self.h1_reverse, F.pad(self.w_reverse, (0, 1))

    def _output(self, z: Tensor) -> Tensor:
        """The pointwise part: z (B, L, D) or (B, D) to the same."""
        y = self._drop(F.gelu(z) if self.activation == "gelu" else z)
        return y if self.out_proj is None else self._drop(F.glu(self.out_proj(y), dim=-1))

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training or self.dropout == 0:
            return y
        kept = y.new_ones(y.shape[0], *[1] * (y.ndim - 2), y.shape[-1])
        return y * F.dropout(kept, self.dropout)

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> MultiresState:
        """Return the state before the first sample; see `Mixer.init_state`. It is on the layer's device."""
        self.check_causal()
        tree: dict[str, Any] = {"levels": self.depth, "tree_select": self.tree_select}
        return MultiresState(0, multires_state(batch_size, self.h0, self.w, dtype=dtype or self.w.dtype, **tree))

    def step(self, x_t: Tensor, state: MultiresState) -> tuple[Tensor, MultiresState]:
        """Mix one sample; see `Mixer.step`. O(K J) products, and one for each coefficient."""
        self.check_step(x_t, state)
        filters = (self.h0, self.h1, self.w)
        z, lines = multires_step(x_t, state.lines, *filters, levels=self.depth, tree_select=self.tree_select)
        return self._output(z), MultiresState(state.position + 1, lines)

    @property
    def receptive_field(self) -> int:
        """1 + (K-1) (2^J - 1), with either selection; of two directions 1 + 2 (K-1) (2^J - 1)."""
        return 1 + self._reach + self.lookahead

    @property
    def lookahead(self) -> int:
        """0 if causal, else (K-1) (2^J - 1)."""
        return 0 if self.causal else self._reach

    @property
    def _reach(self) -> int:
        """How far one tree reaches."""
        return (self.kernel_size - 1) * (2**self.depth - 1)

    def kernel(self, L: int) -> Tensor:
        """The dense kernel (D, L) of z, or (D, 2L - 1), before activation and output; see `Mixer.kernel`."""
        tree: dict[str, Any] = {"levels": self.depth, "tree_select": self.tree_select}
        behind = multires_kernel(self.h0, self.h1, self.w, L, **tree)
        if self.causal:
            return behind
        return F.pad(behind, (L - 1, 0)) + F.pad(multires_kernel(*self._reverse, L, **tree).flip(-1), (0, L - 1))

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        tree = f"kernel_size={self.kernel_size}, depth={self.depth}, tree_select={self.tree_select!r}"
        sizes = f"channels={self.channels}, {tree}, max_length={self.max_length}"
        return sizes if self.causal else f"{sizes}, bidirectional=True"
