"""`LongConvConfig`: the one description of a model, saved with it as `config.json`."""

import difflib
from dataclasses import fields
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from longconv.layers import LAYERS, check_mixer

# What transformers itself hands to a configuration besides its declared fields: arguments of from_pretrained that it
# forwards, and what it writes into a config.json.
_FROM_TRANSFORMERS = {
    *("model_type", "name_or_path", "_name_or_path", "_commit_hash", "auto_map", "custom_pipelines"),
    *("quantization_config", "torch_dtype", "num_labels", "output_attentions", "attn_implementation", "use_cache"),
    *("_attn_implementation_internal", "experts_implementation", "_experts_implementation_internal"),
}

_CHOICES = {
    "activation": ("swiglu", "gelu"),
    "norm": ("rms", "layer", "scale", "batch"),
    "norm_position": ("pre", "post"),
    "classifier_pooling": ("mean", "last", "attention"),
}


class LongConvConfig(PreTrainedConfig):
    """Configuration of a stack of blocks, each a sequence mixer and an MLP around norms and residuals.

    The defaults are those of language models. Classifiers as published on the Long Range Arena have no MLP but an
    output GLU in the mixer, other norms, PyTorch's initialisation and, for images, continuous inputs (Gu et al. 2022,
    S4, appendix D; Li et al. 2022, SGConv): `intermediate_size=0, norm="batch", norm_position="post",
    initializer_range=None, embedding_dropout=0.0, tie_dropout=True, input_size=1`.

    Args:
        vocab_size: number of tokens.
        hidden_size: D, the channels of every block.
        num_hidden_layers: number of blocks.
        mixers: the pattern of mixers, names of `longconv.layers.LAYERS` separated by spaces, repeated over the depth:
            `"hyena"`, or `"hyena hyena attention"` for a hybrid.
        mixer_options: mixer name -> options of its class, e.g. `{"hyena": {"order": 2, "filter": {...}}}`.
        layer_options: block index, as a string -> options that override `mixer_options` for that block, e.g.
            `{"3": {"filter": {"name": "modal", "order": 8}}}`, as distillation writes them.
        max_position_embeddings: the longest sequence, and every mixer's `max_length` unless its options have one.
        intermediate_size: width of the MLP; None for 2 hidden_size, as in the published Hyena language models; 0 for
            blocks without an MLP and its norm.
        activation: of the MLP, `"swiglu"` or `"gelu"`.
        norm: `"rms"`, `"layer"`, `"scale"` (an RMS norm with one weight for all channels), or `"batch"` over the real
            positions of a batch (`norms.BatchNorm`).
        norm_position: `"pre"`, x <- x + f(norm(x)) and a final norm, or `"post"`, x <- norm(x + f(x)) and none. A mixer
            with an inner norm (MEGA's and TCNCA's option `norm`) has no other in front.
        norm_eps: epsilon of the norms.
        dropout: of the embedding and of the residual branches of a block.
        embedding_dropout: of the embedding instead; None for `dropout`.
        tie_dropout: whether both drop a channel of a sequence at all times instead of elements. (Dropout inside a mixer
            is among its options.)
        tie_word_embeddings: whether the output projection is the embedding.
        initializer_range: standard deviation of the initial weights of embeddings and linear maps, whose biases are
            zero (filters and some mixers have their own initialisation); None for PyTorch's, embeddings ~ N(0, 1).
        scale_residual_init: whether that is divided, for what writes to the residual stream, by the root of the number
            of residual branches (GPT-2); of no effect with `initializer_range=None`.
        pad_token_id, bos_token_id, eos_token_id: special tokens, or None.
        input_size: C, the channels of continuous inputs `input_values` (B, L, C), which a linear map takes to
            hidden_size; None for token ids and an embedding.
        classifier_pooling: how a sequence classifier pools the real positions, by their `"mean"`, the `"last"` one, or
            `"attention"` with a learned query.
        kwargs: fields of `PreTrainedConfig`, such as `num_labels` or `dtype`.

    Raises:
        ValueError: an argument that is none of these, an unknown mixer, or a value out of range. (A value of the wrong
            type is an error of transformers that names the field.)
    """

    model_type = "longconv"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 32000
    hidden_size: int = 768
    num_hidden_layers: int = 12
    mixers: str = "hyena"
    mixer_options: dict[str, dict[str, Any]] | None = None
    layer_options: dict[str, dict[str, Any]] | None = None
    max_position_embeddings: int = 2048
    intermediate_size: int | None = None
    activation: str = "swiglu"
    norm: str = "rms"
    norm_position: str = "pre"
    norm_eps: float = 1e-5
    dropout: float = 0.0
    embedding_dropout: float | None = None
    tie_dropout: bool = False
    tie_word_embeddings: bool = True
    initializer_range: float | None = 0.02
    scale_residual_init: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    input_size: int | None = None
    classifier_pooling: str = "mean"

    def __post_init__(self, **kwargs: Any) -> None:
        """Check every value. Called by the constructor with the arguments that are not fields."""
        known = {field.name for field in fields(self)}
        for key in kwargs.keys() - _FROM_TRANSFORMERS:
            near = difflib.get_close_matches(key, known | _FROM_TRANSFORMERS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"LongConvConfig has no argument {key!r}{hint}")
        self.mixer_options = self.mixer_options or {}
        # JSON has only string keys; integers are what one writes by hand.
        self.layer_options = {str(index): options for index, options in (self.layer_options or {}).items()}
        # The Auto classes look through it where a configuration has several classes.
        self.architectures = self.architectures or []
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.intermediate_size is None:
            self.intermediate_size = 2 * self.hidden_size
        if self.intermediate_size < 0:
            raise ValueError(f"intermediate_size must be at least 0, or None, got {self.intermediate_size}")
        if self.input_size is not None and self.input_size < 1:
            raise ValueError(f"input_size must be at least 1, or None for token ids, got {self.input_size}")
        for name in ("dropout", "embedding_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if self.initializer_range is not None and not self.initializer_range >= 0:
            raise ValueError(f"initializer_range must be at least 0, or None, got {self.initializer_range}")
        if not self.mixers.split():
            raise ValueError(f"mixers names no mixer; known: {', '.join(sorted(LAYERS))}")
        for name in self.mixers.split():
            check_mixer(name)
        for name, options in self.mixer_options.items():
            check_mixer(name, options)
        for index in self.layer_options:
            if not (index.isdigit() and int(index) < self.num_hidden_layers):
                raise ValueError(f"layer_options has {index!r}, which is none of the {self.num_hidden_layers} blocks")
        for index, options in self.layer_options.items():
            check_mixer(self.mixer_of(int(index))[0], options)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        super().__post_init__(**kwargs)

    def mixer_of(self, layer: int) -> tuple[str, dict[str, Any]]:
        """The mixer's name and options, `max_length` among them, of one block."""
        pattern = self.mixers.split()
        name = pattern[layer % len(pattern)]
        assert self.mixer_options is not None
        assert self.layer_options is not None
        options = {**self.mixer_options.get(name, {}), **self.layer_options.get(str(layer), {})}
        return name, {"max_length": self.max_position_embeddings, **options}

    def set_layer_options(self, layer: int, options: dict[str, Any]) -> None:
        """Override options of one block's mixer."""
        layers = self.layer_options or {}
        self.layer_options = {**layers, str(layer): {**layers.get(str(layer), {}), **options}}
