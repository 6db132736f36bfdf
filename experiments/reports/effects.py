"""`longconv report effects`: models of an audio effect beside each other, in numbers, pictures and sound."""

import csv
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from tqdm.auto import tqdm

from longconv.models import LongConvForAudio, load_audio_model
from longconv.streaming import StreamingModel
from longconv.tasks.audio.effects import Effect, Recording
from longconv.tasks.audio.losses import esr_loss
from longconv.tasks.audio.metrics import EffectMetrics
from longconv.tasks.extras import require
from longconv.training.classify import TaskCard
from longconv.training.effects import errors

from . import effects_plot

#: What a model is compared with: the signal as it was before the effect.
UNPROCESSED = "unprocessed"
# Samples that a stream is given at once.
_BLOCK = 16_384
Samples = NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """Errors of one model at one setting of the controls, means over windows (`EffectMetrics`).

    Attributes:
        model: its name, or `UNPROCESSED`.
        settings: in the device's units, by the control's name.
        trained: whether the setting is one that models were trained on.
        count: windows.
        errors: by the metric's name.
    """

    model: str
    settings: dict[str, float]
    trained: bool
    count: int
    errors: dict[str, float]


class Unprocessed(nn.Module):
    """Leaves a signal as it is."""

    lookahead = 0

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0))  # by which others find out on which device it is

    def forward(self, x: Tensor, controls: Tensor | None = None) -> Tensor:
        """Return x (B, C, T)."""
        return x


def run(
    models: tuple[Path, ...],
    /,
    *,
    output: Path = Path("runs/report-effects"),
    data_dir: Path | None = None,
    recordings: tuple[str, ...] = (),
    seconds: float = 10.0,
    batch_size: int = 8,
) -> list[Scores]:
    """Compare models of an audio effect: errors by setting, sound before and after, spectrograms, gain.

    Into the output folder go errors.csv, errors.png, for each recording the WAV files before, target and one of each
    model, with a picture of them, and gain-curves.png, if the device is at hand to be measured.

    Args:
        models: folders of models that were trained on the same task.
        output: folder of the report.
        data_dir: the task's files, if they are not where they were in training.
        recordings: of the test split, to write and draw; default the one that the device changes most, and of those
            with settings that were not trained on, where there are such.
        seconds: of each.
        batch_size: windows at a time.

    Returns:
        Errors by model and setting.

    Raises:
        ValueError: no models, two of the same name, other tasks, or a recording that does not exist.
    """
    if not models:
        raise ValueError("models: give the folder of one model or more")
    loaded = {_name(folder): load_audio_model(folder) for folder in models}
    if len(loaded) < len(models):
        raise ValueError("models: two folders have the same name, by which they are told apart")
    task = _task(models, data_dir)
    chosen = _chosen(task, recordings, seconds)
    output.mkdir(parents=True, exist_ok=True)
    scores = [score for name, model in _all(loaded) for score in measure(name, model, task, batch_size)]
    console = Console()
    print_table(scores, console)
    _write_csv(scores, output / "errors.csv")
    effects_plot.draw_errors(scores, output / "errors.png")
    for recording in chosen:
        sounds = listen(loaded, task, recording, seconds)
        for kind, samples in sounds.items():
            file = output / f"{recording.name}-{kind}.wav"
            require("soundfile", "audio").write(file, samples, task.rate, subtype="PCM_24")
        title = f"{recording.name}: {_said(dict(zip(_names(task), recording.settings, strict=True)))}"
        effects_plot.draw_recording(sounds, task.rate, title, output / f"{recording.name}.png")
    if hasattr(task, "apply"):
        effects_plot.draw_gain_curves(gain_curves(loaded, task), output / "gain-curves.png")
    console.print(f"numbers, sound and pictures: {output}", soft_wrap=True)
    return scores


def measure(name: str, model: Any, task: Any, batch_size: int) -> list[Scores]:
    """Errors of a model on the test split, by setting."""
    trained = {recording.settings for recording in task.recordings("train")}
    found = []
    for row in errors(model, task, "test", batch_size).by_setting():
        settings = {control: row[control] for control in _names(task)}
        of = {metric: row[metric] for metric in EffectMetrics.NAMES}
        found.append(Scores(name, settings, tuple(settings.values()) in trained, int(row["signals"]), of))
    return found


@torch.inference_mode()
def listen(
    models: dict[str, LongConvForAudio], task: Effect, recording: Recording, seconds: float
) -> dict[str, Samples]:
    """A recording, (frames, channels): "before", "target", and what each model, streamed, makes of it, by its name."""
    frames = min(recording.frames, round(seconds * task.rate))
    sounds = {"before": recording.before.read(0, frames), "target": recording.after.read(0, frames)}
    for name, model in models.items():
        controls = model.config.scaled(recording.settings)
        stream = StreamingModel(model, task.channels, task.rate, controls=controls or None)
        blocks = torch.from_numpy(sounds["before"].T).split(_BLOCK, dim=1)
        bar = tqdm(blocks, f"{recording.name}, {name}", disable=None, leave=False)
        y = torch.cat([*(stream.process(block) for block in bar), stream.flush()], 1)
        sounds[name] = y[:, stream.latency :].T.contiguous().numpy()
    return sounds


@dataclass(frozen=True)
class GainCurves:
    """Levels that come out for levels of a sine that go in, in dB of its amplitude, once they are steady.

    Attributes:
        settings: for each panel, what the controls are at.
        levels: (n,), which go in.
        curves: for each panel, by name, (n,) which come out; "target" is the device.
    """

    settings: list[str]
    levels: NDArray[np.float64]
    curves: list[dict[str, NDArray[np.float64]]]


