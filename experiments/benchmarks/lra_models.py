"""The models of `longconv bench lra`: a classifier of one width and depth with each kind of mixer."""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longconv.layers import LAYERS
from longconv.models import LongConvConfig, LongConvForSequenceClassification

from .harness import compare_results
from .tcnca import layers as stack_layers

#: What the others are compared with.
BASELINE = "attention"
#: Channels of a head of attention.
HEAD_DIM = 32
#: Chunks of MEGA and TCNCA: those of MEGA-chunk on the Long Range Arena (Ma et al. 2022) but for Path-X.
CHUNK = 128
#: Ratio of the dilations of the layers with dilated convolutions, and TCNCA's taps; those of TCN. Both have as many
#: convolutions as it takes to see a whole sequence.
TAPS, TCN_TAPS = 8, 9
#: As the vocabulary of ListOps, and its classes.
VOCABULARY, CLASSES = 18, 10
# The gate: two sequences of so many steps, at most.
GATE_LENGTH = 500


def _tcn(width: int, length: int) -> dict[str, Any]:
    # Depthwise, since blocks that mix channels have 18 D^2 parameters each. One tap more than the ratio of the
    # dilations gives it a middle; a block of two convolutions at dilation d sees 2 (TCN_TAPS - 1) d other samples.
    blocks = 1
    while 1 + 2 * (TCN_TAPS - 1) * (TAPS**blocks - 1) // (TAPS - 1) < length:
        blocks += 1
    return {"depthwise": True, "kernel_size": TCN_TAPS, "dilation_growth": TAPS, "num_blocks": blocks, "dropout": 0.0}


#: Mixer -> its options, of a width and a length. What is not said is the layer's default. A GLU in the mixer is what
#: the published classifiers with these layers have.
CONTESTANTS: dict[str, Callable[[int, int], dict[str, Any]]] = {
    BASELINE: lambda width, length: {"num_heads": max(1, width // HEAD_DIM)},
    "sgconv": lambda width, length: {"output": "glu"},
    "s4d": lambda width, length: {"output": "glu"},
    "hyena": lambda width, length: {},
    "multires": lambda width, length: {"output": "glu"},
    "tcnca": lambda width, length: {
        "chunk_size": CHUNK, "kernel_size": TAPS, "dilation_factor": TAPS, "num_layers": stack_layers(length, TAPS)
    },
    "mega": lambda width, length: {"chunk_size": CHUNK},
    "tcn": _tcn,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """Channels and blocks of a model."""

    width: int
    layers: int


def check_layers(names: Sequence[str]) -> None:
    """Raise ValueError, saying what there is, unless every name is one of `CONTESTANTS`, and there is one."""
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown or not names:
        given = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"layers must be some of {', '.join(CONTESTANTS)}; got {given}")


def mixer_options(name: str, width: int, length: int) -> dict[str, Any]:
    """The options of a contestant's mixer; two-sided where the layer can be."""
    options = CONTESTANTS[name](width, length)
    if "bidirectional" in inspect.signature(LAYERS[name]).parameters:
        options["bidirectional"] = True
    return options


def configuration(name: str, size: Size, length: int, mlp: int, **inputs: Any) -> LongConvConfig:
    """The configuration of a contestant with an MLP of `mlp` channels; `inputs` are fields that say what goes in."""
    return LongConvConfig(
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        mixers=name,
        mixer_options={name: mixer_options(name, size.width, length)},
        max_position_embeddings=length,
        intermediate_size=mlp,
        **({"vocab_size": VOCABULARY, "num_labels": CLASSES} | inputs),
    )


def build(name: str, size: Size, length: int, *, model_class: Any = None, **inputs: Any) -> Any:
    """A classifier with random weights (seed 0) for sequences of up to `length` steps.

    The MLP is as wide as it takes to have the parameters of the model with attention, whose MLP has 2 D channels. Where
    the mixers have more than that by themselves there is none, and the model is larger.

    Args:
        name: of `CONTESTANTS`.
        size: of the model.
        length: the longest sequence.
        model_class: default `LongConvForSequenceClassification`.
        inputs: fields of `LongConvConfig`; default those of ListOps.
    """
    model_class = model_class or LongConvForSequenceClassification

    def make(name: str, mlp: int) -> Any:
        torch.manual_seed(0)
        return model_class(configuration(name, size, length, mlp, **inputs))

    target = parameters(make(BASELINE, 2 * size.width))
    least, more = (parameters(make(name, mlp)) for mlp in (1, 2))
    return make(name, max(0, 1 + round((target - least) / (more - least))))


def parameters(model: torch.nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def token_batch(batch: int, length: int, device: torch.device) -> dict[str, Tensor]:
    """Random tokens (batch, length) without padding, and labels (batch,); the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(0, VOCABULARY, (batch, length), generator=generator).to(device),
        "labels": torch.randint(0, CLASSES, (batch,), generator=generator).to(device),
    }


def check(name: str, model: Any, length: int) -> None:
    """Compare logits and gradients of a model in float32 with the same model's in float64.

    Raises:
        DisagreementError: the logits, or all gradients as one vector, differ by more than the tolerance of float32.
    """
    device = next(model.parameters()).device
    inputs = token_batch(2, min(length, GATE_LENGTH), device)

    def results(model: Any) -> tuple[Tensor, Tensor]:
        out = model(**inputs)
        gradients = torch.autograd.grad(out.loss, list(model.parameters()))
        return out.logits.detach(), torch.cat([gradient.flatten() for gradient in gradients])

    compare_results(f"{name}, L={length}", results(model), results(copy.deepcopy(model).double()), torch.float32)
