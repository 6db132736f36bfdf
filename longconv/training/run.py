"""`train`: from a `TrainConfig` to a trained model in a folder."""

import dataclasses
import functools
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainingArguments

from longconv.models import LongConvForCausalLM, save_model
from longconv.models.checkpoint import first_line

from .callbacks import Clock, Log, ProgressBar
from .config import TrainConfig
from .initial import Initial
from .teacher import TeacherTrainer, load_teacher
from .trainer import LongConvTrainer, checkpoints


@dataclass
class TrainResult:
    """The trained model in eval mode, its task, the rows of the log, and the final metrics on the validation split."""

    model: LongConvForCausalLM
    task: Any
    log: list[dict[str, Any]]
    metrics: dict[str, float]


def train(config: TrainConfig) -> TrainResult:
    """Train as `config` says; the final model and tokenizer are in `config.output / "model"`.

    The log is `log.jsonl` (one JSON object per line: step, loss in nats per token, learning rate, seconds, tokens; with
    `bits_per_byte` in lines of an evaluation). With `resume`, training goes on from the last checkpoint, and from there
    on gives the losses that an uninterrupted run gives.

    With `init`, training starts from a saved model: to fine-tune a distilled one, say, whose modes are trained like any
    filter and stay stable by their parametrisation. With `teacher`, the student learns from that model too
    (`teacher.py`); rows of the log then have `kl`, and their loss is the sum that is minimised.

    Raises:
        ValueError: an option that does not fit, or contradicts the model in `init`; an output folder of another run; a
            damaged checkpoint or model; a teacher with another tokenizer.
        FileNotFoundError: `resume` without a checkpoint, or no model in `init` or `teacher`.
        OSError: the disk is full; checkpoints written so far stay whole.
    """
    config.check()
    output = Path(config.output)
    checkpoint = _last_checkpoint(output) if config.resume else None
    initial = None if config.init is None else Initial.load(config.init)
    config = config if initial is None else initial.complete(config)
    _claim(output, config)
    task = config.open_task(None if initial is None else initial.tokenizer)
    learn = _trainer(config, task)
    model = config.build_model(task.tokenizer) if initial is None else initial.model
    if config.gradient_checkpointing:
        # Renamed within transformers 5.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    splits = task.splits()
    validation = splits["validation"]
    if config.evaluate_batches:
        validation = validation.select(range(min(len(validation), config.evaluate_batches * config.batch_size)))
    clock = Clock(config.minutes)
    log = Log(output / "log.jsonl", clock, config)
    trainer = learn(
        config,
        clock,
        model=model,
        args=_arguments(config),
        train_dataset=splits["train"],
        eval_dataset=validation,
        data_collator=task.collate,
        compute_metrics=task.compute_metrics,
        preprocess_logits_for_metrics=task.preprocess_logits_for_metrics,
        callbacks=[clock, log],
    )
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if not config.quiet:
        trainer.add_callback(ProgressBar(clock, config))
    if checkpoint is not None:
        log.keep_up_to(int(checkpoint.name.rpartition("-")[2]))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (EOFError, KeyError, RuntimeError, pickle.UnpicklingError, json.JSONDecodeError) as error:
        if checkpoint is None or trainer.state.global_step > int(checkpoint.name.rpartition("-")[2]):
            raise
        hint = "delete it to resume from an earlier one"
        raise ValueError(f"checkpoint {checkpoint} is damaged ({first_line(error)}); {hint}") from error
    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    trained = model.eval()
    save_model(trained, output / "model", task.tokenizer)
    return TrainResult(trained, task, log.rows, metrics)


def _trainer(config: TrainConfig, task: Any) -> Callable[..., LongConvTrainer]:
    """What makes the Trainer: one with a teacher where there is a teacher that counts."""
    if config.teacher is None:
        return LongConvTrainer
    teacher = load_teacher(config.teacher, task.tokenizer, config.length)
    weight = 0.5 if config.kd_weight is None else config.kd_weight
    return functools.partial(TeacherTrainer, teacher=teacher, weight=weight) if weight else LongConvTrainer


def _arguments(config: TrainConfig) -> TrainingArguments:
    """What the Trainer is told; schedule and groups are ours."""
    return TrainingArguments(
        output_dir=str(config.output),
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        max_steps=config.steps or 10**9,
        learning_rate=config.lr,
        weight_decay=config.weight_decay,
        max_grad_norm=config.clip,
        use_cpu=not torch.accelerator.is_available(),
        bf16=config.precision == "bfloat16",
        torch_compile=config.compile,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # a NaN must show
        eval_strategy="steps" if config.evaluate_every else "no",
        eval_steps=config.evaluate_every or None,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        seed=config.seed,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=config.quiet,
    )


def _last_checkpoint(output: Path) -> Path:
    found = checkpoints(output)
    if not found:
        raise FileNotFoundError(f"nothing to resume: no checkpoint in {output}")
    return found[-1]


def is_finished(config: TrainConfig) -> bool:
    """Whether the final model of a run with just these options is in `config.output`.

    Raises:
        ValueError: there is one, with other options; or see `train` for `init`.
        FileNotFoundError: no model in `init`.
    """
    output = Path(config.output)
    if not (output / "model").exists():
        return False
    _compare(output, config if config.init is None else Initial.load(config.init).complete(config))
    return True


def _claim(output: Path, config: TrainConfig) -> None:
    """Write the configuration into the output folder, or compare it with the one that is there."""
    if config.resume:
        _compare(output, config)
    elif checkpoints(output):
        raise ValueError(f"{output} holds the checkpoints of an earlier run: resume it, or choose another output")
    output.mkdir(parents=True, exist_ok=True)
    (output / "train.json").write_text(json.dumps(_options(config), indent=1))


def _compare(output: Path, config: TrainConfig) -> None:
    """Raise ValueError unless the folder's run is known to have had the same options."""
    if not (output / "train.json").exists():
        raise ValueError(f"{output} has no train.json that would say how it was trained: choose another output")
    # An option that did not exist then had what is its default now.
    defaults = _options(TrainConfig(output=output))
    ours, theirs = _options(config), defaults | json.loads((output / "train.json").read_text())
    for name in ours.keys() | theirs.keys():
        if ours.get(name) != theirs.get(name):
            raise ValueError(
                f"{output} was trained with {name} = {theirs.get(name)!r}, not {ours.get(name)!r}; "
                "use the same options, or choose another output"
            )


def _options(config: TrainConfig) -> dict[str, Any]:
    """What decides the losses of a run, JSON-ready."""
    free = {"output", "resume", "quiet", "save_every", "evaluate_every", "evaluate_batches"}  # change no loss
    return {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(config), default=str)).items() if k not in free}
