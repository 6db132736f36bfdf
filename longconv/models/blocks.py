"""What a model is a stack of: a block of a mixer and an MLP, each with a norm before or behind it."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GradientCheckpointingLayer

from longconv.layers import build_layer

from .configuration import LongConvConfig
from .initialisation import keep_filters_own
from .norms import BatchNorm, build_norm, has_statistics, normalise, same_statistics


class MLP(nn.Module):
    """`down(silu(a) * b)` with `a, b = up(x)` (Shazeer 2020, "GLU variants"), or `down(gelu(up(x)))`."""

    def __init__(self, config: LongConvConfig) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gated = config.activation == "swiglu"
        self.up = nn.Linear(config.hidden_size, (1 + self.gated) * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        x = self.up(x)
        if self.gated:
            a, b = x.chunk(2, dim=-1)
            return self.down(F.silu(a) * b)
        return self.down(F.gelu(x))


class TiedDropout(nn.Module):
    """Dropout of a channel of a sequence at all its times, (B, L, D): `DropoutNd` of S4's code."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Drop channels, in training; of x (B, D) elements."""
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], *[1] * (x.ndim - 2), x.shape[-1]), self.p)

    def extra_repr(self) -> str:
        """The probability, for `print(model)`."""
        return f"p={self.p}"


def build_dropout(p: float, tied: bool) -> nn.Module:
    """Dropout of elements or, tied, of channels."""
    return TiedDropout(p) if tied else nn.Dropout(p)


class LongConvBlock(GradientCheckpointingLayer):
    """A mixer and an MLP on the residual stream, x (B, L, D):

        norm_position="pre":   x <- x + mixer(norm(x));  x <- x + mlp(norm(x))
        norm_position="post":  x <- norm(x + mixer(x));  x <- norm(x + mlp(x))

    A mixer that has a norm inside, of all but what its gate takes away (`GatedAttention`), has none in front of it.
    With `intermediate_size=0` there is the first half only.

    Gradient checkpointing runs `forward` again in the backward pass. That second time, batch norms of the block and of
    the mixer count nothing.
    """

    def __init__(self, config: LongConvConfig, layer: int) -> None:
        super().__init__()
        name, options = config.mixer_of(layer)
        self.pre_norm = config.norm_position == "pre"
        self.mixer = build_layer(name, config.hidden_size, **options)
        inside = self.pre_norm and getattr(self.mixer, "norm", None) is not None
        self.mixer_norm = nn.Identity() if inside else build_norm(config.norm, config.hidden_size, config.norm_eps)
        self.mlp_norm = (
            build_norm(config.norm, config.hidden_size, config.norm_eps) if config.intermediate_size else None
        )
        self.mlp = MLP(config) if config.intermediate_size else None
        self.dropout = build_dropout(config.dropout, config.tie_dropout)
        self.has_statistics, self.counted = has_statistics(self), False
        # Read by `init_module`: GPT-2's scaling of what is added to the residual stream (as Hyena's code has it).
        if config.scale_residual_init and config.initializer_range is not None:
            writers = [getattr(self.mixer, "out_proj", None), *([] if self.mlp is None else [self.mlp.down])]
            for linear in writers:
                if isinstance(linear, nn.Linear):
                    linear._init_std = config.initializer_range / (len(writers) * config.num_hidden_layers) ** 0.5
        keep_filters_own(self.mixer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run `forward`. Checkpointing is inside: when it runs `forward` once more, it does not come by here."""
        if self.has_statistics:
            self.counted = False
        return super().__call__(*args, **kwargs)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        state: Any = None,
        return_state: bool = False,
    ) -> Any:
        """Map x (B, L, D) to (B, L, D), or to that and the mixer's state with `return_state`; see `Mixer.forward`.

        Raises:
            ValueError: see `Mixer.forward`; or a state with batch norms in training.
        """
        if self.training and return_state and BatchNorm in map(type, (self.mixer_norm, self.mlp_norm)):
            raise ValueError(
                "batch norms in training have no state: their statistics are of whole sequences; call eval()"
            )
        if self.has_statistics and self.training:
            if self.counted:
                with same_statistics(self):
                    return self._run(x, mask, cu_seqlens, state, return_state)
            self.counted = True
        return self._run(x, mask, cu_seqlens, state, return_state)

    def _run(self, x: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, state: Any, return_state: bool) -> Any:
        u = normalise(self.mixer_norm, x, mask) if self.pre_norm else x
        mixed = self.mixer(u, mask=mask, cu_seqlens=cu_seqlens, state=state, return_state=return_state)
        mixed, state = mixed if return_state else (mixed, None)
        x = self._finish(x, mixed, mask)
        return (x, state) if return_state else x

    def step(self, x_t: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Map one token x_t (B, D) to (B, D) and the next state."""
        mixed, state = self.mixer.step(self.mixer_norm(x_t) if self.pre_norm else x_t, state)
        return self._finish(x_t, mixed), state

    def step_(self, x_t: Tensor, state: Any) -> Tensor:
        """Map one token x_t (B, D) to (B, D), and write the next state into the tensors of `state`."""
        mixed = self.mixer.step_(self.mixer_norm(x_t) if self.pre_norm else x_t, state)
        return self._finish(x_t, mixed)

    def _finish(self, x: Tensor, mixed: Tensor, mask: Tensor | None = None) -> Tensor:
        """What follows the mixer."""
        x = x + self.dropout(mixed)
        if not self.pre_norm:
            x = normalise(self.mixer_norm, x, mask)
        if self.mlp is None or self.mlp_norm is None:
            return x
        u = normalise(self.mlp_norm, x, mask) if self.pre_norm else x
        x = x + self.dropout(self.mlp(u))
        return x if self.pre_norm else normalise(self.mlp_norm, x, mask)
