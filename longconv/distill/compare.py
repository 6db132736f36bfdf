"""How far a student's predictions are from its teacher's, on text: one pass over both."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

#: The label of a position that is not predicted.
IGNORE = -100

# The softmax of so many logits is taken at a time, in float64: 32 MB for each of a handful of temporaries.
_LOGITS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Agreement:
    """Means over the predicted tokens of a text.

    Attributes:
        tokens: how many were predicted.
        bytes: UTF-8 bytes of text that they stand for; None without `token_bytes`.
        teacher_loss, student_loss: nats per token.
        kl: KL(teacher || student) of the next token's distribution, nats per token.
        top1: fraction of the positions where both have the same likeliest token.
        logit_error: ||z_teacher - z_student|| / ||z_teacher||, of the logits z at all these positions.
    """

    tokens: int
    bytes: int | None
    teacher_loss: float
    student_loss: float
    kl: float
    top1: float
    logit_error: float

    @property
    def teacher_bits_per_byte(self) -> float:
        """nats / (ln 2 bytes), as `longconv.tasks.lm` has it. ValueError without bytes; so for the other two."""
        return self._bits_per_byte(self.teacher_loss)

    @property
    def student_bits_per_byte(self) -> float:
        """See `teacher_bits_per_byte`."""
        return self._bits_per_byte(self.student_loss)

    @property
    def bits_per_byte_lost(self) -> float:
        """What the student needs more; negative if it happens to do better."""
        return self._bits_per_byte(self.student_loss - self.teacher_loss)

    def _bits_per_byte(self, loss: float) -> float:
        if not self.bytes:
            raise ValueError("bits per byte need the number of bytes: give token_bytes, and a text that is not empty")
        return loss * self.tokens / (math.log(2) * self.bytes)

    def to_dict(self) -> dict[str, Any]:
        """Every number, JSON-ready; the bits per byte where there are bytes."""
        names = ("teacher_bits_per_byte", "student_bits_per_byte", "bits_per_byte_lost") if self.bytes else ()
        return {**asdict(self), **{name: getattr(self, name) for name in names}}


class Recorded:
    """The logits of a model on given batches, kept in memory: a teacher for many students.

    It stands in for the model in `compare`, with the same batches (the same tensors, not copies of them).

    Args:
        model: see `compare`.
        batches: collated batches; B L V floats are kept of each.
    """

    def __init__(self, model: Callable[..., Any], batches: Iterable[Mapping[str, Tensor]]) -> None:
        # The inputs are kept as well: an id is unique only as long as its tensor lives.
        self._logits: dict[int, tuple[Tensor, Tensor]] = {}
        with torch.inference_mode(), _Evaluating(model):
            for batch in batches:
                self._logits[id(batch["input_ids"])] = (batch["input_ids"], logits_of(model, batch))

    def __call__(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the logits (B, L, V) recorded for this very tensor; ValueError for another."""
        if id(input_ids) not in self._logits:
            raise ValueError("input_ids: not one of the tensors whose logits were recorded")
        return self._logits[id(input_ids)][1]


@torch.inference_mode()
def compare(
    teacher: Callable[..., Any],
    student: Callable[..., Any],
    batches: Iterable[Mapping[str, Tensor]],
    *,
    token_bytes: Any = None,
) -> Agreement:
    """Run both models over a text and compare what they predict.

    Args:
        teacher, student: models on the device of the batches: `model(input_ids=...[, attention_mask=...])` gives logits
            (B, L, V), or an object that has them as `.logits`. Modules are in eval mode for the time being.
        batches: mappings with `input_ids` (B, L) int64, `attention_mask` (B, L) where there is padding, and `labels`
            (B, L), not shifted and -100 where nothing is predicted. Without labels, every token but the first of a row
            and padding is predicted.
        token_bytes: (V,) integers, the bytes of text that each token stands for (`Tokenizer.token_bytes`), for bits
            per byte; default none.

    Returns:
        The `Agreement`. Sums are taken in float64, so differences of 1e-9 nats can still be told.

    Raises:
        ValueError: no token is predicted, or logits of both that differ in shape.
    """
    sums = _Sums(None if token_bytes is None else torch.as_tensor(token_bytes).cpu())
    with _Evaluating(teacher, student):
        for batch in batches:
            a, b = logits_of(teacher, batch), logits_of(student, batch)
            if a.shape != b.shape:
                raise ValueError(f"student: logits {tuple(b.shape)}, but the teacher's are {tuple(a.shape)}")
            following = labels_of(batch)[:, 1:]
            at = following != IGNORE
            sums.add(a[:, :-1][at], b[:, :-1][at], following[at].long())
    return sums.agreement()


class _Sums:
    """What `Agreement` divides."""

    def __init__(self, token_bytes: Tensor | None) -> None:
        self.token_bytes = token_bytes
        self.tokens, self.same, self.bytes = 0, 0, 0
        self.teacher, self.student, self.kl, self.error, self.norm = 0.0, 0.0, 0.0, 0.0, 0.0

    def add(self, a: Tensor, b: Tensor, labels: Tensor) -> None:
        """Add the logits (N, V) of both where (N,) `labels` follow."""
        if self.token_bytes is not None:
            self.bytes += int(self.token_bytes[labels.cpu()].sum())
        rows = max(1, _LOGITS_AT_ONCE // a.shape[1])
        for x, y, label in zip(a.split(rows), b.split(rows), labels.split(rows), strict=True):
            self.tokens += len(label)
            self.same += int((x.argmax(-1) == y.argmax(-1)).sum())
            x, y = x.double(), y.double()
            self.error += float((x - y).square().sum())
            self.norm += float(x.square().sum())
            log_p, log_q = x.log_softmax(-1), y.log_softmax(-1)
            self.teacher -= float(log_p.gather(1, label[:, None]).sum())
            self.student -= float(log_q.gather(1, label[:, None]).sum())
            self.kl += float((log_p.exp() * (log_p - log_q)).sum())

    def agreement(self) -> Agreement:
        """Divide."""
        if self.tokens == 0:
            raise ValueError("batches: no token is predicted in them")
        n, error = self.tokens, self.error / self.norm if self.norm else math.nan if self.error else 0.0
        return Agreement(
            tokens=n,
            bytes=None if self.token_bytes is None else self.bytes,
            teacher_loss=self.teacher / n,
            student_loss=self.student / n,
            kl=self.kl / n,
            top1=self.same / n,
            logit_error=math.sqrt(error),
        )


class _Evaluating:
    """Modules among `models` are in eval mode inside the block, and as before after it."""

    def __init__(self, *models: Any) -> None:
        self.training = [model for model in models if isinstance(model, nn.Module) and model.training]

    def __enter__(self) -> None:
        for model in self.training:
            model.eval()

    def __exit__(self, *exception: object) -> None:
        for model in self.training:
            model.train()


def logits_of(model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
    """(B, L, V), as `compare` takes them of a model and a batch."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if batch.get(name) is not None}
    output = model(**inputs)
    return output if isinstance(output, Tensor) else output.logits


def labels_of(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, L), not shifted, `IGNORE` where nothing is predicted."""
    if (labels := batch.get("labels")) is not None:
        return labels
    mask = batch.get("attention_mask")
    return batch["input_ids"] if mask is None else batch["input_ids"].masked_fill(mask == 0, IGNORE)
