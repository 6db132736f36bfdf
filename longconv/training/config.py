"""`TrainConfig`: everything that can be chosen about a training run; also the options of `longconv train`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from transformers import set_seed

from longconv import tasks
from longconv.layers import check_mixer
from longconv.models import LongConvConfig, LongConvForCausalLM

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
        init: folder of a model to start from, distilled or not: its weights, tokenizer, mixers and sizes. Options that
            describe these are left out then, or agree.
        teacher: folder of a model to learn from too: kd_weight KL(teacher || student) + (1 - kd_weight) cross entropy.
        kd_weight: see teacher; 0 for the text alone, 1 for the teacher alone, 0.5 if it is not given.
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
        filter_lr_scale: what filters' own learning rates are multiplied by: less than 1 to fine-tune.
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
    init: Path | None = None
    teacher: Path | None = None
    kd_weight: float | None = None
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
    filter_lr_scale: float = 1.0
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

    def check(self) -> None:
        """Raise ValueError for an option out of range; `train` calls it (a parser would blur the error)."""
        for name in self.mixers.split():
            check_mixer(name)
        for name, options in self.mixer_options.items():
            check_mixer(name, options)
        for name in ("batch_size", "accumulate", "hidden_size", "layers", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.steps < 0 or (self.steps == 0 and self.minutes is None):
            raise ValueError(f"steps must be at least 1, or 0 together with minutes; got {self.steps}")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes must be positive, got {self.minutes}")
        if not self.filter_lr_scale >= 0:
            raise ValueError(f"filter_lr_scale must be at least 0, got {self.filter_lr_scale}")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is a fraction of the run, in [0, 1); got {self.warmup}")
        if self.max_length is not None and self.max_length < self.length:
            raise ValueError(f"max_length must be at least length = {self.length}, got {self.max_length}")
        if self.kd_weight is not None and self.teacher is None:
            raise ValueError(f"kd_weight = {self.kd_weight:g} needs a teacher")
        if self.kd_weight is not None and not 0 <= self.kd_weight <= 1:
            raise ValueError(f"kd_weight must be in [0, 1], got {self.kd_weight}")

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one update, on one device."""
        return self.batch_size * self.accumulate * self.length

    def open_task(self, tokenizer: Any = None) -> Any:
        """The task, with this configuration's data, and its tokenizer unless one is given."""
        vocabulary = {"vocab_size": self.vocab_size} if tokenizer is None and self.tokenizer == "sentencepiece" else {}
        return tasks.get(
            self.task,
            data=self.data,
            max_bytes=self.max_bytes,
            tokenizer=self.tokenizer if tokenizer is None else tokenizer,
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
