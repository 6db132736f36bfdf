"""Training a language model with the Hugging Face Trainer: our optimiser groups, schedule, log and checkpoints.

`train(TrainConfig(...))` is the whole of it; `longconv train` is its command line.
"""

import dataclasses
import json
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import nn
from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from longconv import tasks
from longconv.models import LongConvConfig, LongConvForCausalLM, save_model
from longconv.models.checkpoint import first_line, quiet_transformers, written_whole

#: A dictionary that is written as JSON on a command line.
Json = Annotated[
    dict[str, dict[str, Any]],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=lambda args: json.loads(args[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [json.dumps(value)],
    ),
]


@dataclass(frozen=True)
class TrainConfig:
    """Train a small language model on text.

    Attributes:
        output: folder for the log, the checkpoints and the final model.
        resume: go on from the last checkpoint in `output`.
        task: name of the task; "lm" is language modelling on local text.
        data: text file or folder; default the source of Python's own standard library.
        max_bytes: use at most so many bytes of the corpus.
        tokenizer: "bytes", or "sentencepiece", which is trained on the train split first.
        vocab_size: pieces of the SentencePiece vocabulary.
        length: tokens in a training sequence.
        mixers: pattern of mixers, repeated over the depth: "hyena", "attention", "hyena hyena attention", ...
        mixer_options: per mixer, options of its class, as JSON on the command line.
        hidden_size: channels.
        layers: blocks.
        max_length: longest sequence of the model; default `length`.
        dropout: of the embedding and the residual branches.
        batch_size: sequences in a step.
        accumulate: steps whose gradients are summed for one update.
        steps: updates; 0 with `minutes` to stop by the clock alone.
        minutes: stop after so many minutes of training, checkpoints included; the schedule follows the clock then.
        lr: peak learning rate (filters have their own).
        schedule: of the learning rate after the warm-up.
        warmup: fraction of the run in which the learning rate rises.
        weight_decay: of the matrices.
        clip: gradient norm.
        precision: "bfloat16" runs matrix products and activations in it (autocast).
        compile: run the model through torch.compile.
        gradient_checkpointing: recompute activations in the backward pass.
        seed: of the initial weights and of the order of the data.
        log_every: updates between lines of the log.
        save_every: updates between checkpoints; 0 for none but the final model.
        evaluate_every: updates between evaluations on the validation split; 0 for none but the last.
        evaluate_batches: batches in an evaluation; 0 for the whole split.
        quiet: no progress bar.
    """

    output: Path
    resume: bool = False
    task: str = "lm"
    data: Path | None = None
    max_bytes: int | None = None
    tokenizer: Literal["bytes", "sentencepiece"] = "sentencepiece"
    vocab_size: int = 4096
    length: int = 1024
    mixers: str = "hyena"
    mixer_options: Json = field(default_factory=dict)
    hidden_size: int = 256
    layers: int = 4
    max_length: int | None = None
    dropout: float = 0.0
    batch_size: int = 8
    accumulate: int = 1
    steps: int = 1000
    minutes: float | None = None
    lr: float = 2e-3
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 10
    save_every: int = 200
    evaluate_every: int = 0
    evaluate_batches: int = 50
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulate", "hidden_size", "layers", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0 or (self.steps == 0 and self.minutes is None):
            raise ValueError(f"steps must be at least 1, or 0 together with minutes; got {self.steps}")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction of the run, in [0, 1); got {self.warmup}")
        if self.max_length is not None and self.max_length < self.length:
            raise ValueError(f"max_length must be at least length = {self.length}, got {self.max_length}")

    def open_task(self) -> Any:
        """The task, with this configuration's data and tokenizer."""
        vocabulary = {"vocab_size": self.vocab_size} if self.tokenizer == "sentencepiece" else {}
        return tasks.get(
            self.task,
            data=self.data,
            max_bytes=self.max_bytes,
            tokenizer=self.tokenizer,
            length=self.length,
            **vocabulary,
        )

    def build_model(self, tokenizer: Any) -> LongConvForCausalLM:
        """A new model, its weights drawn from `seed`."""
        set_seed(self.seed)
        config = LongConvConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.layers,
            mixers=self.mixers,
            mixer_options=self.mixer_options,
            max_position_embeddings=self.max_length or self.length,
            dropout=self.dropout,
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.bos_id,
            eos_token_id=tokenizer.eos_id,
        )
        return LongConvForCausalLM(config)


