"""Where we differ from the Hugging Face Trainer: parameter groups, schedule, checkpoints."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from longconv.models.checkpoint import quiet_transformers, written_whole

from .callbacks import Clock
from .config import TrainConfig

#: A run keeps so many checkpoints: the last, and one more in case that is damaged.
KEEP_CHECKPOINTS = 2


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, marked_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Optimiser groups that honour the marks which modules leave on their parameters.

    A parameter with `_optim = {"lr": ..., "weight_decay": ...}` gets those options; any other gets `lr`, and
    `weight_decay` if it is a matrix (biases and norm weights do not decay). This is the one reader of the marks.
    Parameters that do not require gradients are left out. Learning rates of marks are multiplied by `marked_lr_scale`.

    Returns:
        Groups `{"params": [...], "lr": ..., "weight_decay": ...}`, each combination of options once.

    Raises:
        ValueError: a mark has an option other than lr and weight_decay.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        options = getattr(parameter, "_optim", {})
        if unknown := options.keys() - {"lr", "weight_decay"}:
            raise ValueError(f"{name} is marked with the unknown optimiser option {sorted(unknown)[0]!r}")
        decay = options.get("weight_decay", weight_decay if parameter.ndim >= 2 else 0.0)
        rate = marked_lr_scale * options["lr"] if "lr" in options else lr
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def schedule(progress: float, warmup: float, kind: str) -> float:
    """Learning-rate factor at a fraction of the run: linear warm-up to 1, then `kind` (cosine, linear: to 0.02)."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    rest = min(1.0, (progress - warmup) / (1 - warmup))
    if kind == "constant":
        return 1.0
    fall = rest if kind == "linear" else (1 - math.cos(math.pi * rest)) / 2
    return 1 - 0.98 * fall


class LongConvTrainer(Trainer):
    """The Trainer with our parameter groups, a schedule that can follow the clock, and checkpoints written whole."""

    def __init__(self, config: TrainConfig, clock: Clock, **kwargs: Any) -> None:
        self.config, self.clock = config, clock
        self._staging: Path | None = None
        super().__init__(**kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over `parameter_groups`."""
        if self.optimizer is None:
            model = model if model is not None else self.model
            assert model is not None
            config = self.config
            groups = parameter_groups(model, config.lr, config.weight_decay, config.filter_lr_scale)
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """`schedule` over the steps, or over the clock where that limits the run."""
        if self.lr_scheduler is None:

            def factor(step: int) -> float:
                return schedule(self.clock.progress(step, self.config.steps), self.config.warmup, self.config.schedule)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.create_optimizer(), factor)
        return self.lr_scheduler

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The Trainer writes into the final folder; an interruption would leave a part of a checkpoint there.
        name = f"checkpoint-{self.state.global_step}"
        output = Path(self.config.output)
        with written_whole(output / name) as partial:
            self._staging = staging = partial / "staging"
            try:
                with quiet_transformers():
                    super()._save_checkpoint(model, trial)
                (staging / name / "clock.json").write_text(json.dumps({"seconds": self.clock.seconds}))
                for path in (staging / name).iterdir():
                    path.rename(partial / path.name)
                shutil.rmtree(staging)
            finally:
                self._staging = None
        for old in checkpoints(output)[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with quiet_transformers():  # it would name the tied output projection as a missing weight
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.clock.earlier = json.loads((Path(checkpoint) / "clock.json").read_text())["seconds"]


def checkpoints(output: Path) -> list[Path]:
    """Whole checkpoints, oldest first (partial ones have other names)."""
    found = [path for path in output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
