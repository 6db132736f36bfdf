"""The tasks of `longconv bench lra --data`: their rows, how fast they load, and a model that trains on them."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from longconv import models
from longconv.tasks import available, get
from longconv.tasks.lra import loading, standin

#: Measured by default: the Long Range Arena.
TASKS = ("lra/listops", "lra/text", "lra/retrieval", "lra/image", "lra/pathfinder32", "lra/pathx")
# Tasks whose data are generated, and one that comes with scikit-learn. All others read files.
_GENERATED = ("lra/listops", "lra/pathfinder32", "lra/pathfinder64", "lra/pathx", "lra/path256", "lra/path512")
_INSTALLED = ("lra/digits",)
# Rows of generated data, and of stand-ins: more than a model sees in some seconds, or enough to be drawn from again.
ROWS, QUICK_ROWS = (2048, 32, 32), (64, 16, 16)
# Not timed: the first batch starts the loading processes, the first step allocates.
_WARMUP = 2


def check_tasks(names: Sequence[str]) -> None:
    """Raise ValueError, saying what there is, unless every name is that of a task of lra, and there is one."""
    known = [name for name in available() if name.startswith("lra/")]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        given = ", ".join(map(repr, unknown)) or "none"
        raise ValueError(f"tasks must be some of {', '.join(known)}; got {given}")


def open_tasks(
    names: Sequence[str], data_dir: Path | None, cache_dir: Path | None, quick: bool = False
) -> Iterator["Opened"]:
    """Open tasks one after the other. What is made for it in a temporary folder is deleted after each.

    Args:
        names: of the tasks.
        data_dir: folder that each of them is read from. Without one, rows are generated where they can be, and else
            read from small stand-ins in the published format.
        cache_dir: where they are kept; default a temporary folder.
        quick: make few rows.
    """
    rows = QUICK_ROWS if quick else ROWS
    for name in names:
        with tempfile.TemporaryDirectory(prefix="longconv-bench-") as temporary:
            options: dict[str, Any] = {"cache_dir": cache_dir or Path(temporary, "cache")}
            source = "installed"
            if data_dir is not None:
                source = "local folder"
                options["data_dir"] = data_dir
            elif name in _GENERATED:
                source = "generated"
                options["sizes"] = rows
            elif name not in _INSTALLED:
                source = "stand-in"
                standin.write(name, Path(temporary, "data"), rows=rows)
                options["data_dir"] = Path(temporary, "data")
            task = get(name, **options)
            yield Opened(task, source, task.splits()["train"])


@dataclass(frozen=True)
class Run:
    """A stretch of training.

    Attributes:
        steps: how many, on so many rows.
        rows: sequences, or pairs.
        training: seconds of the steps.
        waiting: seconds before them, until their batches were on the device.
        mean_length: of the padded sequences.
    """

    steps: int
    rows: int
    training: float
    waiting: float
    mean_length: float


@dataclass(frozen=True)
class Opened:
    """A task with its train split; `source` says where that is from."""

    task: Any
    source: str
    rows: Any

    def inputs(self) -> dict[str, Any]:
        """What a model for it is built with, beside its size: fields of `LongConvConfig`, and `model_class`."""
        kind = "Pair" if self.task.is_pair else ""
        fields = {
            "model_class": getattr(models, f"LongConvForSequence{kind}Classification"),
            "num_labels": self.task.n_classes,
        }
        if self.task.input_size is not None:
            return fields | {"input_size": self.task.input_size}
        return fields | {"vocab_size": self.task.vocab_size}

    def rate(self, batch: int, seconds: float) -> float:
        """Rows per second of the loader alone, in one process."""
        return loading.rate(self.task, "train", batch, seconds)

    def train(
        self,
        step: Callable[[Mapping[str, Tensor]], None],
        batch: int,
        workers: int,
        seconds: float,
        wait: Callable[[], None],
        device: torch.device,
    ) -> Run:
        """Take training steps on random batches for some seconds, at least one.

        Args:
            step: takes one.
            batch: rows in it.
            workers: processes that load; 0 for this one.
            seconds: how long, at least.
            wait: returns when the device is done.
            device: where the batches go.
        """
        # With replacement there is no end of it, so that no epoch has to begin in between.
        sampler = RandomSampler(self.rows, replacement=True, num_samples=1 << 40)
        loader = DataLoader(
            self.rows,
            batch,
            sampler=sampler,
            collate_fn=self.task.collate,
            num_workers=workers,
            pin_memory=device.type == "cuda",
        )
        training, waiting, lengths, count = 0.0, 0.0, 0, 0
        batches = iter(loader)
        for inputs in islice(batches, _WARMUP):
            step({name: x.to(device) for name, x in inputs.items()})
        wait()
        while training + waiting < seconds or not count:
            begin = time.perf_counter()
            inputs = {name: x.to(device, non_blocking=True) for name, x in next(batches).items()}
            wait()
            loaded = time.perf_counter()
            step(inputs)
            wait()
            waiting += loaded - begin
            training += time.perf_counter() - loaded
            ids = inputs.get("input_ids")
            lengths += inputs["input_values"].shape[-2] if ids is None else ids.shape[-1]
            count += 1
        return Run(count, count * batch, training, waiting, lengths / count)