def parameter_groups(model: nn.Module, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups that honour the marks which modules leave on their parameters.

    A parameter with `_optim = {"lr": ..., "weight_decay": ...}` gets those options; any other gets `lr`, and
    `weight_decay` if it is a matrix (biases and norm weights do not decay). This is the one reader of the marks.
    Parameters that do not require gradients are left out.

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
        groups.setdefault((options.get("lr", lr), decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


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

    Raises:
        ValueError: an option that does not fit, an output folder of another run, or a damaged checkpoint.
        FileNotFoundError: `resume` without a checkpoint.
        OSError: the disk is full; checkpoints written so far stay whole.
    """
    output = Path(config.output)
    checkpoint = _last_checkpoint(output) if config.resume else None
    _claim(output, config)
    task = config.open_task()
    model = config.build_model(task.tokenizer)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    splits = task.splits()
    if len(splits["train"]) == 0:
        raise ValueError(f"the train split is shorter than one sequence of length {config.length} tokens")
    validation = splits["validation"]
    if config.evaluate_batches:
        validation = validation.select(range(min(len(validation), config.evaluate_batches * config.batch_size)))
    clock = _Clock(config.minutes)
    log = _Log(output / "log.jsonl", clock, config)
    trainer = _Trainer(
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
        trainer.add_callback(_ProgressBar(clock, config))
    if checkpoint is not None:
        log.keep_up_to(int(checkpoint.name.rpartition("-")[2]))
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (EOFError, KeyError, RuntimeError, json.JSONDecodeError) as error:
        if checkpoint is None or trainer.state.global_step > int(checkpoint.name.rpartition("-")[2]):
            raise
        raise ValueError(f"checkpoint {checkpoint} is damaged ({first_line(error)}); delete it to resume earlier") from error
    metrics = {name.removeprefix("eval_"): value for name, value in trainer.evaluate().items()}
    trained = model.eval()
    save_model(trained, output / "model", task.tokenizer)
    return TrainResult(trained, task, log.rows, metrics)


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
        bf16=config.precision == "bfloat16",
        torch_compile=config.compile,
        dataloader_pin_memory=torch.cuda.is_available(),
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # a NaN must show
        eval_strategy="steps" if config.evaluate_every else "no",
        eval_steps=config.evaluate_every or None,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        save_total_limit=2,
        seed=config.seed,
        report_to="none",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=config.quiet,
    )


class _Trainer(Trainer):
    """The Trainer with our parameter groups, a schedule that can follow the clock, and checkpoints written whole."""

    def __init__(self, config: TrainConfig, clock: "_Clock", **kwargs: Any) -> None:
        self.config, self.clock, self._staging = config, clock, None
        super().__init__(**kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            groups = parameter_groups(model or self.model, self.config.lr, self.config.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        if self.lr_scheduler is None:

            def factor(step: int) -> float:
                return schedule(self.clock.progress(step, self.config.steps), self.config.warmup, self.config.schedule)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._staging) if self._staging else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # The Trainer writes into the final folder; an interruption would leave a part of a checkpoint there.
        name = f"checkpoint-{self.state.global_step}"
        output = Path(self.config.output)
        with written_whole(output / name) as partial:
            self._staging = partial / "staging"
            try:
                with quiet_transformers():
                    super()._save_checkpoint(model, trial)
                (self._staging / name / "clock.json").write_text(json.dumps({"seconds": self.clock.seconds}))
                for path in (self._staging / name).iterdir():
                    path.rename(partial / path.name)
                shutil.rmtree(self._staging)
            finally:
                self._staging = None
        for old in _checkpoints(output)[: -self.args.save_total_limit]:
            shutil.rmtree(old)

    def _load_from_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with quiet_transformers():  # it would name the tied output projection as a missing weight
            super()._load_from_checkpoint(*args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self.clock.earlier = json.loads((Path(checkpoint) / "clock.json").read_text())["seconds"]


def schedule(progress: float, warmup: float, kind: str) -> float:
    """Learning-rate factor at a fraction of the run: linear warm-up to 1, then `kind`; cosine and linear end at 0.02."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    rest = min(1.0, (progress - warmup) / (1 - warmup))
    if kind == "constant":
        return 1.0
    fall = rest if kind == "linear" else (1 - math.cos(math.pi * rest)) / 2
    return 1 - 0.98 * fall


class _Clock(TrainerCallback):
    """Seconds of training, those before a resume included; stops the run when `minutes` are over."""

    def __init__(self, minutes: float | None) -> None:
        self.limit = None if minutes is None else 60 * minutes
        self.earlier = 0.0
        self.start: float | None = None

    @property
    def seconds(self) -> float:
        return self.earlier + (0.0 if self.start is None else time.monotonic() - self.start)

    def progress(self, step: int, steps: int) -> float:
        """Fraction of the run that is over, by steps or by the clock, whichever is further."""
        by_steps = step / steps if steps else 0.0
        return by_steps if self.limit is None else max(by_steps, min(1.0, self.seconds / self.limit))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.start = time.monotonic() if self.start is None else self.start

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.limit is not None and self.seconds >= self.limit:
            control.should_training_stop = True


class _Log(TrainerCallback):
    """log.jsonl: what the Trainer reports, a line at a time, flushed at once."""

    def __init__(self, path: Path, clock: _Clock, config: TrainConfig) -> None:
        self.path, self.clock, self.config = path, clock, config
        self.rows: list[dict[str, Any]] = []
        if not config.resume:
            path.unlink(missing_ok=True)

    def keep_up_to(self, step: int) -> None:
        """Drop the lines after a checkpoint: they will be written again."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.rows = [row for row in map(json.loads, lines) if row["step"] <= step]
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = {name.removeprefix("eval_"): v for name, v in (logs or {}).items() if not name.startswith("train_")}
        if "loss" not in logs:
            return
        is_eval = "bits_per_byte" in logs
        names = ("bits_per_byte", "perplexity") if is_eval else ("learning_rate", "grad_norm")
        tokens = state.global_step * self.config.batch_size * self.config.accumulate * self.config.length
        row = {
            "step": state.global_step,
            "split": "validation" if is_eval else "train",
            "loss": logs["loss"],
            **{name: logs[name] for name in names if name in logs},
            "seconds": round(self.clock.seconds, 3),
            "tokens": tokens,
        }
        if is_eval and any(old["step"] == row["step"] and old["split"] == row["split"] for old in self.rows):
            return  # the final evaluation, at a step that was evaluated anyway
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class _ProgressBar(TrainerCallback):
    """One line: how far, the last loss, tokens per second."""

    def __init__(self, clock: _Clock, config: TrainConfig) -> None:
        self.clock, self.config = clock, config
        self.bar: Any = None
        self.first = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        by_clock = self.clock.limit is not None
        form = "{desc} {percentage:3.0f}%|{bar}| {n:.0f}/{total:.0f} " + ("s" if by_clock else "steps") + "{postfix}"
        total = self.clock.limit if by_clock else self.config.steps
        self.bar = tqdm(total=total, desc=f"train {self.config.mixers}", bar_format=form, dynamic_ncols=True)
        self.first = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = self.clock.seconds if self.clock.limit is not None else state.global_step
        self.bar.update(min(now, self.bar.total) - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.bar is not None and "loss" in (logs or {}):
            done = (state.global_step - self.first) * self.config.batch_size * self.config.accumulate * self.config.length
            rate = done / max(self.clock.seconds - self.clock.earlier, 1e-9)
            self.bar.set_postfix_str(f"step {state.global_step}, loss {logs['loss']:.3f}, {rate:,.0f} tokens/s")  # type: ignore[index]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


def _checkpoints(output: Path) -> list[Path]:
    """Whole checkpoints, oldest first (partial ones have other names)."""
    found = [path for path in output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _last_checkpoint(output: Path) -> Path:
    checkpoints = _checkpoints(output)
    if not checkpoints:
        raise FileNotFoundError(f"nothing to resume: no checkpoint in {output}")
    return checkpoints[-1]


def _claim(output: Path, config: TrainConfig) -> None:
    """Write the configuration into the output folder, or compare it with the one that is there."""
    free = {"output", "resume", "quiet", "save_every", "evaluate_every", "evaluate_batches"}  # change no loss
    ours = {k: v for k, v in json.loads(json.dumps(dataclasses.asdict(config), default=str)).items() if k not in free}
    path = output / "train.json"
    if config.resume and path.exists():
        theirs = json.loads(path.read_text())
        for name in ours.keys() | theirs.keys():
            if ours.get(name) != theirs.get(name):
                raise ValueError(
                    f"{output} was trained with {name} = {theirs.get(name)!r}, not {ours.get(name)!r}; "
                    "resume with the same options, or choose another output"
                )
    elif _checkpoints(output):
        raise ValueError(f"{output} holds the checkpoints of an earlier run: resume it, or choose another output")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(ours, indent=1))