@torch.inference_mode()
def gain_curves(models: dict[str, LongConvForAudio], task: Any, settings: Sequence[Any] | None = None) -> GainCurves:
    """Measure the device and models of it with sines of 440 Hz, -60 ... 0 dB.

    Args:
        models: by name.
        task: with an `apply(samples, setting)` that is the device.
        settings: at most four are drawn well; default of those that are trained on the first and the last, and the
            same of those that are not.
    """
    if settings is None:
        held_out = list(getattr(task, "held_out", ()))
        settings = list(dict.fromkeys((*_ends(task.settings), *_ends(held_out))))
    levels = np.arange(-60.0, 0.1, 5.0)
    length = max(round(0.8 * task.rate), task.context + round(0.4 * task.rate))
    sine = np.sin(2 * np.pi * 440 * np.arange(length) / task.rate)
    tones = (10 ** (levels[:, None] / 20) * sine).astype(np.float32)
    steady = slice(length - round(0.3 * task.rate), length)

    def level(y: NDArray[Any]) -> NDArray[np.float64]:
        power = np.square(y[:, steady].astype(np.float64)).mean(1)
        return 10 * np.log10(np.maximum(2 * power, 1e-12))

    curves = []
    for setting in tqdm(settings, "gain curves", disable=None, leave=False):
        curve = {"target": level(np.stack([task.apply(tone, setting) for tone in tones]))}
        for name, model in models.items():
            controls = torch.tensor([model.config.scaled(setting)], dtype=torch.float32)
            curve[name] = level(model(torch.from_numpy(tones)[:, None], controls)[:, 0].numpy())
        curves.append(curve)
    return GainCurves([_said(dict(zip(_names(task), s, strict=True))) for s in settings], levels, curves)


def print_table(scores: Sequence[Scores], console: Console) -> None:
    """Print the error-to-signal ratio by setting in percent, a column for each model; then means of all metrics."""
    names = list(dict.fromkeys(score.model for score in scores))
    table = Table(title="error-to-signal ratio on the test split, %", box=box.SIMPLE_HEAD)
    table.add_column("setting (* not trained on)")
    for name in names:
        table.add_column(name, justify="right")
    for settings, trained in dict.fromkeys((tuple(score.settings.items()), score.trained) for score in scores):
        cells = [f"{100 * score.errors['esr']:.2f}" for score in scores if tuple(score.settings.items()) == settings]
        table.add_row(_said(dict(settings)) + ("" if trained else " *"), *cells)
    table.add_section()
    for metric in scores[0].errors:
        table.add_row(f"mean {metric.upper()}", *(f"{mean(scores, name, metric):.4f}" for name in names))
    console.print(table)


def mean(scores: Sequence[Scores], model: str, metric: str) -> float:
    """A model's error over all windows."""
    own = [score for score in scores if score.model == model]
    return statistics.fmean([score.errors[metric] for score in own], [score.count for score in own])


def _all(models: dict[str, LongConvForAudio]) -> list[tuple[str, nn.Module]]:
    return [(UNPROCESSED, Unprocessed()), *models.items()]


def _write_csv(scores: Sequence[Scores], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", *scores[0].settings, "trained", "windows", *scores[0].errors])
        for score in scores:
            numbers = [f"{error:.6g}" for error in score.errors.values()]
            writer.writerow([score.model, *score.settings.values(), score.trained, score.count, *numbers])


def _name(folder: Path) -> str:
    """By what a model is called: its folder, or that of its run, without the task that recipes have in front."""
    folder = folder.resolve()
    return (folder.parent if folder.name == "model" else folder).name.rpartition(".")[2]


def _task(models: Sequence[Path], data_dir: Path | None) -> Any:
    cards = [TaskCard.load(folder) for folder in models]
    for folder, card in zip(models, cards, strict=True):
        if (card.task, card.options) != (cards[0].task, cards[0].options):
            raise ValueError(f"models: {folder} was trained on other data than {models[0]}, or on other windows of it")
    task = cards[0].open_task(data_dir)
    if not isinstance(task, Effect):
        raise ValueError(f"models: {models[0]} was trained on {cards[0].task}, which is no audio effect")
    return task


def _chosen(task: Any, names: Sequence[str], seconds: float) -> list[Recording]:
    """The recordings of these names; or else those that the device changes most."""
    every = task.recordings("test")
    if unknown := [name for name in names if name not in {recording.name for recording in every}]:
        raise ValueError(f"recordings: no {unknown[0]} in test, which has {every[0].name} ... {every[-1].name}")
    if names:
        return [recording for recording in every if recording.name in names]
    trained = {recording.settings for recording in task.recordings("train")}

    def change(recording: Recording) -> float:
        frames = min(recording.frames, round(seconds * task.rate))
        before, after = (torch.from_numpy(x.read(0, frames).T) for x in (recording.before, recording.after))
        return float(esr_loss(before[None], after[None]))

    groups = [[r for r in every if (r.settings in trained) == known] for known in (True, False)]
    return [max(group, key=change) for group in groups if group]


def _names(task: Effect) -> list[str]:
    return [control.name for control in task.controls]


def _said(settings: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items())


def _ends(settings: Sequence[Any]) -> list[Any]:
    return [settings[0], settings[-1]] if settings else []
