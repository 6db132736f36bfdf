"""The benchmark of training steps and input pipelines, at tiny sizes. Nothing here asserts a speed."""

import csv
import inspect
import json
import time

import pytest
import torch
from numerics import assert_close

from longconv.experiments.benchmarks import BENCHMARKS, lra, lra_data, lra_models, lra_report, report
from longconv.experiments.benchmarks.harness import DisagreementError
from longconv.experiments.benchmarks.lra_models import BASELINE, CONTESTANTS, Size, build, check, parameters
from longconv.layers import LAYERS
from longconv.training import parameter_groups

TINY = {"width": 32, "blocks": 1, "tokens": 100, "repeats": 2, "threads": 1, "device": "cpu"}
CPU = torch.device("cpu")


def test_run_end_to_end(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    rows = BENCHMARKS["lra"](lengths=(48, 20), output=path, **TINY)
    assert [(row.L, row.layer) for row in rows] == [(L, name) for L in (20, 48) for name in CONTESTANTS]
    assert {(row.L, row.batch) for row in rows} == {(20, 5), (48, 2)}
    for row in rows:
        assert row.status == "ok"
        assert row.ms_min <= row.ms_median <= row.ms_max
        assert row.steps_per_s == pytest.approx(1e3 / row.ms_median, rel=1e-2)
        assert row.tokens_per_s == pytest.approx(row.L * row.batch * row.steps_per_s, rel=1e-2)
        attention = next(r for r in rows if (r.L, r.layer) == (row.L, BASELINE))
        assert row.speedup == pytest.approx(attention.ms_median / row.ms_median, rel=1e-2)
        assert json.loads(row.options).get("bidirectional", False) == (row.direction == "two-sided")
        assert (row.precision, row.compiled, row.width, row.blocks) == ("float32", False, 32, 1)
    assert report.read_rows(path, lra_report.StepRow)[0].layer == BASELINE
    with path.open(newline="") as file:
        assert [line["layer"] for line in csv.DictReader(file)] == 2 * list(CONTESTANTS)
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(name in printed for name in CONTESTANTS)
    # Attention takes part, and stands first, whoever is asked for; the file goes on.
    again = lra.run(layers=("s4d",), lengths=(20,), precision="bfloat16", output=path, **TINY)
    assert [(row.layer, row.precision) for row in again] == [(BASELINE, "bfloat16"), ("s4d", "bfloat16")]
    assert len(report.read_rows(path, lra_report.StepRow)) == len(rows) + 2


def test_quick_run_leaves_the_results_alone():
    results = report.default_output("lra").parent
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    rows = lra.run(layers=("sgconv",), quick=True, threads=1, device="cpu")
    assert {row.L for row in rows} == set(lra.QUICK_LENGTHS)
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


@pytest.mark.parametrize("length", [1024, 16384])
def test_models_have_as_many_parameters_and_see_a_whole_sequence(length):
    target = parameters(build(BASELINE, lra.CPU_SIZE, length))
    for name in CONTESTANTS:
        model = build(name, lra.CPU_SIZE, length)
        larger = parameters(model) / target - 1
        # Where the mixers alone have more, there is no MLP to take away from.
        assert abs(larger) < 2e-3 or (larger > 0 and model.config.intermediate_size == 0), name
        assert larger < 0.25, name
        mixer = model.model.layers[0].mixer
        assert mixer.receptive_field is None or mixer.receptive_field >= length, name
        assert mixer.causal == ("bidirectional" not in inspect.signature(LAYERS[name]).parameters), name


def test_a_step_is_one_of_adamw():
    ours, theirs = (build("sgconv", Size(32, 1), 20) for _ in range(2))
    batch = lra_models.token_batch(2, 20, CPU)
    start = torch.cat([p.detach().flatten().clone() for p in ours.parameters()])
    step = lra.Training(ours, "float32", False, CPU)
    optimiser = torch.optim.AdamW(parameter_groups(theirs, lra.LEARNING_RATE, 0.05))
    for _ in range(2):
        step(batch)
        optimiser.zero_grad()
        theirs(**batch).loss.backward()
        optimiser.step()
    moved, expected = (torch.cat([p.detach().flatten() for p in m.parameters()]) - start for m in (ours, theirs))
    assert moved.abs().max() > 0
    assert_close(moved, expected)


def test_the_gate_finds_a_model_that_differs_from_itself_in_float64():
    model = build("sgconv", Size(32, 1), 20)
    check("sgconv", model, 20)
    model.score.register_forward_hook(lambda module, _, y: 1.001 * y if y.dtype == torch.float32 else y)
    with pytest.raises(DisagreementError, match="sgconv, L=20: output has relative L2 error"):
        check("sgconv", model, 20)


def test_what_is_wrong_or_too_large_is_not_timed(tmp_path, monkeypatch, capsys):
    def check(name, model, length):
        if name in refused:
            raise DisagreementError(f"{name} is wrong")

    def step(self, batch):
        if "mega" in self.model.config.mixers:
            raise torch.OutOfMemoryError("too large")
        return right(self, batch)

    refused, right = ["s4d"], lra.Training.__call__
    monkeypatch.setattr(lra, "check", check)
    monkeypatch.setattr(lra.Training, "__call__", step)
    options = {"layers": ("s4d", "sgconv", "mega"), "lengths": (20,), "output": tmp_path / "rows.csv", **TINY}
    rows = lra.run(**options)
    assert {row.layer: row.status for row in rows} == {
        "attention": "ok", "sgconv": "ok", "s4d": "wrong", "mega": "out of memory"
    }  # fmt: skip
    assert {row.layer for row in rows if row.ms_median is None} == {"s4d", "mega"}
    assert "s4d is wrong" in capsys.readouterr().out
    refused.append(BASELINE)
    with pytest.raises(DisagreementError):
        lra.run(**options)


def test_input_pipelines(tmp_path):
    path = tmp_path / "rows.csv"
    tasks = ("lra/listops", "lra/image", "lra/retrieval", "lra/digits")
    rows = lra.run(
        layers=("sgconv",), data=True, tasks=tasks, seconds=0.05, quick=True, threads=1, device="cpu", output=path
    )
    assert [(row.task, row.layer) for row in rows] == [(task, name) for task in tasks for name in (BASELINE, "sgconv")]
    assert [row.source for row in rows[::2]] == ["generated", "stand-in", "stand-in", "installed"]
    for row in rows:
        assert row.steps >= 1
        assert row.loader_rows_per_s > 0
        assert 0 < row.waiting < 1
        assert row.waiting == pytest.approx(1 - row.rows_per_s / row.model_rows_per_s, abs=2e-3)
    assert next(row.mean_length for row in rows if row.task == "lra/image") == 1024
    assert report.read_rows(path, lra_report.LoadRow)[0].task == "lra/listops"


class SlowTask:
    """A row takes 10 ms to load."""

    is_pair, length = False, 7

    def collate(self, rows):
        time.sleep(0.01 * len(rows))
        return {"input_ids": torch.ones(len(rows), 5 + max(rows), dtype=torch.long), "labels": torch.zeros(len(rows))}


@pytest.mark.parametrize("workers", [0, 1])
def test_waiting_is_measured(workers):
    seen = []
    opened = lra_data.Opened(SlowTask(), "", [0, 1, 2])

    def step(batch):
        seen.append(batch["input_ids"].shape)
        time.sleep(0.06)

    run = opened.train(step, 2, workers, 0.5, lambda: None, CPU)
    timed = seen[-run.steps :]
    assert len(seen) == run.steps + lra_data._WARMUP
    assert run.rows == 2 * run.steps
    assert run.training + run.waiting >= 0.5
    assert run.training >= 0.06 * run.steps
    assert run.mean_length == pytest.approx(sum(shape[1] for shape in timed) / run.steps)
    if not workers:  # a process of its own loads during the steps
        assert run.waiting >= 0.02 * run.steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ("sgcon",)}, r"layers must be some of attention, sgconv, .*; got 'sgcon'"),
        ({"layers": ()}, "layers must be some of .*; got none"),
        ({"lengths": (0,)}, "lengths must be at least 1, got 0"),
        ({"width": 40}, "width must be a multiple of 32, got 40"),
        ({"width": 0}, "width must be at least 1"),
        ({"blocks": 0}, "blocks must be at least 1"),
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"data": True, "workers": -1}, "workers must be at least 0 and seconds positive, got -1"),
        ({"data": True, "tasks": ("lra/lists",)}, r"tasks must be some of lra/.*; got 'lra/lists'"),
        ({"data": True, "tasks": ("lm",)}, r"tasks must be some of lra/.*; got 'lm'"),
        *([] if torch.cuda.is_available() else [({"device": "cuda"}, "device 'cuda'")]),
    ],
)
def test_errors_name_the_argument(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        lra.run(**options, output=tmp_path / "rows.csv")
    assert not list(tmp_path.iterdir())
