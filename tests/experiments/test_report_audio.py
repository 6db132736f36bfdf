"""`longconv report effects` and `longconv report wave`: numbers are those of the models, sounds are what they give."""

import csv
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from longconv import cli
from longconv.experiments.reports import effects, wave
from longconv.models import load_audio_model, load_model
from longconv.tasks.audio import ngram
from longconv.training.classify import TaskCard
from longconv.training.effects import evaluate_effect
from longconv.training.wave import evaluate_wave


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two models of an effect, one of samples; a few updates each."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LONGCONV_CACHE", str(folder / "cache"))
        patch.setenv("LONGCONV_RESULTS", str(folder / "results"))
        for name in ("compressor.tcn-100-c", "compressor.lstm-32", "wave.s4d"):
            assert cli.main(["train", f"audio-small.{name}", "--smoke", "--quiet", "--steps", "2"]) == 0
        yield lambda name: folder / "runs" / "smoke" / f"audio-small.{name}" / "model"


def test_effects(trained, tmp_path, capsys):
    tcn, lstm = trained("compressor.tcn-100-c"), trained("compressor.lstm-32")
    out = tmp_path / "report"
    command = ["report", "effects", str(tcn), str(lstm), "--output", str(out), "--seconds", "0.5"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    for expected in ("unprocessed", "tcn-100-c", "lstm-32", "threshold_db", "mean ESR"):
        assert expected in said
    with (out / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"unprocessed", "tcn-100-c", "lstm-32"}
    whole = evaluate_effect(tcn).compute()
    own = [row for row in rows if row["model"] == "tcn-100-c"]
    windows = [int(row["windows"]) for row in own]
    for metric, value in whole.items():
        assert np.average([float(row[metric]) for row in own], weights=windows) == pytest.approx(value, rel=1e-4)
    task = TaskCard.load(tcn).open_task()
    known = {recording.settings for recording in task.recordings("train")}
    assert all(
        (row["trained"] == "True") == ((float(row["threshold_db"]), float(row["ratio"])) in known) for row in own
    )

    # What is written is what the model gives for the recording, and what the task has.
    (before, *others) = sorted(out.glob("*-before.wav"))
    name = before.name.removesuffix("-before.wav")
    (recording,) = (each for each in task.recordings("test") if each.name == name)
    x, rate = soundfile.read(before, dtype="float32")
    assert rate == task.rate
    assert len(x) == min(recording.frames, round(0.5 * rate))
    assert np.abs(x - recording.before.read(0, len(x))[:, 0]).max() <= 2**-23  # of 24 bits
    model = load_audio_model(tcn)
    with torch.no_grad():
        controls = torch.tensor([model.config.scaled(recording.settings)])
        y = model(torch.from_numpy(recording.before.read(0, len(x)).T)[None], controls)[0, 0].numpy()
    heard, _ = soundfile.read(out / f"{name}-tcn-100-c.wav", dtype="float32")
    assert np.abs(heard - np.clip(y, -1, 1)).max() < 1e-5
    pictures = {
        "errors.png",
        "gain-curves.png",
        *(f"{p.name.removesuffix('-before.wav')}.png" for p in (before, *others)),
    }
    assert {path.name for path in out.glob("*.png")} == pictures


def test_gain_curves_of_the_device_are_its_definition(trained):
    """Above the threshold, a dB more in is 1 / ratio dB more out; below, as much. With no model: the device alone."""
    task = TaskCard.load(trained("compressor.tcn-100-c")).open_task()
    found = effects.gain_curves({}, task, [(-30.0, 4.0), (-20.0, 2.0)])
    assert found.settings == ["threshold_db -30, ratio 4", "threshold_db -20, ratio 2"]
    for (threshold, ratio), curves in zip([(-30, 4), (-20, 2)], found.curves, strict=True):
        out = curves["target"]
        quiet = found.levels < threshold - 5
        assert np.abs(out[quiet] - found.levels[quiet]).max() < 0.1
        loud = found.levels > threshold + 10
        slope = np.polyfit(found.levels[loud], out[loud], 1)[0]
        assert slope == pytest.approx(1 / ratio, abs=0.03)


def test_what_effects_cannot_compare(trained, tmp_path, capsys):
    tcn, samples = trained("compressor.tcn-100-c"), trained("wave.s4d")

    def fails(*options):
        assert cli.main(["report", "effects", *map(str, options), "--output", str(tmp_path / "x")]) == 1
        return capsys.readouterr().err

    assert "two folders have the same name" in fails(tcn, tcn)
    assert "holds a LongConvForCausalLM" in fails(samples)
    assert "no test-99 in test, which has test-0 ..." in fails(tcn, "--recordings", "test-99")
    assert not (tmp_path / "x").exists()


def test_wave(trained, tmp_path, capsys):
    folder, out = trained("wave.s4d"), tmp_path / "report"
    command = ["report", "wave", str(folder), "--output", str(out), "--seconds", "0.1", "--prompt-seconds", "0.05"]
    assert cli.main([*command, "--count", "2", "--orders", "1", "2"]) == 0
    said = capsys.readouterr().out
    task = TaskCard.load(folder).open_task()
    assert f"{evaluate_wave(folder)['bits_per_byte']:.3f}" in said
    assert f"{ngram.baseline(task, (1, 2))['test']:.3f}" in said
    names = {path.name for path in out.glob("*.wav")}
    originals = {name for name in names if name.startswith("original")}
    assert originals
    assert names == {"sample-0.wav", "sample-1.wav", *originals, *(f"continued{name[8:]}" for name in originals)}
    assert (out / "samples.png").is_file()
    length, prompt = round(0.1 * task.sample_rate), round(0.05 * task.sample_rate)
    for name in originals:
        original, rate = soundfile.read(out / name, dtype="float32")
        continued, _ = soundfile.read(out / f"continued{name[8:]}", dtype="float32")
        assert (rate, len(continued)) == (task.sample_rate, length)
        # Up to the 8 bits of mu-law, whose coarsest step is 1 / 23 of full scale.
        assert np.abs(original[:prompt] - continued[:prompt]).max() < 0.03
    one, two = (soundfile.read(out / f"sample-{i}.wav")[0] for i in (0, 1))
    assert len(one) == length
    assert not np.array_equal(one, two)


def test_samples_are_drawn_from_the_model(trained):
    """At a temperature near 0, each level is the likeliest one."""
    folder = trained("wave.s4d")
    model, task = load_model(folder), TaskCard.load(folder).open_task()
    sounds = wave.make_up(model, task, 1, 0.02, 0.005, 1e-4)
    levels = task.levels(sounds["sample-0"])
    with torch.no_grad():
        logits = model(input_ids=torch.cat([torch.tensor([128]), levels])[None]).logits[0, :-1]
    chosen = logits.gather(1, levels[:, None])[:, 0]
    assert (logits.amax(1) - chosen).max() < 1e-3 * max(1.0, math.ceil(float(logits.abs().max())))
    with pytest.raises(ValueError, match="prompt_seconds less than seconds"):
        wave.run(folder, seconds=0.1, prompt_seconds=0.2)


def test_a_prompt_that_no_file_has(trained):
    model = load_model(trained("wave.s4d"))
    file = SimpleNamespace(frames=79)
    task = SimpleNamespace(sample_rate=8_000, splits=lambda: {"test": SimpleNamespace(files=[file])})
    with pytest.raises(ValueError, match=r"none of the first 3 files .* is as long as a prompt of 0.01 s"):
        wave.make_up(model, task, 3, 0.02, 0.01, 1.0)


def test_reports_of_other_things_need_no_audio_packages():
    code = "import sys; sys.modules['soundfile'] = None; import longconv.experiments.reports"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
