"""Classifiers of sequences: `ClassifyConfig`, also the options of `longconv train NAME`, and how they are trained."""

import dataclasses
import inspect
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn
from transformers import set_seed

from longconv import tasks
from longconv.layers import LAYERS, check_mixer
from longconv.models import LongConvConfig, LongConvForSequenceClassification, LongConvForSequencePairClassification

from .batches import Batches
from .best import BestJob, BestTrainer
from .classify_trainer import ClassifyTrainer
from .config import TaskConfig
from .half_rate import at_half_rate, long_filters


@dataclass(frozen=True)
class ClassifyConfig(TaskConfig):
    """Train a classifier of sequences on a task, such as those of the Long Range Arena or spoken words.

    Attributes:
        task: name of the task, such as lra/listops.
        data_dir: folder of the task's files, for tasks that are not generated.
        cache_dir: where prepared data is kept; default longconv's cache.
        pooling: over the real tokens, before the classifier.
        tie_dropout: drop a channel of a sequence at all times or not at all.
        bidirectional: mixers see both sides of a token.
        bucket: batches of rows of similar length, where lengths differ.
        pad_multiple: batches are padded to a multiple of so many tokens.
    """

    task: str = "lra/listops"
    data_dir: Path | None = None
    cache_dir: Path | None = None
    beta2: float = 0.999
    pooling: Literal["mean", "last", "attention"] = "mean"
    tie_dropout: bool = False
    bidirectional: bool = True
    bucket: bool = True
    pad_multiple: int = 1

    def check(self) -> None:
        """See `RunConfig.check`."""
        super().check()
        if self.pad_multiple < 1:
            raise ValueError(f"pad_multiple must be at least 1, got {self.pad_multiple}")
        self.options_of_mixers()

    def job(self) -> "ClassifyJob":
        """See `RunConfig.job`."""
        return ClassifyJob(self)

    def summary(self, metrics: dict[str, float]) -> str:
        """See `RunConfig.summary`."""
        slow = metrics.get("half_rate_accuracy")
        return super().summary(metrics) + ("" if slow is None else f"; test at half the sample rate {slow:.4f}")

    def options_of_mixers(self) -> dict[str, dict[str, Any]]:
        """`mixer_options`, with `bidirectional` for every mixer of the pattern unless it is there already.

        Raises:
            ValueError: a mixer of the pattern has no such option.
        """
        options = dict(self.mixer_options)
        for name in set(self.mixers.split()) if self.bidirectional else ():
            check_mixer(name)
            if "bidirectional" not in inspect.signature(LAYERS[name]).parameters:
                raise ValueError(f"bidirectional: mixer {name!r} is causal only: set bidirectional to False")
            options[name] = {"bidirectional": True, **options.get(name, {})}
        return options


