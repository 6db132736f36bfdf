"""docs/notebooks/audio_effect.py runs from top to bottom, with less data and less training."""

import csv
import re
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("onnxruntime")
SOURCE = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "audio_effect.py"
SMALLER = {"MINUTES = 1.5": "MINUTES = 0.05", "PIECES = (24, 2, 4)": "PIECES = (2, 1, 2)"}


def test_the_notebook_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))
    text = SOURCE.read_text(encoding="utf-8")
    for ours, test in SMALLER.items():
        assert text.count(ours) == 1
        text = text.replace(ours, test)
    cells = [cell for cell in re.split(r"^# %%.*$", text, flags=re.MULTILINE) if cell.strip()]
    assert sum(not all(line.startswith("#") for line in cell.strip().splitlines()) for cell in cells) >= 8
    names: dict = {}
    exec(compile(text, str(SOURCE), "exec"), names)
    said = capsys.readouterr().out
    differences = [float(number) for number in re.findall(r"largest difference (\S+)", said)]
    assert len(differences) == 2
    assert max(differences) < 1e-5
    assert "latency 0 samples" in said
    folder = tmp_path / "runs" / "notebook"
    with (folder / "report" / "errors.csv").open() as file:
        assert {row["model"] for row in csv.DictReader(file)} == {"unprocessed", "tcn", "lstm"}
    pictures = {path.name for path in (folder / "report").glob("*.png")}
    assert {"errors.png", "gain-curves.png"} < pictures
    assert (folder / "loss.png").is_file()
    assert soundfile.info(folder / "turned.wav").frames == names["x"].shape[1]
