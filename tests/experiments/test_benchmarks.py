"""Benchmarks: the gate, the arithmetic and the files. Nothing here asserts a speed."""

import csv
import math
import sys
from dataclasses import fields

import pytest
import torch
from numerics import TOLERANCE
from rich.console import Console

from longconv.experiments.benchmarks import fftconv, harness, report
from longconv.experiments.benchmarks.harness import DisagreementError, Implementation
from longconv.experiments.benchmarks.report import Shape, Timing
from longconv.functional import fft_conv

MODULE = fftconv.__name__
CASE = fftconv.make_case(Shape(2, 3, 40, 40), torch.float32, "cpu")


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def context():
    return report.environment(torch.device("cpu"), 1)


def test_tolerance_is_that_of_the_suite():
    assert harness.TOLERANCE == TOLERANCE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_run_end_to_end(tmp_path, dtype):
    path = tmp_path / "new" / "rows.csv"
    kwargs = {"elements": 600, "repeats": 2, "threads": 1, "device": "cpu", "memory": False, "output": path}
    rows = fftconv.run(lengths=(96, 64), taps=(0, 64), dtype=dtype, **kwargs)
    fftconv.run(lengths=(64,), taps=(0,), dtype=dtype, fresh=True, **kwargs)
    text = path.read_text().splitlines()
    written = read(path)
    assert text[0].split(",") == [field.name for field in fields(report.Row)]
    assert sum(line == text[0] for line in text) == 1, "the header is written once"
    assert len(rows) == 3 * (6 + 5), "scipy has no gradients, the other five have"
    assert len(written) == len(rows) + 11
    assert [row["memory"] for row in written] == ["reused"] * len(rows) + ["fresh"] * 11
    assert {row["status"] for row in written} == {"ok"}
    assert list(dict.fromkeys((row.L, row.K) for row in rows)) == [(64, 64), (96, 96), (96, 64)]
    for row in rows:
        ours = next(r for r in rows if (r.implementation, r.mode, r.L, r.K) == ("longconv", row.mode, row.L, row.K))
        assert row.ms_min <= row.ms_median <= row.ms_max
        assert math.isclose(row.ratio, row.ms_median / ours.ms_median, rel_tol=0.02, abs_tol=2e-3)
    for row in written:
        assert row["device"]
        assert row["date"].endswith("Z")
        assert (row["torch"], row["dtype"], row["peak_extra_MB"]) == (torch.__version__, dtype, "")
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("implementation", fftconv.implementations("cpu"), ids=lambda i: i.name)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_contestants_are_right(implementation, dtype):
    if implementation.name == "fft-conv-pytorch" and dtype == torch.float64:
        pytest.skip("computes in float32 whatever it is given, so the gate refuses it")
    for shape in (Shape(2, 3, 50, 50), Shape(1, 1, 64, 64), Shape(2, 2, 65, 20)):
        case = fftconv.make_case(shape, dtype, "cpu")
        expected = harness.expected_results(case)
        for mode in implementation.modes:
            harness.check_against_oracle(implementation, case, mode, expected)


def zeros(u, k):
    return 0 * fft_conv(u, k)


def shifted(u, k):
    return fft_conv(u, k).roll(1, -1)


def wrapped(u, k):
    return fft_conv(u, k, circular=True)


def short(u, k):
    return fft_conv(u, k)[..., :-1]


def not_a_number(u, k):
    return fft_conv(u, k) * math.nan


def slightly_off(u, k):
    return fft_conv(u, k) * (1 + 3e-5)


