"""The contract of a sequence mixer, and the argument checks that all mixers share."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longconv.state import LayerState


@dataclass(frozen=True)
class LayerCard:
    """What the table of layers in the documentation says of a mixer, besides what is computed from the code.

    Attributes:
        title: the layer's name in its paper.
        paper: authors, year and title.
        url: of the paper.
        equation: what it computes, in one line of plain text.
        cost: in L and the layer's sizes, of a forward pass over L samples per channel, e.g. `"O(L log L)"`.
    """

    title: str
    paper: str
    url: str
    equation: str
    cost: str


class Mixer(nn.Module):
    """A sequence mixer (B, L, D) -> (B, L, D).

    Of a causal one, `forward` over a whole sequence, over its chunks with carried state, and `step` over its samples
    give the same.

    Attributes:
        channels: D.
        max_length: the longest sequence, in steps and padding included; None for no limit.
        causal: whether an output depends on no later input. A mixer that is not has no state: `state`, `return_state`,
            `init_state` and `step` raise ValueError.
        long_filters: the layer's long filters, each with `forward(L) -> (D, L)`. An entry may be replaced by another
            filter of as many channels (distillation does); empty for a layer without.
        card: what the table of layers says of the class.

    A linear map that writes to the model's residual stream is named `out_proj` and scaled by the model's depth. Linear
    maps have the model's initialisation, unless the mixer's own `reset_parameters` initialises them, which is called
    after that of its parts; so it must set everything that its paper sets.
    """

    card: ClassVar[LayerCard]
    causal: bool = True

    def __init__(self, channels: int, max_length: int | None) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1 or None, got {max_length}")
        self.channels, self.max_length = channels, max_length
        self.long_filters = nn.ModuleList()

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: Any = None,
        return_state: bool = False,
    ) -> Any:
        """Mix a sequence, or the next chunk of one.

        Args:
            x: (B, L, D), L >= 1.
            mask: (B, L) bool or integer, true for real samples. Rows may be padded on the left or on the right; what
                comes out at padded positions means nothing.
            cu_seqlens: (N+1,) int32 or int64, 0 = c_0 <= ... <= c_N = L: the one row of x (B = 1) holds N sequences,
                samples c_n ... c_{n+1} - 1, which do not see each other.
            state: from `init_state`, or from the call over the preceding chunk.
            return_state: also return the state to go on with.

        Returns:
            y (B, L, D), or `(y, state)` with `return_state`.

        Raises:
            ValueError: x has the wrong shape or no samples, the mask's shape is wrong or it pads on the right while
                `return_state` is asked for, `cu_seqlens` does not fit or comes with a mask or a state, a sequence
                exceeds `max_length`, or a mixer that is not causal is asked for a state.
            TypeError: x is not floating point, or `state` is no state of a layer.
        """
        raise NotImplementedError

    @property
    def receptive_field(self) -> int | None:
        """How many consecutive inputs one output can depend on, itself included; None if only the length bounds it."""
        return None

    @property
    def lookahead(self) -> int | None:
        """How many of the receptive field's inputs are later than the output: 0 if causal, None if unbounded."""
        return 0 if self.causal else None

    @property
    def state_copies(self) -> int:
        """How many states of each long filter one sequence keeps: as many as it has inputs that go through it."""
        return 1

    def kernel(self, L: int) -> Tensor:
        """The layer's mixing as one dense kernel (D, L), lag s at tap s, skip weights included.

        For a layer that is not causal (D, 2L - 1), with lag s at tap L - 1 + s.

        Raises:
            ValueError: the mixing is not a fixed convolution.
        """
        raise ValueError(f"{type(self).__name__} is not a fixed convolution: its mixing depends on the input")

    def init_state(
        self, batch_size: int, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> Any:
        """Return the state before the first sample, for inputs of `dtype` (default: the layer's)."""
        self.check_causal()
        raise NotImplementedError

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Mix one sample: x_t (B, D) -> y_t (B, D) and the next state; `state` itself stays usable.

        Raises:
            ValueError: x_t has the wrong shape, or `max_length` samples have been seen.
            TypeError: `state` is no state of a layer.
        """
        self.check_causal()
        raise NotImplementedError

    @torch.no_grad()
    def step_(self, x_t: Tensor, state: Any) -> Tensor:
        """Mix one sample and write the new state over the old one: x_t (B, D) -> y_t (B, D). Without gradients.

        For generation: the state's tensors stay where they are, so a step can be captured in a CUDA graph. Whatever
        shares memory with the state changes with it: keep `state.clone()`, and `state.copy_(kept)` goes back to it.
        `state.position` is advanced too.

        Raises:
            ValueError: as `step`; or the state is not static (`LayerState.is_static`): that of attention and of a long
                filter that is no recurrence grows, that of stacks of dilated convolutions moves.
            TypeError: `state` is no state of a layer.
        """
        self.check_step_(x_t, state)
        y, after = self.step(x_t, state)
        state.copy_(after)
        return y

    def check_forward(
        self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, state: LayerState | None, return_state: bool
    ) -> Tensor | None:
        """Raise what `forward` promises to raise; return the mask as bool."""
        if not x.is_floating_point():
            raise TypeError(f"x must be floating point, got {x.dtype}")
        if not self.causal and (state is not None or return_state):
            raise ValueError(f"{type(self).__name__} is not causal here, so it has no state to take or to return")
        if x.ndim != 3 or x.shape[-1] != self.channels:
            raise ValueError(f"x must be (B, L, D) with D = {self.channels}, got shape {tuple(x.shape)}")
        if x.shape[1] == 0:
            raise ValueError("x has no samples: L must be at least 1")
        _check_state(state)
        if cu_seqlens is not None:
            if mask is not None or state is not None or return_state:
                raise ValueError("cu_seqlens goes with neither mask, state nor return_state: its sequences are whole")
            if x.shape[0] != 1:
                raise ValueError(f"cu_seqlens: packed sequences lie in one row, so x must have B = 1, got {x.shape[0]}")
            self.check_length(max(packed_lengths(cu_seqlens, x.shape[1])))
            return None
        self.check_length((state.position if state is not None else 0) + x.shape[1])
        if mask is None:
            return None
        if mask.shape != x.shape[:2]:
            raise ValueError(f"mask must be (B, L) = {tuple(x.shape[:2])}, got shape {tuple(mask.shape)}")
        mask = mask.bool()
        if return_state and bool((mask[:, :-1] & ~mask[:, 1:]).any()):
            raise ValueError("mask pads on the right, so there is no state to go on with: pad on the left")
        return mask

    def check_step(self, x_t: Tensor, state: LayerState) -> None:
        """Raise what `step` promises to raise."""
        self.check_causal()
        _check_state(state)
        if x_t.ndim != 2 or x_t.shape[-1] != self.channels:
            raise ValueError(f"x_t must be (B, D) with D = {self.channels}, got shape {tuple(x_t.shape)}")
        self.check_length(state.position + 1)

    def check_step_(self, x_t: Tensor, state: LayerState) -> None:
        """Raise what `step_` promises to raise."""
        self.check_step(x_t, state)
        if not state.is_static:
            raise ValueError(
                f"state is not static (it grows with the context, or moves), so {type(self).__name__} cannot step in "
                "place here: use step, or filters that are recurrences (longconv.distill makes them so)"
            )

    def check_causal(self) -> None:
        """Raise ValueError for a mixer that has no state: the first line of every `init_state`."""
        if not self.causal:
            raise ValueError(f"{type(self).__name__} is not causal here, so it has no state and no steps")

    def check_length(self, length: int) -> None:
        """Raise ValueError if a sequence of `length` samples is longer than the layer can take."""
        if self.max_length is not None and length > self.max_length:
            raise ValueError(f"sequence of length {length} is longer than max_length = {self.max_length}")


def _check_state(state: Any) -> None:
    if state is not None and not isinstance(state, LayerState):
        raise TypeError(f"state must be what init_state, forward or step returned, got {type(state).__name__}")


def stack_receptive_field(mixers: Iterable[Mixer]) -> int | None:
    """How many consecutive inputs one output of mixers one behind the other can depend on; None if unbounded.

    1 + sum of (receptive_field - 1): norms, MLPs and residuals between them do not add to it. It is exact, except that
    layers with attention in chunks, which begin at the same samples in all of them, may see less.
    """
    fields = [mixer.receptive_field for mixer in mixers]
    return None if None in fields else 1 + sum(field - 1 for field in fields if field is not None)


def stack_lookahead(mixers: Iterable[Mixer]) -> int | None:
    """How many of the inputs in `stack_receptive_field` are later than the output: the sum; None if unbounded."""
    ahead = [mixer.lookahead for mixer in mixers]
    return None if None in ahead else sum(count for count in ahead if count is not None)


def packed_lengths(cu_seqlens: Tensor, L: int) -> list[int]:
    """The lengths of the N packed sequences in a row of L samples.

    Raises:
        ValueError: `cu_seqlens` is not a vector of integers that goes from 0 to L without a step back.
    """
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        shape = tuple(cu_seqlens.shape)
        raise ValueError(f"cu_seqlens must be a vector of N + 1 >= 2 integers, got {cu_seqlens.dtype} {shape}")
    ends: list[int] = cu_seqlens.tolist()
    lengths = [after - before for before, after in itertools.pairwise(ends)]
    if ends[0] != 0 or ends[-1] != L or min(lengths) < 0:
        raise ValueError(f"cu_seqlens must go from 0 to L = {L} without a step back, got {ends}")
    return lengths


def for_each_sequence(mix: Callable[[Tensor], Tensor], x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Apply `mix`, (1, L_n, D) -> (1, L_n, D), to each sequence of x (1, L, D): for mixers with no packed form."""
    pieces = x.split(packed_lengths(cu_seqlens, x.shape[1]), dim=1)
    return torch.cat([mix(piece) for piece in pieces if piece.shape[1]], dim=1)
