"""`longconv report wave`: what a model of audio samples makes up, and what n-grams reach on the same data."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm
from transformers import set_seed

from longconv.models import load_model
from longconv.tasks.audio import ngram
from longconv.tasks.audio.codec import silence
from longconv.tasks.extras import require
from longconv.training.classify import TaskCard
from longconv.training.wave import evaluate_wave

Samples = NDArray[np.float32]


def run(
    model: Path,
    /,
    *,
    output: Path = Path("runs/report-wave"),
    data_dir: Path | None = None,
    count: int = 4,
    seconds: float = 2.0,
    prompt_seconds: float = 0.5,
    temperature: float = 1.0,
    seed: int = 0,
    orders: tuple[int, ...] = (1, 2, 3, 4, 5),
) -> dict[str, float]:
    """Measure a model of audio samples beside n-grams, and let it make up sound.

    Into the output folder go WAV files: sample-N.wav, made up from silence; original-N.wav, the beginning of a file of
    the test split, and continued-N.wav, where the model goes on after `prompt_seconds` of it; and samples.png.

    Args:
        model: folder of a model that was trained on audio/wave.
        output: folder of the report.
        data_dir: folder of audio, if it is not where it was in training.
        count: sounds of each kind.
        seconds: of a sound, or as long as the model can go on.
        prompt_seconds: of the original, that a continuation begins with.
        temperature: of sampling.
        seed: of sampling.
        orders: of n-grams, of which the best on the validation split is taken; none to leave them out.

    Returns:
        Bits per byte on the test split: `model` and, with orders, `ngram`; and `ngram_order`.

    Raises:
        ValueError: an argument out of range, the model was trained on something else, or no file of the test split is
            as long as the prompt.
    """
    if count < 1 or temperature <= 0 or not 0 < prompt_seconds < seconds:
        raise ValueError("count, temperature and prompt_seconds must be positive, and prompt_seconds less than seconds")
    card = TaskCard.load(model)
    found = {"model": evaluate_wave(model, data_dir=data_dir)["bits_per_byte"]}
    task = card.open_task(data_dir)
    if orders:
        baseline = ngram.baseline(task, orders)
        found |= {"ngram": baseline["test"], "ngram_order": baseline["order"]}
    rate = task.sample_rate
    set_seed(seed)
    sounds = make_up(load_model(model), task, count, seconds, prompt_seconds, temperature)
    output.mkdir(parents=True, exist_ok=True)
    for name, samples in sounds.items():
        require("soundfile", "audio").write(output / f"{name}.wav", samples, rate, subtype="PCM_16")
    draw(sounds, rate, output / "samples.png")
    console = Console()
    print_table(found, console)
    console.print(f"sounds and picture: {output}", soft_wrap=True)
    return found


@torch.inference_mode()
def make_up(
    model: Any,
    task: Any,
    count: int,
    seconds: float,
    prompt_seconds: float,
    temperature: float,
) -> dict[str, Samples]:
    """Sounds (n,) by name: `sample-0` ..., `original-0` ..., `continued-0` ..."""
    limits = [block.mixer.max_length for block in model.base_model.layers]
    rate, files = task.sample_rate, task.splits()["test"].files[:count]
    length = min([round(seconds * rate), *(limit - 1 for limit in limits if limit is not None)])
    prompt = min(round(prompt_seconds * rate), length // 2)
    originals = [file.read(0, min(length, file.frames)).mean(1) for file in files if file.frames >= prompt]
    if not originals:
        raise ValueError(
            f"none of the first {count} files of the test split is as long as a prompt of {prompt / rate} s"
        )
    heard = torch.stack([task.levels(samples[:prompt]) for samples in originals])
    begin = torch.full((1, 1), silence())
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "pad_token_id": silence()}

    def go_on(ids: torch.Tensor, name: str) -> list[Samples]:
        new = length + 1 - ids.shape[1]
        with tqdm(total=new, desc=name, unit=" samples", disable=None, leave=False) as bar:
            # The mask, since silence is no padding.
            options = {"attention_mask": torch.ones_like(ids), "streamer": _Counter(bar), **sampling}
            done = model.generate(ids, max_new_tokens=new, **options)
        return [task.samples(levels).numpy() for levels in done[:, 1:]]

    made = {
        "sample": go_on(begin.expand(count, 1), "samples"),
        "original": originals,
        "continued": go_on(torch.cat([begin.expand(len(heard), 1), heard], 1), "continuations"),
    }
    return {f"{kind}-{i}": samples for kind, some in made.items() for i, samples in enumerate(some)}


def draw(sounds: dict[str, Samples], rate: int, path: Path) -> None:
    """Draw waveforms into a PNG file: a column for each kind of sound, a row for each number."""
    kinds = list(dict.fromkeys(name.rpartition("-")[0] for name in sounds))
    rows = max(int(name.rpartition("-")[2]) for name in sounds) + 1
    figure = Figure(figsize=(4 * len(kinds), 1.3 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, len(kinds), sharex=True, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for name, samples in sounds.items():
        kind, _, number = name.rpartition("-")
        panel = panels[int(number), kinds.index(kind)]
        panel.axis("on")
        panel.plot(np.arange(len(samples)) / rate, samples, color="#0072B2", lw=0.4)
        panel.set_title(name, loc="left", fontsize=9)
        panel.set(ylim=(-1, 1), yticks=[])
        panel.spines[["top", "right", "left"]].set_visible(False)
    for panel in panels[-1]:
        panel.set_xlabel("s")
    figure.savefig(path, dpi=130)


def print_table(found: dict[str, float], console: Console) -> None:
    """Print bits per byte on the test split."""
    table = Table(title="bits per byte, test split", box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("model", f"{found['model']:.3f}")
    if "ngram" in found:
        table.add_row(f"Kneser-Ney, {found['ngram_order']:.0f} levels", f"{found['ngram']:.3f}")
    table.add_row("nothing known", "8.000")
    console.print(table)


class _Counter:
    """Moves a bar by one for every token; the prompt comes first."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.prompt = bar, True

    def put(self, ids: Any) -> None:
        """A token of each row."""
        if not self.prompt:
            self.bar.update()
        self.prompt = False

    def end(self) -> None:
        """Nothing is left."""
