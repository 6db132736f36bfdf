"""Classifiers on the backbone: of sequences, and of pairs of sequences."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration import LongConvConfig
from .modeling import LongConvModel, LongConvPreTrainedModel


class Pooling(nn.Module):
    """Pool x (B, L, D) over its real positions to (B, D), as `config.classifier_pooling` says:

        "mean":       sum_t x_t / N
        "last":       x_t of the last real t
        "attention":  sum_t a_t x_t,  a = softmax_t(query . x_t / sqrt(D))

    The learned query starts at zero, where attention is the mean.
    """

    def __init__(self, config: LongConvConfig) -> None:
        super().__init__()
        self.how = config.classifier_pooling
        if self.how == "attention":
            self.query = nn.Parameter(torch.zeros(config.hidden_size))

    def reset_parameters(self) -> None:
        """Set the query to zero."""
        if self.how == "attention":
            nn.init.zeros_(self.query)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Pool x (B, L, D) over the positions where mask (B, L) bool is true, at least one in a row; all without."""
        if self.how == "last":
            if mask is None:
                return x[:, -1]
            last = mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
            return x[torch.arange(x.shape[0], device=x.device), last]
        # where, not a product: nothing is promised about padded positions, not even that they are finite.
        real = x if mask is None else x.where(mask[..., None], 0.0)
        # Sums over long sequences are at least float32.
        wide = torch.promote_types(x.dtype, torch.float32)
        if self.how == "mean":
            count = x.shape[1] if mask is None else mask.sum(1, keepdim=True)
            return (real.sum(1, dtype=wide) / count).to(x.dtype)
        scores = (real.to(wide) * self.query.to(wide)).sum(-1) * x.shape[-1] ** -0.5
        scores = scores if mask is None else scores.masked_fill(~mask, float("-inf"))
        return (scores.softmax(1)[..., None] * real.to(wide)).sum(1).to(x.dtype)

    def extra_repr(self) -> str:
        """The kind, for `print(model)`."""
        return self.how


class LongConvForSequenceClassification(LongConvPreTrainedModel):
    """A linear classifier on the pooled hidden states of the real positions (`config.classifier_pooling`)."""

    def __init__(self, config: LongConvConfig) -> None:
        super().__init__(config)
        self.model = LongConvModel(config)
        assert config.num_labels is not None
        self.pooling = Pooling(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        input_values: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify sequences.

        Args:
            input_ids: (B, L) integers; or else `inputs_embeds`.
            attention_mask: (B, L), nonzero for real positions, at least one in a row; None if all are.
            inputs_embeds: (B, L, D).
            labels: (B,) int64 classes, or floats for regression and multi-label classification (`problem_type`).
            output_hidden_states: see `LongConvModel.forward`.
            input_values: (B, L, C) floats, in place of `input_ids` for a model with `input_size` C.

        Returns:
            `loss` (scalar), `logits` (B, num_labels), `hidden_states`.

        Raises:
            ValueError, TypeError: see `LongConvModel.forward`; or a row without a real position.
        """
        _check_rows(attention_mask)
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            output_hidden_states=output_hidden_states,
            input_values=input_values,
        )
        mask = None if attention_mask is None else attention_mask.bool()
        logits = self.score(self.pooling(out.last_hidden_state, mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=out.hidden_states)


class LongConvForSequencePairClassification(LongConvPreTrainedModel):
    """A dual encoder: whether, or how, two sequences belong together.

    One backbone reads both, and a small network their pooled features a and b (B, D):

        logits = score(relu(hidden([a, b, a - b, a * b])))

    This is the head of the Long Range Arena's document retrieval (Tay et al. 2021) as S4's code has it, with biases.
    Not symmetric: (a, b) and (b, a) may get different logits. Batch norms have statistics of both together.
    """

    def __init__(self, config: LongConvConfig) -> None:
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"  # which transformers reads off the names of classes it knows
        self.model = LongConvModel(config)
        assert config.num_labels is not None
        self.pooling = Pooling(config)
        self.hidden = nn.Linear(4 * config.hidden_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        input_values: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Classify pairs of sequences.

        Args:
            input_ids: (B, 2, L) integers; or else `inputs_embeds`.
            attention_mask: (B, 2, L), nonzero for real positions, at least one in a sequence; None if all are.
            inputs_embeds: (B, 2, L, D).
            labels: (B,) int64 classes, or floats for regression and multi-label classification (`problem_type`).
            output_hidden_states: as in `LongConvModel.forward`, (B, 2, L, D) each.
            input_values: (B, 2, L, C) floats, in place of `input_ids` for a model with `input_size` C.

        Returns:
            `loss` (scalar), `logits` (B, num_labels), `hidden_states`.

        Raises:
            ValueError, TypeError: see `LongConvModel.forward`; no pairs, or a sequence without a real position.
        """
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "input_values": input_values}
        singles = {name: _as_singles(name, x, 2 if name == "input_ids" else 3) for name, x in given.items()}
        _check_rows(attention_mask)
        attention_mask = _as_singles("attention_mask", attention_mask, 2)
        out = self.model(attention_mask=attention_mask, output_hidden_states=output_hidden_states, **singles)
        mask = None if attention_mask is None else attention_mask.bool()
        a, b = self.pooling(out.last_hidden_state, mask).unflatten(0, (-1, 2)).unbind(1)
        logits = self.score(F.relu(self.hidden(torch.cat([a, b, a - b, a * b], dim=-1))))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        states = out.hidden_states and tuple(h.unflatten(0, (-1, 2)) for h in out.hidden_states)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=states)


def _as_singles(name: str, x: Tensor | None, dims: int) -> Tensor | None:
    """The sequences of pairs x (B, 2, ...) one behind the other, (2B, ...) with so many dimensions."""
    if x is None:
        return None
    if x.ndim != dims + 1 or x.shape[1] != 2:
        shape = "(B, 2, L)" if dims == 2 else "(B, 2, L, channels)"
        raise ValueError(f"{name} must be pairs {shape}, got shape {tuple(x.shape)}")
    return x.flatten(0, 1)


def _check_rows(mask: Tensor | None) -> None:
    """Raise ValueError if nothing could be pooled of a sequence; mask (B, L) or (B, 2, L)."""
    if mask is None or torch.compiler.is_compiling():  # a look at values would break the graph
        return
    empty = (mask == 0).all(-1)
    if empty.any():
        row, *sequence = empty.nonzero()[0].tolist()
        which = f"row {row}" + "".join(f", sequence {i}" for i in sequence)
        raise ValueError(f"attention_mask has no real position in {which}")
