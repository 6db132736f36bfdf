"""docs/streaming.md: its Python and its command run as they stand there; tables and C++ name what is exported."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from longconv import cli
from longconv.experiments.benchmarks import report
from longconv.experiments.benchmarks.stream import StreamRow

soundfile = pytest.importorskip("soundfile")
onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_page_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    python, command = blocks("python"), re.search(r"^longconv stream .*$", PAGE, flags=re.MULTILINE)[0]
    assert len(python) == 4
    names: dict = {}
    for number, block in enumerate(python):
        exec(compile(block, f"streaming.md, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "0 44101\n" in said  # latency, position
    assert said.endswith("tensor(True)\n")
    assert sum(piece.shape[1] for piece in names["pieces"]) == 44101
    # The command, on a file like the one it speaks of.
    soundfile.write("dry.wav", 0.1 * np.random.default_rng(0).standard_normal((2000, 2)), 44100, "PCM_24")
    assert cli.main(shlex.split(command)[1:]) == 0
    assert soundfile.info("wet.wav").subtype == "PCM_24"
    assert "x real time, in blocks of 256" in capsys.readouterr().out
    # What the tables and the C++ say of the files.
    (cpp,) = blocks("cpp")
    session = onnxruntime.InferenceSession("effect.onnx")
    for put in [*session.get_inputs(), *session.get_outputs()]:
        assert f"`{put.name}`" in PAGE
        assert f'"{put.name}"' in cpp
    assert {put.name: put.shape for put in session.get_inputs()} == {
        "x": ["batch", 1, "samples"],
        "state": ["batch", 426_252],
        "controls": ["batch", 2, "samples"],
    }
    assert onnxruntime.InferenceSession("effect.init.onnx").get_outputs()[0].name == "state"
    for key, value in session.get_modelmeta().custom_metadata_map.items():
        assert f"`{key}`" in PAGE
        assert (
            value
            == {
                "latency": "0",
                "state_size": "426252",
                "sample_rate": "44100",
                "controls": "limit,peak_reduction",
            }[key]
        )


def test_speeds_are_those_of_the_file():
    rows = report.read_rows(ROOT / "experiments/benchmarks/results/stream.csv", StreamRow)
    factors = {(row.block, row.implementation): row.real_time_factor for row in rows}
    table = PAGE.partition("<!-- speeds: begin -->")[2].partition("<!-- speeds: end -->")[0].strip().splitlines()
    names = ("longconv", "longconv, offline", "pytorch-tcn 1.2.3", "recomputing, PyTorch", "LSTM-32")
    for line in table[2:]:
        block, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        assert cells == [f"{factors[int(block.replace(',', '')), name]:.1f}" for name in names]
    assert len(table) - 2 == len({row.block for row in rows})


def test_the_recorded_stream_is_as_fast_as_wanted():
    rows = report.read_rows(ROOT / "experiments/benchmarks/results/stream.csv", StreamRow)
    found = {(row.implementation, row.block): row for row in rows}
    for block, least in ((2048, 15), (65536, 45)):
        assert found["longconv", block].real_time_factor >= least
    assert all(row.ratio >= 1.5 for row in rows if row.implementation.startswith("pytorch-tcn"))


def test_what_it_names_exists():
    for path in re.findall(r"`(longconv/[\w/]+\.py)`", PAGE):
        assert (ROOT / path).is_file()
    assert "stream" in cli.COMMANDS
