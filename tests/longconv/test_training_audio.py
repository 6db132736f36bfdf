"""Classifiers of waveforms, filters for half the sample rate, and language models of samples."""

import dataclasses
import math
import shutil

import numerics
import pytest
import torch
from safetensors.torch import load_file

from longconv import tasks
from longconv.filters import S4DFilter, build_filter
from longconv.layers import LAYERS
from longconv.models import LongConvForCausalLM, load_model
from longconv.tasks.audio.standin import write_standin
from longconv.training import ClassifyConfig, TaskCard, WaveConfig, evaluate_classifier, train
from longconv.training.half_rate import at_half_rate, long_filters
from longconv.training.trainer import checkpoints


def strip(rows):
    timed = ("seconds", "data_seconds", "sequences_per_second", "memory_gb", "mfu")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def classifier(output, task, data, **changes) -> ClassifyConfig:
    small = ClassifyConfig(
        output=output, task=task, data_dir=data, cache_dir=output.parent / "cache", mixers="s4d",
        mixer_options={"s4d": {"filter": {"name": "s4d", "state_size": 4}}}, hidden_size=4, layers=1,
        intermediate_size=0, initializer_range=None, batch_size=8, steps=2, lr=1e-2, log_every=1, save_every=0,
        evaluate_batches=0, quiet=True,
    )  # fmt: skip
    return dataclasses.replace(small, **changes)


def test_words_also_at_half_the_rate(tmp_path):
    data = write_standin("audio/sc10", tmp_path / "data", rows=(8, 2, 2))
    config = classifier(tmp_path / "run", "audio/sc10", data)
    result = train(config)
    assert result.complete
    model = load_model(tmp_path / "run" / "model")
    half = tasks.get("audio/sc10", data_dir=data, cache_dir=config.cache_dir, sample_rate=8_000)
    rows = half.splits()["test"]
    batch = half.collate([rows[i] for i in range(len(rows))])
    assert batch["input_values"].shape[1] == 8_000
    with torch.no_grad(), at_half_rate(model):
        right = model(input_values=batch["input_values"]).logits.argmax(-1) == batch["labels"]
    assert result.metrics["half_rate_accuracy"] == pytest.approx(right.float().mean().item())
    assert "test at half the sample rate" in config.summary(result.metrics)
    card = TaskCard.load(tmp_path / "run" / "model")
    assert (card.task, card.options) == ("audio/sc10", {})

    # No long filter, 8 kHz already, or frames: nothing of the kind.
    multires = {"mixers": "multires", "mixer_options": {}, "steps": 1}
    slow = {"task_options": {"sample_rate": 8_000}, "steps": 1}
    frames = {"task_options": {"frame": 16}, "steps": 1}
    for name, changes in (("multires", multires), ("slow", slow), ("frames", frames)):
        assert "half_rate_accuracy" not in train(dataclasses.replace(config, output=tmp_path / name, **changes)).metrics


def test_half_rate_is_a_step_twice_as_long():
    """Of S4D with zero-order hold, whose step is exp(log_dt): exactly. And the hooks go again."""
    filter = S4DFilter(6, 8, disc="zoh").double()
    whole = filter(64)
    with at_half_rate(filter):
        halved = filter(32)
    assert torch.equal(filter(64), whole)
    numerics.assert_close(halved, whole[:, ::2] + whole[:, 1::2])
    with torch.no_grad():
        filter.log_dt += math.log(2)
    numerics.assert_close(halved, filter(32))
    with pytest.raises(ValueError, match="the model has no long filters"), at_half_rate(torch.nn.Linear(2, 2)):
        pass
    assert long_filters(torch.nn.Linear(2, 2)) == []


def test_filters_of_as_many_taps_as_a_sequence_have_a_half_rate():
    for name in ("s4d", "sgconv", "hyena"):
        layer = LAYERS[name](4, 128, bidirectional=True)
        assert len(long_filters(layer)) == 2
        whole = [filter(64) for filter in long_filters(layer)]
        with at_half_rate(layer):
            halves = [filter(32) for filter in long_filters(layer)]
            layer(torch.randn(2, 64, 4))
        for taps, halved in zip(whole, halves, strict=True):
            assert torch.equal(halved, taps.unflatten(-1, (32, 2)).sum(-1))
    few = build_filter({"name": "dcls", "kernel_count": 2, "dilated_kernel_size": 5}, 4, 128)
    assert long_filters(few) == []


