"""How weights of mixers begin, and the optimiser options they ask for: for our own models and for those of others."""

from typing import Any

import torch
from torch import nn

from longconv.filters import Filter

#: Modules that stay in float32 when a model is loaded in half precision.
KEPT_IN_FLOAT32 = {"long_filters", "nd_filters"}


@torch.no_grad()
def init_module(module: nn.Module, std: float | None) -> None:
    """Initialise one module; to be called for children before their parents.

    So a mixer whose paper initialises the linear maps has the last word on them, in its `reset_parameters`. Every other
    linear map is the model's, and all else initialises itself. What transformers flagged as loaded from a file stays.

    Args:
        module: any module of a model.
        std: of the weights of linear maps and embeddings, N(0, std), with biases of zero; None for PyTorch's
            initialisation. A module's own `_init_std` goes before it.
    """
    linear = isinstance(module, nn.Linear | nn.Embedding) and not getattr(module, "_has_own_init", False)
    if linear and std is not None:
        nn.init.normal_(module.weight, std=getattr(module, "_init_std", std))  # type: ignore[arg-type]
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    elif hasattr(module, "reset_parameters"):
        # transformers calls this on new models and on checkpoints with missing weights. There it flags what was
        # loaded, and torch.nn.init skips that; but it knows nothing of a module's own reset_parameters.
        tensors = [*module.named_parameters(), *module.named_buffers()]
        loaded = {name: t.clone() for name, t in tensors if getattr(t, "_is_hf_initialized", False)}
        if len(loaded) < len(tensors):
            module.reset_parameters()  # type: ignore[operator]
            for name, tensor in tensors:
                if name in loaded:
                    tensor.copy_(loaded[name])


def keep_filters_own(mixer: nn.Module) -> None:
    """Tell `init_module` to leave the linear maps inside a mixer's filters to the filters."""
    for filter in mixer.modules():
        if isinstance(filter, Filter):
            for module in filter.modules():
                module._has_own_init = True  # type: ignore[assignment]


class KeepsMarks:
    """A part of a transformers model: `param._optim`, which modules put on their parameters, survives loading."""

    _optim_marks: dict[str, dict[str, float]]

    def remember_marks(self) -> None:
        """Note the optimiser options that modules marked on their parameters."""
        named: Any = self.named_parameters()  # type: ignore[attr-defined]
        self._optim_marks = {name: p._optim for name, p in named if hasattr(p, "_optim")}

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint, as in `PreTrainedModel`, and mark the loaded parameters as the built ones were."""
        loaded = super().from_pretrained(*args, **kwargs)  # type: ignore[misc]
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.mark_parameters()
        return loaded

    def mark_parameters(self) -> None:
        """Put `param._optim` back, which whatever replaces parameters (loading, `copy.deepcopy`) loses."""
        parameters = dict(self.named_parameters())  # type: ignore[attr-defined]
        for name, options in self._optim_marks.items():
            if name in parameters and not hasattr(parameters[name], "_optim"):
                parameters[name]._optim = options
