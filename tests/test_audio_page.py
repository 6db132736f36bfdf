"""docs/audio.md: its tables are those of the files of results, and what it names exists."""

import csv
import dataclasses
import re
from pathlib import Path

import pytest

from longconv import tasks
from longconv.experiments import recipes, results
from longconv.tasks.audio.losses import LOSSES
from longconv.tasks.audio.metrics import EffectMetrics

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "audio.md").read_text(encoding="utf-8")
ROWS = results.read_audio(ROOT / "experiments" / "results" / "audio.csv")


def table(mark: str) -> list[list[str]]:
    """The cells of a table of the page, without its heading."""
    lines = PAGE.partition(f"<!-- {mark}: begin -->")[2].partition(f"<!-- {mark}: end -->")[0].strip().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_rows_are_of_the_recipes_as_they_are():
    assert ROWS
    for row in ROWS:
        assert row.complete
        assert not row.smoke
        recipe = recipes.get(row.recipe)
        if row.task == "audio/wave":  # any folder of audio
            assert row.changes == '{"data_dir": "given"}'
            recipe = dataclasses.replace(recipe, data_dir=Path("speech"))
        assert row.recipe_hash == results.recipe_hash(recipe)


def test_words():
    found = {row.recipe: row for row in ROWS if row.task == "audio/spoken-words"}
    said = table("words")
    assert {name.strip("`") for name, *_ in said} == set(found)
    for name, *cells in said:
        row = found[name.strip("`")]
        accuracies = [f"{100 * accuracy:.1f}" for accuracy in (row.validation, row.test_accuracy)]
        assert cells == [f"{row.parameters:,}", *accuracies, f"{row.seconds / 60:.0f}"]


def test_compressor():
    with (ROOT / "experiments" / "results" / "compressor-errors.csv").open() as file:
        errors = list(csv.DictReader(file))
    models = ("unprocessed", "tcn-300-c", "lstm-32")
    said, means = table("compressor")[:-4], table("compressor")[-4:]
    by_setting = {(row["model"], float(row["threshold_db"]), float(row["ratio"])): row for row in errors}
    assert len(said) * len(models) == len(errors)
    for setting, *cells in said:
        threshold, ratio = (float(number) for number in re.findall(r"-?\d+", setting))
        rows = [by_setting[model, threshold, ratio] for model in models]
        assert cells == [f"{100 * float(row['esr']):,.1f}" for row in rows]
        assert setting.endswith("*") == (rows[0]["trained"] == "False")
    for metric, (_, *cells) in zip(("mae", "stft", "mrstft", "loudness"), means, strict=True):
        for model, cell in zip(models, cells, strict=True):
            own = [row for row in errors if row["model"] == model]
            pairs = [(float(row[metric]), int(row["windows"])) for row in own]
            mean = sum(error * count for error, count in pairs) / sum(count for _, count in pairs)
            assert cell == f"{mean:.4f}"
            # The report and the run measured the same model.
            run = next((row for row in ROWS if row.recipe == f"audio-small.compressor.{model}"), None)
            assert run is None or mean == pytest.approx(getattr(run, f"test_{metric}"), rel=1e-3)


def test_next_samples():
    (row,) = (row for row in ROWS if row.task == "audio/wave")
    (ours, *found), (_, *baseline), (_, *nothing) = table("wave")
    assert ours == f"`{row.recipe}`"
    assert found == [f"{row.validation:.3f}", f"{row.test_bits_per_byte:.3f}"]
    assert all(float(one) < float(other) for one, other in zip(found, baseline, strict=True))
    assert nothing == ["8.000", "8.000"]


def test_what_it_names_exists():
    for name in re.findall(r"longconv train (audio-small\.[\w.-]+)", PAGE):
        assert name in recipes.RECIPES
    for name in re.findall(r"^\| `(audio/[\w-]+)` \|", PAGE, flags=re.MULTILINE):
        assert name in tasks.available()
    for name in (*LOSSES, *EffectMetrics.NAMES):
        assert f"`{name}`" in PAGE
    for link in re.findall(r"\]\(([\w/.-]+)[)#]", PAGE):
        assert (ROOT / "docs" / link).exists(), link
