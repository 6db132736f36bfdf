"""A saved model as the start of a run, such as a distilled one that is to be fine-tuned."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from longconv.models import LongConvForCausalLM, load_model
from longconv.tasks.lm import ByteTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer

if TYPE_CHECKING:
    from .language import TrainConfig


@dataclass(frozen=True)
class Initial:
    """What `TrainConfig.init` names: the model, in float32 whatever it was saved in, and its tokenizer."""

    folder: Path
    model: LongConvForCausalLM
    tokenizer: Tokenizer

    @classmethod
    def load(cls, folder: Path) -> "Initial":
        """Read both.

        Raises:
            FileNotFoundError: there is no model, or no tokenizer beside it.
            ValueError: the files are damaged, or model and tokenizer do not go together.
        """
        model, tokenizer = load_model(folder, dtype=torch.float32), load_tokenizer(folder)
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"the tokenizer in {folder} has {tokenizer.vocab_size} ids and the model {model.config.vocab_size}"
            )
        return cls(folder, model, tokenizer)

    def complete(self, config: "TrainConfig") -> "TrainConfig":
        """`config` with every option that describes the model or the tokenizer as they are here.

        An option at its default is not a choice, so it gives way.

        Raises:
            ValueError: one that is no default and says something else, or a `length` that the model cannot take.
        """
        mine, changes = self._options(), {}
        for field in dataclasses.fields(config):
            if field.name not in mine:
                continue
            given, here = getattr(config, field.name), mine[field.name]
            factory = field.default_factory
            default = field.default if factory is dataclasses.MISSING else factory()
            if given not in (default, here):
                raise ValueError(
                    f"{field.name} = {given!r} contradicts init: the model in {self.folder} has {here!r}; leave it out"
                )
            changes[field.name] = here
        if config.length > changes["max_length"]:
            raise ValueError(
                f"length must be at most {changes['max_length']}, the longest sequence of the model in {self.folder}; "
                f"got {config.length}"
            )
        return dataclasses.replace(config, **changes)

    def _options(self) -> dict[str, Any]:
        """What `TrainConfig` would have had to say for a model and a tokenizer like these."""
        config = self.model.config
        options = {
            "mixers": config.mixers,
            "mixer_options": config.mixer_options,
            "hidden_size": config.hidden_size,
            "layers": config.num_hidden_layers,
            "max_length": config.max_position_embeddings,
            "dropout": config.dropout,
        }
        if isinstance(self.tokenizer, ByteTokenizer):
            return {**options, "tokenizer": "bytes"}
        if not isinstance(self.tokenizer, SentencePieceTokenizer):
            return {**options, "tokenizer": str(self.folder)}
        return {**options, "tokenizer": "sentencepiece", "vocab_size": self.tokenizer.vocab_size}
