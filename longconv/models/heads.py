"""What stands on the backbone as a language model, which generates. Classifiers are in `classifiers.py`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from .cache import LongConvCache
from .configuration import LongConvConfig
from .modeling import LongConvModel, LongConvPreTrainedModel


class LongConvForCausalLM(LongConvPreTrainedModel, GenerationMixin):
    """A language model; `generate()` carries the layers' streaming states as its cache.

    Batches of prompts are padded on the left, with an `attention_mask`. Distilled (modal) layers decode a token in time
    and memory that do not depend on the context; all others decode exactly from what they have seen.

    Raises:
        ValueError: a mixer of the configuration is not causal; `norm="batch"`, whose statistics in training tell every
            position of the later ones; or an `input_size`.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012
    accepts_loss_kwargs = True  # the Trainer gives num_items_in_batch

    def __init__(self, config: LongConvConfig) -> None:
        super().__init__(config)
        if config.norm == "batch":
            raise ValueError(
                "norm: a language model cannot have 'batch', whose statistics in training contain the tokens it is to "
                "predict; use 'rms' or 'layer'"
            )
        if config.input_size is not None:
            raise ValueError(
                f"input_size: a language model takes token ids, so it must be None, got {config.input_size}"
            )
        self.model = LongConvModel(config)
        for index, block in enumerate(self.model.layers):
            if not block.mixer.causal:
                name, options = config.mixer_of(index)
                raise ValueError(
                    f"mixers: block {index} ({name!r} with {options}) is not causal, and a language model's must be"
                )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: LongConvCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Predict the next token at every position; the arguments of `LongConvModel.forward`, and:

        Args:
            labels: (B, L) token ids, -100 where there is no loss. They are shifted here: give the input again; where
                sequences are packed, with -100 at the first token of each, which the one before does not predict.
            logits_to_keep: give the logits of the last so many positions only; 0 for all.
            num_items_in_batch: what to divide the summed loss by (gradient accumulation); None for its own count.

        Returns:
            `loss` (scalar, mean cross-entropy in nats), `logits` (B, L, V), `past_key_values`, `hidden_states`.

        Raises:
            ValueError: see `LongConvModel.forward`; or `labels` together with `logits_to_keep`.
        """
        if labels is not None and logits_to_keep:
            raise ValueError("labels need the logits of every position: logits_to_keep must be 0")
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            cu_seqlens=cu_seqlens,
        )
        logits = self.lm_head(out.last_hidden_state[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )

    def prepare_inputs_for_generation(
        self, input_ids: Any, *args: Any, inputs_embeds: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What `forward` is called with; see `transformers.GenerationMixin`."""
        # generate(stop_strings=, tokenizer=) hands the tokenizer on to the model, which has no use for it.
        kwargs.pop("tokenizer", None)
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        return prepare(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        # generate() would make a cache of keys and values; ours has to exist before it prefills in chunks.
        if generation_config.cache_implementation is not None:
            raise ValueError("cache_implementation: LongConvForCausalLM has one kind of cache, LongConvCache")
        cache = model_kwargs.get("past_key_values")
        if cache is None and generation_config.use_cache:
            cache = model_kwargs["past_key_values"] = LongConvCache(self.config.num_hidden_layers)
        if isinstance(cache, LongConvCache):
            # Tokens are taken back in assisted generation, whose main loop asks for it; a draft has to be ready for it.
            # Any other loop would keep a state for every token.
            if generation_config.is_assistant:
                cache.activate_past_recording()
            else:
                cache.deactivate_past_recording()

    def _prepare_attention_mask_for_generation(
        self, inputs_tensor: Tensor, generation_config: Any, model_kwargs: dict[str, Any]
    ) -> Any:
        # generate() drops a mask of ones on the way to a draft model, and there takes generated pad tokens for padding.
        if generation_config.is_assistant:
            return inputs_tensor.new_ones(inputs_tensor.shape[:2], dtype=torch.long)
        return super()._prepare_attention_mask_for_generation(inputs_tensor, generation_config, model_kwargs)
