"""The Trainer for classifiers: batches of similar length, accuracy in the log, the best weights kept."""

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_model as load_weights
from torch import Tensor
from torch.utils.data import DataLoader

from longconv.models import save_model

from .trainer import SNAPSHOT, LongConvTrainer, checkpoints

if TYPE_CHECKING:
    from .classify import ClassifyJob


class ClassifyTrainer(LongConvTrainer):
    """`LongConvTrainer` for a `ClassifyJob`.

    The loss is the task's, averaged over the rows of an update, however they are divided into batches. Whenever the
    validation accuracy is higher than before, the weights go to `best-STEP` in the output folder; those that neither
    this run nor a checkpoint could return to are removed with the next checkpoint.

    Attributes:
        best: metrics of the best evaluation so far and its `step`; None before the first.
        waited: seconds in which training waited for its data.
        sequences: how many have been trained on.
    """

    job: "ClassifyJob"

    def __init__(self, job: "ClassifyJob", **kwargs: Any) -> None:
        super().__init__(job, **kwargs)
        self.model_accepts_loss_kwargs = True  # the Trainer leaves dividing by the accumulated rows to compute_loss
        self.best: dict[str, float] | None = None
        self.waited, self.sequences, self._counted = 0.0, 0, 0
        self._correct = torch.zeros((), dtype=torch.int64, device=self.args.device)  # of those since the last line
        self._evaluated: tuple[int, dict[str, float]] | None = None

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The train split in the order of the job's `Batches`."""
        loader = DataLoader(
            self.job.splits["train"],
            batch_sampler=self.job.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            persistent_workers=self.args.dataloader_num_workers > 0,
            pin_memory=self.args.dataloader_pin_memory,
            generator=torch.Generator(),  # what seeds the processes; else dropout would depend on their number
        )
        return self.accelerator.prepare(loader)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The batches of the next update, and how many rows they have."""
        started = time.monotonic()
        batches, _ = super().get_batch_samples(*args, **kwargs)
        if self.clock.start is not None:  # what comes before the first step is not counted anywhere
            self.waited += time.monotonic() - started
        return batches, sum(len(batch["labels"]) for batch in batches)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the share of this batch in the mean loss of the update, and the outputs if asked for."""
        labels = inputs["labels"]
        outputs = model(**{name: x for name, x in inputs.items() if name != "labels"})
        loss = self.job.task.loss(outputs.logits, labels)
        if model.training:
            assert num_items_in_batch is not None
            loss = loss * (len(labels) / num_items_in_batch)
            self._correct += (outputs.logits.detach().argmax(-1) == labels).sum()
            self._counted += len(labels)
            self.sequences += len(labels)
        return (loss, outputs) if return_outputs else loss

    def counts(self) -> dict[str, float]:
        """See `LongConvTrainer.counts`."""
        return {**super().counts(), "data_seconds": round(self.waited, 3), "sequences": self.sequences}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See `LongConvTrainer.log`; with the accuracy of training since the last line."""
        if "loss" in logs and self._counted:
            logs = {**logs, "accuracy": self._correct.item() / self._counted}
            self._correct.zero_()
            self._counted = 0
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """See `Trainer.evaluate`; on the validation split, better weights than before are kept."""
        metrics = super().evaluate(*args, **kwargs)
        if "eval_accuracy" in metrics:
            self._evaluated = (self.state.global_step, metrics)
            if self.best is None or metrics["eval_accuracy"] > self.best["eval_accuracy"]:
                self.best = {name: metrics[name] for name in ("eval_accuracy", "eval_loss")}
                self.best["step"] = self.state.global_step
                save_model(self.model, self._best_folder(), self.job.card)
        return metrics

    def validate(self) -> dict[str, float]:
        """Metrics of the present weights on the validation split, measured now unless that was the last thing done."""
        if self._evaluated is not None and self._evaluated[0] == self.state.global_step:
            return self._evaluated[1]
        return self.evaluate()

    def load_best(self) -> None:
        """Give the model its best weights back."""
        assert isinstance(self.model, torch.nn.Module)
        load_weights(self.model, self._best_folder() / "model.safetensors", device=str(self.args.device))

    def snapshot(self) -> dict[str, Any]:
        """See `LongConvTrainer.snapshot`."""
        mine = {"data_seconds": self.waited, "sequences": self.sequences, "counted": self._counted}
        return {**super().snapshot(), **mine, "correct": self._correct.item(), "best": self.best}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """See `LongConvTrainer.restore`."""
        super().restore(snapshot)
        self.waited, self.sequences = snapshot["data_seconds"], snapshot["sequences"]
        self._counted, self.best = snapshot["counted"], snapshot["best"]
        self._correct.fill_(snapshot["correct"])

    def _best_folder(self) -> Path:
        assert self.best is not None
        return Path(self.job.config.output) / f"best-{self.best['step']}"

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        output = Path(self.job.config.output)
        kept = [json.loads((folder / SNAPSHOT).read_text())["best"] for folder in checkpoints(output)]
        steps = {best["step"] for best in [self.best, *kept] if best is not None}
        for folder in output.glob("best-*"):
            if int(folder.name.rpartition("-")[2]) not in steps:
                shutil.rmtree(folder)