class HalfGradient(torch.autograd.Function):
    """The identity, with a gradient that is half as large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy / 2


def wrong_gradient(u, k):
    return fft_conv(u, HalfGradient.apply(k))


@pytest.mark.parametrize("call", [zeros, shifted, wrapped, short, not_a_number, slightly_off])
def test_gate_refuses_a_wrong_output(call):
    with pytest.raises(DisagreementError, match="output"):
        harness.check_against_oracle(Implementation("bad", call), CASE, "forward", harness.expected_results(CASE))


def test_gate_refuses_a_wrong_gradient():
    bad, expected = Implementation("bad", wrong_gradient), harness.expected_results(CASE)
    harness.check_against_oracle(bad, CASE, "forward", expected)
    with pytest.raises(DisagreementError, match=r"bad, forward.backward, B=2, D=3, L=40, K=40: gradient of input 1"):
        harness.check_against_oracle(bad, CASE, "forward+backward", expected)


def test_a_wrong_baseline_is_marked_and_not_timed(tmp_path, monkeypatch, capsys):
    contestants = [Implementation("longconv", fft_conv), Implementation("bad", wrong_gradient)]
    monkeypatch.setattr(fftconv, "implementations", lambda device: contestants)
    timed = []
    clock = harness.time_call
    monkeypatch.setattr(harness, "time_call", lambda call, device: timed.append(call) or clock(call, device))
    path = tmp_path / "rows.csv"
    fftconv.run(lengths=(64,), taps=(0,), elements=128, repeats=1, device="cpu", memory=False, output=path)
    status = {(row["implementation"], row["mode"]): row for row in read(path)}
    assert status["bad", "forward"]["status"] == "ok"
    refused = status["bad", "forward+backward"]
    assert refused["status"] == "wrong"
    assert refused["ms_median"] == refused["ms_min"] == refused["ms_max"] == refused["ratio"] == ""
    printed = capsys.readouterr().out
    assert "wrong, so not timed: bad, forward+backward" in printed.replace("\n", " ")


def test_nothing_is_written_if_ours_is_wrong(tmp_path, monkeypatch):
    contestants = [Implementation("longconv", shifted), Implementation("torch rfft", fft_conv)]
    monkeypatch.setattr(fftconv, "implementations", lambda device: contestants)
    path = tmp_path / "rows.csv"
    with pytest.raises(DisagreementError, match="longconv, forward"):
        fftconv.run(lengths=(64,), taps=(0,), elements=128, repeats=1, device="cpu", memory=False, output=path)
    assert not path.exists()


def test_interleaving_and_medians():
    order: list[str] = []
    times = {"ours": [9.0, 2.0, 1.0, 6.0], "other": [9.0, 8.0, 3.0, 4.0]}  # the first is the warm-up
    pending = {name: iter(values) for name, values in times.items()}
    ticks: list[None] = []

    def clock(call, device):
        name = call()
        order.append(name)
        return next(pending[name])

    calls = {name: lambda name=name: name for name in times}
    tick = lambda: ticks.append(None)  # noqa: E731
    timings = harness.interleave(calls, 3, torch.device("cpu"), warmup=1, tick=tick, clock=clock)
    assert timings == {"ours": Timing(2.0, 1.0, 6.0), "other": Timing(4.0, 3.0, 8.0)}
    assert timings["ours"].spread == 3.0
    rounds = [order[i : i + 2] for i in range(0, 8, 2)]
    assert all(sorted(round_) == ["other", "ours"] for round_ in rounds), "everyone once a round"
    assert {tuple(round_) for round_ in rounds} == {("ours", "other"), ("other", "ours")}, "turns change"
    assert len(ticks) == 4


def test_ratio_is_theirs_over_ours():
    ours, other = Timing(2.0, 1.0, 6.0), Timing(5.0, 3.0, 8.0)
    row = report.make_row(context(), "other", "forward", Shape(1, 2, 3, 4), "float32", 20, other, ours, 1.234)
    assert (row.ratio, row.ms_median, row.ms_min, row.ms_max, row.peak_extra_MB) == (2.5, 5.0, 3.0, 8.0, 1.23)
    assert (row.B, row.D, row.L, row.K, row.repeats, row.status) == (1, 2, 3, 4, 20, "ok")


def test_rows_are_never_mixed_with_other_columns(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("date,ms\n2020,1\n")
    row = report.make_row(context(), "x", "forward", Shape(1, 2, 3, 4), "float32", 1, None, Timing(1, 1, 1))
    with pytest.raises(ValueError, match="has columns date, ms"):
        report.append_rows(path, [row])
    assert path.read_text() == "date,ms\n2020,1\n"


def test_table_fits_a_terminal(capsys):
    slow, fast = Timing(1234.5, 1200.0, 12345.6), Timing(0.0123, 0.01, 0.02)
    shape = Shape(8, 256, 1048576, 1048576)
    rows = [
        report.make_row(context(), name, "forward+backward", shape, "float32", 20, timing, slow, 12345.6)
        for name, timing in (("longconv", slow), ("torch rfft", fast), ("bad", None))
    ]
    report.print_table(rows, Console(width=80))
    printed = capsys.readouterr().out
    assert "…" not in printed
    for text in ("L=1048576 B=8 D=256", "forward+backward", "12345.6", "0.012", "wrong", "10.00"):
        assert text in printed


def test_shapes_keep_the_number_of_elements():
    shapes = [fftconv.choose_shape(L, 2**21, None) for L in (1024, 4096, 16384, 65536, 262144)]
    assert [(s.B, s.D) for s in shapes] == [(8, 256), (8, 64), (8, 16), (4, 8), (2, 4)]
    assert fftconv.choose_shape(1000, 10, None) == Shape(1, 1, 1000, 1000)
    assert fftconv.choose_shape(1024, 2**14, 16) == Shape(16, 1, 1024, 1024)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"lengths": ()}, "lengths"),
        ({"lengths": (64, 0)}, "lengths"),
        ({"taps": ()}, "taps"),
        ({"taps": (-1,)}, "taps"),
        ({"taps": (64,), "lengths": (64,)}, "taps: no filter"),
        ({"repeats": 0}, "repeats"),
        ({"batch": 0}, "batch"),
        ({"threads": 0}, "threads"),
        ({"elements": 0}, "elements"),
        pytest.param(
            {"device": "cuda"}, "no GPU", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
        ),
    ],
    ids=str,
)
def test_invalid_arguments(kwargs, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        fftconv.run(**kwargs, output=tmp_path / "rows.csv")


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with harness.cpu_threads(2) as used:
        assert used == torch.get_num_threads() == 2
    assert torch.get_num_threads() == before


needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc/self/clear_refs")


@needs_proc
def test_peak_of_a_known_allocation():
    peak = harness.peak_of(lambda: torch.ones(50_000_000, dtype=torch.uint8), torch.device("cpu"))
    assert peak is not None
    assert 49 < peak < 60


@needs_proc
def test_peak_memory_of_an_implementation():
    shapes = [Shape(1, 4, 4096, 4096), Shape(8, 16, 16384, 16384)]
    (small, large), (_, naive) = (
        harness.peak_extra_MB(MODULE, name, "forward+backward", shapes, "float32", "cpu", 1)
        for name in ("longconv", "torch rfft")
    )
    assert small is not None
    assert large is not None
    assert naive is not None
    results = 4 * (2 * 8 * 16 + 16) * 16384 / 1e6  # output and two gradients
    assert small < 10
    assert results < large < naive / 2


def test_failed_memory_measurement_is_reported(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.warns(UserWarning, match="no peak memory of longconv, forward: exit status 1"):
        peaks = harness.peak_extra_MB(MODULE, "longconv", "forward", [CASE.shape] * 2, "float32", "cpu", 1)
    assert peaks == [None, None]


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "julius", None)
    monkeypatch.delitem(sys.modules, f"{harness.__package__}.cpu_contestants", raising=False)
    with pytest.raises(ImportError, match=r"julius.*longconv\[bench\]"):
        fftconv.implementations("cpu")