class ClassifyJob(BestJob[ClassifyConfig]):
    """A classifier on a task."""

    @property
    def measure(self) -> str:
        """See `BestJob.measure`: where a row may have several labels, the macro-averaged area under the ROC curve."""
        return "macro_auroc" if self.multi_label else "accuracy"

    @property
    def multi_label(self) -> bool:
        """Whether a row may have several labels, which a task need not deny."""
        return getattr(self.task, "multi_label", False)

    @cached_property
    def task(self) -> Any:
        """See `Job.task`."""
        config = self.config
        folders = {"data_dir": config.data_dir, "cache_dir": config.cache_dir}
        options: dict[str, Any] = {name: folder for name, folder in folders.items() if folder is not None}
        if config.pad_multiple > 1:
            options["pad_multiple"] = config.pad_multiple
        return tasks.get(config.task, **options, **config.task_options)

    @cached_property
    def splits(self) -> dict[str, Any]:
        """The task's; of validation the rows that are evaluated on, and neither it nor test in an order that pads."""
        config, splits = self.config, dict(self.task.splits())
        for name in ("validation", "test"):
            rows = np.arange(len(splits[name]))
            if name == "validation" and config.evaluate_batches:
                # Drawn, since published splits come sorted by class.
                rows = np.random.default_rng(0).permutation(rows)[: config.evaluate_batches * config.batch_size]
            lengths = self.lengths(name)
            rows = np.sort(rows) if lengths is None else rows[np.argsort(-lengths[rows], kind="stable")]
            splits[name] = splits[name].select(rows)
        return splits

    def lengths(self, split: str) -> np.ndarray | None:
        """Of the rows of a split, where batches are to be of similar ones."""
        return self.task.lengths(split) if self.config.bucket and self.task.vocab_size is not None else None

    @cached_property
    def train_batches(self) -> Batches:
        """See `Job.train_batches`."""
        config = self.config
        return Batches(len(self.splits["train"]), config.batch_size, seed=config.seed, lengths=self.lengths("train"))

    @property
    def card(self) -> "TaskCard":
        """The task's name and options."""
        config = self.config
        return TaskCard(config.task, config.task_options, None if config.data_dir is None else str(config.data_dir))

    def build_model(self) -> Any:
        """See `Job.build_model`."""
        config, task = self.config, self.task
        set_seed(config.seed)
        if task.vocab_size is None:
            described: dict[str, Any] = {"input_size": task.input_size}
        else:
            described = {"vocab_size": task.vocab_size, "pad_token_id": task.pad_id}
        described |= {"num_labels": task.n_classes, "max_position_embeddings": task.length}
        model_config = LongConvConfig(
            **described,
            **config.model_options() | {"mixer_options": config.options_of_mixers()},
            tie_dropout=config.tie_dropout,
            classifier_pooling=config.pooling,
        )
        kind = LongConvForSequencePairClassification if task.is_pair else LongConvForSequenceClassification
        return kind(model_config)

    def trainer(self, **kwargs: Any) -> ClassifyTrainer:
        """See `Job.trainer`."""
        return ClassifyTrainer(
            self,
            train_dataset=self.splits["train"],
            eval_dataset=self.splits["validation"],
            data_collator=self.task.collate,
            compute_metrics=self.task.compute_metrics,
            **kwargs,
        )

    def finish(self, trainer: BestTrainer) -> dict[str, float]:
        """See `BestJob.finish`. Of spoken words at 16 kHz, sample by sample, if the model has long filters, also
        `half_rate_accuracy`: of the best weights on the test split at 8 kHz, with the filters for that rate
        (`at_half_rate`).
        """
        metrics, config, model = super().finish(trainer), self.config, trainer.model
        assert isinstance(model, nn.Module)
        # Frames of samples have no filters for another rate: within a frame the first linear map is the filter.
        one_by_one = getattr(self.task, "sample_rate", None) == 16_000 and self.task.input_size == 1
        if not one_by_one or not long_filters(model):
            return metrics
        half = dataclasses.replace(config, task_options=config.task_options | {"sample_rate": 8_000}).job()
        usual, trainer.data_collator = trainer.data_collator, half.task.collate
        with at_half_rate(model):
            found = trainer.evaluate(self.splits["test"], metric_key_prefix="half_rate")
        trainer.data_collator = usual
        return metrics | {"half_rate_accuracy": found["half_rate_accuracy"]}


@dataclass(frozen=True)
class TaskCard:
    """Beside a classifier: what it was trained for, in `task.json`."""

    FILE: ClassVar[str] = "task.json"

    task: str
    options: dict[str, Any]
    data_dir: str | None

    def open_task(self, data_dir: Path | None = None) -> Any:
        """The task; `data_dir` is the folder of its files, default where they were in training."""
        place = data_dir or self.data_dir
        return tasks.get(self.task, **({} if place is None else {"data_dir": Path(place)}), **self.options)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it into a folder."""
        content = {"task": self.task, "options": self.options, "data_dir": self.data_dir}
        Path(folder, self.FILE).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "TaskCard":
        """Read it from a folder.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: it is damaged.
        """
        path = Path(folder, cls.FILE)
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no {cls.FILE} in {folder} that would say what the model is for") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