def test_any_number_of_labels(tmp_path):
    data = write_standin("audio/ptbxl", tmp_path / "data", rows=(24, 12, 12))
    config = classifier(tmp_path / "run", "audio/ptbxl", data, steps=8, evaluate_every=4, log_every=4)
    result = train(config)
    evaluated = {row["step"]: row["macro_auroc"] for row in result.log if row["split"] == "validation"}
    assert list(evaluated) == [4, 8]
    assert result.metrics["macro_auroc"] == max(evaluated.values()) == evaluated[result.best_step]
    measured = evaluate_classifier(tmp_path / "run" / "model", "test")
    assert measured["macro_auroc"] == result.metrics["test_macro_auroc"]
    assert "macro auroc: validation" in config.summary(result.metrics)
    # Labels, of which there are 5 for each row, not rows.
    shares = [row["accuracy"] * 4 * 8 * 5 for row in result.log if row["split"] == "train"]
    assert all(abs(share - round(share)) < 1e-6 for share in shares)


def wave(output, data, **changes) -> WaveConfig:
    small = WaveConfig(
        output=output, data_dir=data, length=96, mixers="s4d", hidden_size=16, layers=1, batch_size=8, steps=30,
        lr=1e-2, log_every=5, save_every=0, evaluate_batches=4, quiet=True,
    )  # fmt: skip
    return dataclasses.replace(small, **changes)


def test_samples_are_learned(tmp_path):
    data = write_standin("audio/wave", tmp_path / "data", rows=(2, 2, 2))
    config = wave(tmp_path / "run", data, steps=60, evaluate_every=20, task_options={"tail": False})
    result = train(config)
    losses = [row["loss"] for row in result.log if row["split"] == "train"]
    assert losses[0] > 0.8 * math.log(256)
    assert losses[-1] < 0.9 * losses[0]
    evaluated = {row["step"]: row["bits_per_byte"] for row in result.log if row["split"] == "validation"}
    assert result.metrics["bits_per_byte"] == min(evaluated.values()) == evaluated[result.best_step]
    # One byte a sample: the loss, in bits.
    for split in ("", "test_"):
        nats, bits = result.metrics[f"{split}loss"], result.metrics[f"{split}bits_per_byte"]
        numerics.assert_close(torch.tensor(bits), torch.tensor(nats / math.log(2)).double())
    assert "bits per byte: validation" in config.summary(result.metrics)
    model = load_model(tmp_path / "run" / "model")
    assert isinstance(model, LongConvForCausalLM)
    assert model.config.max_position_embeddings == 97
    card = TaskCard.load(tmp_path / "run" / "model")
    assert (card.task, card.options) == ("audio/wave", {"tail": False, "length": 96})


def test_resuming_gives_the_losses_of_a_whole_run(tmp_path):
    """With shorter chunks at the ends of files, of which the padding counts nowhere."""
    data = write_standin("audio/wave", tmp_path / "data", rows=(2, 2, 2))
    base = wave(
        tmp_path / "whole", data, length=5_000, task_options={"tail": True}, batch_size=3, accumulate=2, steps=9,
        save_every=4, evaluate_every=3, log_every=2, evaluate_batches=0, hidden_size=4,
    )  # fmt: skip
    whole = train(base)
    cut = dataclasses.replace(base, output=tmp_path / "cut")
    shutil.copytree(tmp_path / "whole", cut.output)
    shutil.rmtree(cut.output / "model")
    for folder in checkpoints(cut.output)[1:]:
        shutil.rmtree(folder)
    resumed = train(dataclasses.replace(cut, resume=True))
    assert strip(resumed.log) == strip(whole.log)
    assert resumed.metrics == whole.metrics
    a, b = (load_file(run / "model" / "model.safetensors") for run in (base.output, cut.output))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "audio/sc10"}, "task must be audio/wave, got 'audio/sc10'"),
        ({"task_options": {"length": 5}}, "task_options: length is an option of its own"),
        ({"steps": 0}, "steps must be at least 1, or 0 together with epochs or minutes; got 0"),
    ],
)
def test_bad_options(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train(wave(tmp_path / "run", None, **changes))
