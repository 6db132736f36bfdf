"""Training: parameter groups, schedule, resuming to the same losses, checkpoints that are whole or absent."""

import dataclasses
import itertools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from longconv.models import LongConvConfig, LongConvForCausalLM, load_model
from longconv.training import TrainConfig, parameter_groups, schedule, train
from longconv.training import trainer as trainer_module


def config_for(output, corpus, **changes) -> TrainConfig:
    small = TrainConfig(
        output=output, data=corpus, tokenizer="bytes", length=64, hidden_size=16, layers=2, mixers="hyena attention",
        mixer_options={"attention": {"num_heads": 2}}, batch_size=2, steps=8, save_every=4, log_every=1, dropout=0.1,
        evaluate_batches=3, quiet=True,
    )  # fmt: skip
    return dataclasses.replace(small, **changes)


def test_parameter_groups_honour_the_marks():
    model = LongConvForCausalLM(LongConvConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1))
    groups = parameter_groups(model, lr=0.5, weight_decay=0.25)
    options = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(options) == len(list(model.parameters()))
    expected = {
        "model.embed_tokens.weight": (0.5, 0.25),
        "model.norm.weight": (0.5, 0.0),
        "model.layers.0.mixer.in_proj.bias": (0.5, 0.0),
        "model.layers.0.mixer.long_filters.0.z": (1e-5, 0.0),
        "model.layers.0.mixer.long_filters.0.mlp.0.weight": (1e-3, 0.0),
    }
    parameters = dict(model.named_parameters())
    assert {name: options[id(parameters[name])] for name in expected} == expected
    slower = {id(p): (g["lr"], g["weight_decay"]) for g in parameter_groups(model, 0.5, 0.25, 0.1) for p in g["params"]}
    for name, (lr, decay) in expected.items():
        lr = pytest.approx(lr if lr == 0.5 else lr / 10)
        assert slower[id(parameters[name])] == (lr, decay), name


def test_parameter_groups_leave_out_frozen_parameters_and_reject_unknown_marks():
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert [p for g in parameter_groups(layer, 1.0, 0.1) for p in g["params"]] == [layer.weight]
    layer.weight._optim = {"momentum": 0.9}
    with pytest.raises(ValueError, match=r"weight is marked with the unknown optimiser option 'momentum'"):
        parameter_groups(layer, 1.0, 0.1)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_schedule(kind):
    factors = [schedule(p / 100, 0.1, kind) for p in range(101)]
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(1.0 if kind == "constant" else 0.02)
    assert all(a >= b for a, b in itertools.pairwise(factors[10:]))


def test_training_learns_logs_and_saves(tmp_path, corpus):
    result = train(config_for(tmp_path / "run", corpus, steps=60, lr=2e-2, log_every=10, evaluate_every=30))
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows == result.log
    losses = [row["loss"] for row in rows if row["split"] == "train"]
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]
    assert [row["step"] for row in rows if row["split"] == "validation"] == [30, 60]
    assert rows[-1]["tokens"] == 60 * 2 * 64
    assert result.metrics["bits_per_byte"] == rows[-1]["bits_per_byte"]
    loaded = load_model(tmp_path / "run" / "model")
    x = torch.randint(0, 256, (2, 50))
    assert torch.equal(loaded(x).logits, result.model(x).logits)


def test_resuming_continues_to_the_same_losses(tmp_path, corpus):
    whole = train(config_for(tmp_path / "whole", corpus))
    train(config_for(tmp_path / "cut", corpus))
    # As if the run had been killed after its first checkpoint.
    shutil.rmtree(tmp_path / "cut" / "checkpoint-8")
    shutil.rmtree(tmp_path / "cut" / "model")
    resumed = train(config_for(tmp_path / "cut", corpus, resume=True))
    strip = lambda rows: [(row["step"], row["split"], row["loss"]) for row in rows]  # noqa: E731
    assert strip(resumed.log) == strip(whole.log)
    a, b = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_clock_stops_a_run_and_counts_over_a_resume(tmp_path, corpus):
    result = train(config_for(tmp_path / "run", corpus, steps=0, minutes=2 / 60))
    assert 0 < result.log[-1]["step"] < 5000
    assert result.log[-1]["seconds"] >= 2
    rates = [row["learning_rate"] for row in result.log if row["split"] == "train"]
    assert rates[-1] < 0.2 * max(rates)  # the schedule ran to its end


def test_a_full_disk_leaves_no_checkpoint_that_looks_whole(tmp_path, corpus, monkeypatch):
    original = trainer_module.Trainer._save_optimizer_and_scheduler

    def full(self, output_dir):
        if self.state.global_step == 8:
            raise OSError(28, "No space left on device")
        original(self, output_dir)

    monkeypatch.setattr(trainer_module.Trainer, "_save_optimizer_and_scheduler", full)
    with pytest.raises(OSError, match=r"could not write .*checkpoint-8: .*No space left"):
        train(config_for(tmp_path / "run", corpus))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-4", "log.jsonl", "train.json"]
    monkeypatch.undo()
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path))
    assert train(config_for(tmp_path / "run", corpus, resume=True)).log[-1]["step"] == 8


def test_a_damaged_checkpoint_is_named(tmp_path, corpus):
    train(config_for(tmp_path / "run", corpus))
    (tmp_path / "run" / "checkpoint-8" / "optimizer.pt").write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match=r"checkpoint .*checkpoint-8 is damaged"):
        train(config_for(tmp_path / "run", corpus, resume=True))


def test_errors_of_a_run(tmp_path, corpus):
    with pytest.raises(FileNotFoundError, match="nothing to resume: no checkpoint in"):
        train(config_for(tmp_path / "none", corpus, resume=True))
    train(config_for(tmp_path / "run", corpus))
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run"):
        train(config_for(tmp_path / "run", corpus))
    with pytest.raises(ValueError, match=r"was trained with lr = 0.002, not 0.5"):
        train(config_for(tmp_path / "run", corpus, resume=True, lr=0.5))
    with pytest.raises(ValueError, match="unknown task 'ml'"):
        train(config_for(tmp_path / "task", corpus, task="ml"))
    with pytest.raises(ValueError, match="unknown mixer 'hyenna'"):
        train(config_for(tmp_path / "mixer", corpus, mixers="hyenna"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        train(config_for(tmp_path / "no-text", corpus, data=tmp_path / "empty"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"minutes": -1.0}, "minutes must be positive"),
        ({"warmup": 1.5}, "warmup is a fraction"),
        ({"filter_lr_scale": -1.0}, "filter_lr_scale must be at least 0"),
        ({"max_length": 10}, "max_length must be at least length = 64"),
    ],
)
def test_bad_options_are_named(tmp_path, corpus, change, message):
    with pytest.raises(ValueError, match=message):
        train(config_for(tmp_path, corpus, **change))


def test_gradient_checkpointing_and_bfloat16_train(tmp_path, corpus):
    plain = train(config_for(tmp_path / "plain", corpus, dropout=0.0))
    saved = train(config_for(tmp_path / "saved", corpus, dropout=0.0, gradient_checkpointing=True))
    assert [r["loss"] for r in saved.log] == pytest.approx([r["loss"] for r in plain.log], rel=1e-5)
    half = train(config_for(tmp_path / "half", corpus, dropout=0.0, precision="bfloat16"))
    assert [r["loss"] for r in half.log] == pytest.approx([r["loss"] for r in plain.log], rel=2e-2)
