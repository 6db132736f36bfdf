"""Classifiers of sequences: `ClassifyConfig`, also the options of `longconv train NAME`, and how they are trained."""

import inspect
import json
import math
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from transformers import set_seed

from longconv import tasks
from longconv.layers import LAYERS, check_mixer
from longconv.models import LongConvConfig, LongConvForSequenceClassification, LongConvForSequencePairClassification

from .batches import Batches
from .classify_trainer import ClassifyTrainer
from .config import JsonOptions, RunConfig
from .job import Job


@dataclass(frozen=True)
class ClassifyConfig(RunConfig):
    """Train a classifier of sequences on a task, such as those of the Long Range Arena.

    The run ends with `steps`, `epochs` or `minutes`, whichever comes first of those that are given, and the schedule
    of the learning rate with it.

    Attributes:
        task: name of the task, such as lra/listops.
        data_dir: folder of the task's files, for tasks that are not generated.
        cache_dir: where prepared data is kept; default longconv's cache.
        task_options: other options of the task as JSON, such as {"sizes": [2000, 200, 200]}.
        epochs: passes over the train split.
        steps: updates; 0 for as many as there are in `epochs` and `minutes`.
        norm: in front of, or behind, every mixer and MLP.
        norm_position: "pre" is x + f(norm(x)), "post" norm(x + f(x)).
        intermediate_size: width of the MLPs; default 2 hidden_size, 0 for blocks without one.
        activation: of the MLPs.
        pooling: over the real tokens, before the classifier.
        embedding_dropout: of the embedding alone; default `dropout`.
        tie_dropout: drop a channel of a sequence at all times or not at all.
        initializer_range: standard deviation of the initial weights; None for PyTorch's own initialisation.
        bidirectional: mixers see both sides of a token.
        bucket: batches of rows of similar length, where lengths differ.
        pad_multiple: batches are padded to a multiple of so many tokens.
        workers: processes that load the data; 0 for none but the one that trains.
        evaluate_batches: batches in an evaluation on the validation split, of rows drawn once; 0 for the whole split.
    """

    task: str = "lra/listops"
    data_dir: Path | None = None
    cache_dir: Path | None = None
    task_options: JsonOptions = field(default_factory=dict)
    epochs: float | None = None
    steps: int = 0
    beta2: float = 0.999
    norm: Literal["rms", "layer", "scale", "batch"] = "rms"
    norm_position: Literal["pre", "post"] = "pre"
    intermediate_size: int | None = None
    activation: Literal["swiglu", "gelu"] = "swiglu"
    pooling: Literal["mean", "last", "attention"] = "mean"
    embedding_dropout: float | None = None
    tie_dropout: bool = False
    initializer_range: float | None = 0.02
    bidirectional: bool = True
    bucket: bool = True
    pad_multiple: int = 1
    workers: int = 0

    def check(self) -> None:
        """See `RunConfig.check`."""
        super().check()
        if self.task not in tasks.available():
            tasks.get(self.task)  # says what there is
        if self.steps < 0 or (self.steps == 0 and self.epochs is None and self.minutes is None):
            raise ValueError(f"steps must be at least 1, or 0 together with epochs or minutes; got {self.steps}")
        if self.epochs is not None and not self.epochs > 0:
            raise ValueError(f"epochs must be positive, got {self.epochs}")
        if self.pad_multiple < 1:
            raise ValueError(f"pad_multiple must be at least 1, got {self.pad_multiple}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        self.options_of_mixers()

    def job(self) -> "ClassifyJob":
        """See `RunConfig.job`."""
        return ClassifyJob(self)

    def summary(self, metrics: dict[str, float]) -> str:
        """See `RunConfig.summary`."""
        return (
            f"accuracy: validation {metrics['accuracy']:.4f}, test {metrics['test_accuracy']:.4f} "
            f"(of the last weights: {metrics['last_accuracy']:.4f} and {metrics['last_test_accuracy']:.4f})"
        )

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


class ClassifyJob(Job[ClassifyConfig]):
    """A classifier on a task."""

    columns = ("epoch", "loss", "accuracy", "learning_rate", "grad_norm", "seconds", "data_seconds", "sequences")
    units = "sequences"

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
    def batches(self) -> Batches:
        """The train split in batches."""
        config = self.config
        return Batches(len(self.splits["train"]), config.batch_size, seed=config.seed, lengths=self.lengths("train"))

    @property
    def units_per_step(self) -> int:
        """See `Job.units_per_step`."""
        return self.config.batch_size * self.config.accumulate

    @property
    def card(self) -> "TaskCard":
        """The task's name and options."""
        config = self.config
        return TaskCard(config.task, config.task_options, None if config.data_dir is None else str(config.data_dir))

    def steps(self) -> int:
        """See `Job.steps`."""
        config = self.config
        if config.epochs is None:
            return config.steps
        steps = math.ceil(config.epochs * -(-len(self.batches) // config.accumulate))
        return min(steps, config.steps) if config.steps else steps

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
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            mixers=config.mixers,
            mixer_options=config.options_of_mixers(),
            norm=config.norm,
            norm_position=config.norm_position,
            intermediate_size=config.intermediate_size,
            activation=config.activation,
            dropout=config.dropout,
            embedding_dropout=config.embedding_dropout,
            tie_dropout=config.tie_dropout,
            initializer_range=config.initializer_range,
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

    def finish(self, trainer: ClassifyTrainer) -> dict[str, float]:
        """Metrics of the best weights by validation accuracy, which are kept, and of the last: see `TrainResult`."""
        test = self.splits["test"]
        last = trainer.validate() | trainer.evaluate(test, metric_key_prefix="test")
        best = last
        if trainer.best is not None and trainer.best["step"] != trainer.state.global_step:
            trainer.load_best()
            best = trainer.best | trainer.evaluate(test, metric_key_prefix="test")
        names = {"eval_accuracy": "accuracy", "eval_loss": "loss"}
        names |= {"test_accuracy": "test_accuracy", "test_loss": "test_loss"}
        metrics = {to: best[name] for name, to in names.items()}
        return metrics | {f"last_{to}": last[name] for name, to in names.items()}


@dataclass(frozen=True)
class TaskCard:
    """Beside a classifier: what it was trained for, in `task.json`."""

    FILE: ClassVar[str] = "task.json"

    task: str
    options: dict[str, Any]
    data_dir: str | None

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
