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


class LongConvConfig(PreTrainedConfig):
    """Configuration of a stack of pre-norm blocks, each a sequence mixer and an MLP.

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
        intermediate_size: width of the MLP; None for 2 hidden_size, as in the published Hyena language models.
        activation: of the MLP, `"swiglu"` or `"gelu"`.
        norm_eps: epsilon of the RMS norms.
        dropout: of the embedding and of both residual branches of a block.
        tie_word_embeddings: whether the output projection is the embedding.
        initializer_range: standard deviation of the initial weights (filters have their own initialisation).
        pad_token_id, bos_token_id, eos_token_id: special tokens, or None.
        classifier_pooling: how a sequence classifier pools, `"mean"` over or `"last"` of the real tokens.
        kwargs: fields of `PreTrainedConfig`, such as `num_labels` or `dtype`.

    Raises:
        ValueError: an argument that is none of these, an unknown mixer, or a value out of range.
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
    norm_eps: float = 1e-5
    dropout: float = 0.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
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
        self.intermediate_size = self.intermediate_size or 2 * self.hidden_size
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
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
        if self.activation not in ("swiglu", "gelu"):
            raise ValueError(f"activation must be 'swiglu' or 'gelu', got {self.activation!r}")
        if self.classifier_pooling not in ("mean", "last"):
            raise ValueError(f"classifier_pooling must be 'mean' or 'last', got {self.classifier_pooling!r}")
        super().__post_init__(**kwargs)

    def mixer_of(self, layer: int) -> tuple[str, dict[str, Any]]:
        """The mixer's name and options, `max_length` among them, of one block."""
        pattern = self.mixers.split()
        name = pattern[layer % len(pattern)]
        assert self.mixer_options is not None
        assert self.layer_options is not None
        options = {**self.mixer_options.get(name, {}), **self.layer_options.get(str(layer), {})}
        return name, {"max_length": self.max_position_embeddings, **options}
