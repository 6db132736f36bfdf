"""Autoregressive audio: `WaveConfig`, also the options of `longconv train audio/wave`, and how it is trained."""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import set_seed

from longconv import tasks
from longconv.models import LongConvConfig, LongConvForCausalLM, load_model
from longconv.models.flops import count_flops
from longconv.tasks.audio.metrics import bits_per_byte

from .best import BestJob, BestTrainer
from .classify import TaskCard
from .config import TaskConfig


@dataclass(frozen=True)
class WaveConfig(TaskConfig):
    """Train a language model of audio samples, each of 256 levels, on a folder of audio (docs/audio.md).

    Attributes:
        task: audio/wave.
        data_dir: the folder.
        cache_dir: where files that are resampled are kept; default longconv's cache.
        length: samples of a chunk; default the task's.
    """

    task: str = "audio/wave"
    data_dir: Path | None = None
    cache_dir: Path | None = None
    length: int | None = None

    def check(self) -> None:
        """See `RunConfig.check`."""
        super().check()
        if self.task != "audio/wave":
            raise ValueError(f"task must be audio/wave, got {self.task!r}")
        if "length" in self.task_options:
            raise ValueError("task_options: length is an option of its own")

    def job(self) -> "WaveJob":
        """See `RunConfig.job`."""
        return WaveJob(self)


class WaveJob(BestJob[WaveConfig]):
    """A language model of samples; the weights with the fewest bits per byte on the validation split are kept."""

    lower_is_better = True

    @property
    def measure(self) -> str:
        """See `BestJob.measure`."""
        return "bits_per_byte"

    @cached_property
    def task(self) -> Any:
        """See `Job.task`."""
        folders = {"data_dir": self.config.data_dir, "cache_dir": self.config.cache_dir}
        return tasks.get(
            self.config.task,
            **{name: folder for name, folder in folders.items() if folder is not None},
            **self._options,
        )

    @property
    def _options(self) -> dict[str, Any]:
        length = self.config.length
        return self.config.task_options | ({} if length is None else {"length": length})

    @cached_property
    def splits(self) -> dict[str, Any]:
        """The task's chunks; of validation those that are evaluated on."""
        return self.drawn(self.task.splits())

    @property
    def card(self) -> TaskCard:
        """The task's name and options."""
        place = self.config.data_dir
        return TaskCard(self.config.task, self._options, None if place is None else str(place))

    def flops_per_unit(self, model: LongConvForCausalLM) -> float | None:
        """See `Job.flops_per_unit`: of a whole chunk."""
        tokens: int = self.task.tokens
        cost = count_flops(model, tokens)
        return None if cost is None else tokens * cost.training

    def build_model(self) -> LongConvForCausalLM:
        """See `Job.build_model`. Embedding and output map are apart, as in S4's code: 256 levels are few."""
        set_seed(self.config.seed)
        return LongConvForCausalLM(
            LongConvConfig(
                vocab_size=self.task.vocab_size,
                max_position_embeddings=self.task.tokens,
                tie_word_embeddings=False,
                **self.config.model_options(),
            )
        )

    def trainer(self, **kwargs: Any) -> "WaveTrainer":
        """See `Job.trainer`."""
        return WaveTrainer(
            self,
            train_dataset=self.splits["train"],
            eval_dataset=self.splits["validation"],
            data_collator=self.task.collate,
            compute_metrics=self.task.compute_metrics,
            preprocess_logits_for_metrics=self.task.preprocess_logits_for_metrics,
            **kwargs,
        )


class WaveTrainer(BestTrainer):
    """`BestTrainer` for a `WaveJob`; the loss is the mean over the samples of an update."""

    def items(self, batch: dict[str, Tensor]) -> int:
        """Samples that are predicted."""
        return int((batch["labels"][:, 1:] != -100).sum())

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the share of this batch in the mean loss of the update, and the outputs if asked for."""
        labels = inputs["labels"]
        outputs = model(input_ids=inputs["input_ids"])
        loss = self.job.task.loss(outputs.logits, labels)
        if model.training:
            assert num_items_in_batch is not None
            loss = loss * ((labels[:, 1:] != -100).sum() / num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


@torch.inference_mode()
def evaluate_wave(
    folder: str | os.PathLike[str],
    split: str = "test",
    *,
    data_dir: Path | None = None,
    batch_size: int = 8,
    max_batches: int | None = None,
) -> dict[str, float]:
    """`bits_per_byte` and `loss`, the mean nats of a sample, of a model that `train` left; arguments as of
    `evaluate_classifier`.

    Raises:
        FileNotFoundError: no model, no task.json, or not the task's data.
        ValueError: the files are damaged, the task is not audio/wave, or an argument is out of range.
    """
    if batch_size < 1 or (max_batches is not None and max_batches < 1):
        raise ValueError(f"batch_size and max_batches must be at least 1, got {batch_size} and {max_batches}")
    card = TaskCard.load(folder)
    if card.task != "audio/wave":
        raise ValueError(f"{folder} was trained on {card.task}, not on audio/wave")
    task = card.open_task(data_dir)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    model, rows, nats, samples = load_model(folder).to(device), task.splits()[split], 0.0, 0
    if max_batches is not None:
        rows = rows.select(range(min(len(rows), max_batches * batch_size)))
    for batch in tqdm(DataLoader(rows, batch_size, collate_fn=task.collate), f"evaluate {split}", disable=None):
        labels = batch["labels"].to(device)
        counted = int((labels[:, 1:] != -100).sum())
        nats += counted * float(task.loss(model(input_ids=batch["input_ids"].to(device)).logits, labels))
        samples += counted
    return {"bits_per_byte": bits_per_byte(nats, samples), "loss": nats / samples}
