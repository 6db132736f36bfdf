"""The benchmark of `fft_conv` on a GPU, on a CPU: points, floors, contestants, rows, targets. No speed is asserted."""

import contextlib
import dataclasses
import functools
import importlib.machinery
import itertools
import sys
import types

import pytest
import torch
from rich.console import Console

from longconv.experiments.benchmarks import (
    fftconv,
    gpu_contestants,
    gpu_points,
    gpu_report,
    gpu_run,
    harness,
    roofline,
)
from longconv.experiments.benchmarks.gpu_contestants import FFT, OURS, RFFT, Contestant
from longconv.experiments.benchmarks.gpu_points import FFT_SIZES, PUBLISHED_SIZES, Point, published_shape, select
from longconv.experiments.benchmarks.gpu_report import Result, Verdict
from longconv.experiments.benchmarks.harness import DisagreementError
from longconv.experiments.benchmarks.report import MODES, Timing
from longconv.experiments.benchmarks.roofline import Rates, Work
from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference
from longconv.kernels.fftconv.monarch.configs import Frames, Nested, Outer, Tile, whole_row
from longconv.kernels.gpu import interpreting

CPU = torch.device("cpu")
RATES = Rates(copy=4e12, matmul=8e14)
KB = 1024
needs_interpreter = pytest.mark.skipif(not interpreting(), reason="Triton kernels run on a CPU in its interpreter only")


# --- Points -----------------------------------------------------------------------------------------------------------


def test_points_are_flashfftconvs():
    """Sizes, and how batch and channels shrink with them, are those of its benchmark_flashfftconv.py."""
    assert list(FFT_SIZES) == [256 * 2**i for i in range(15)]
    assert max(FFT_SIZES) == 4_194_304
    small = {published_shape(n) for n in FFT_SIZES if n <= 8192}
    assert small == {(64, 768)}
    long = [published_shape(16384 * 2**i) for i in range(9)]
    assert long == [(32, 768), (16, 768), (8, 768), (8, 384), (8, 192), (8, 96), (8, 48), (8, 32), (8, 16)]
    points = gpu_points.all_points()
    assert len(points) == len({p.name for p in points}) == 15 * 2 * 2 * 3
    assert all(p.headline for p in points[:15]), "the published table comes first"
    assert {p.L for p in points if p.fft_size == 1024 and p.circular} == {1024}
    assert {p.L for p in points if p.fft_size == 1024 and not p.circular} == {512}
    assert {tuple(p.shape) for p in points if p.name.startswith("causal") and p.fft_size == 2**22} == {
        (8, 16, 2**21, 2**21)
    }


def test_speed_ups_of_the_published_times():
    """The times give the speed-ups that stand under them in the README."""
    ratios = [gpu_points.PYTORCH_MS[n] / gpu_points.FLASHFFTCONV_MS[n] for n in PUBLISHED_SIZES]
    published = [5.64, 7.93, 6.64, 5.42, 2.45, 3.22, 1.74, 1.37, 1.30]
    assert ratios == pytest.approx(published, rel=0.01)


def test_selection():
    assert [p.fft_size for p in select((), quick=True)] == list(PUBLISHED_SIZES)
    assert [p.name for p in select(("causal-plain-float32-1024", "circular-gated-bfloat16-256"), quick=False)] == [
        "circular-gated-bfloat16-256",
        "causal-plain-float32-1024",
    ]
    assert {p.dtype for p in select(("*-float16-*",), quick=False)} == {"float16"}
    assert [p.fft_size for p in select(("*-4194304", "*-256"), quick=True)] == [256, 4194304]
    with pytest.raises(ValueError, match="points: no point is called 'circular-gated'"):
        select(("circular-gated",), quick=False)
    with pytest.raises(ValueError, match="quick"):
        select(("causal-*",), quick=True)


@pytest.mark.parametrize("option", [{"points": ("*",)}, {"quick": True}, {"minutes": 1.0}], ids=str)
def test_options_of_a_gpu_are_refused_on_a_cpu(option):
    with pytest.raises(ValueError, match=f"{next(iter(option))} is no option of the benchmark on device 'cpu'"):
        fftconv.run(device="cpu", **option)


@pytest.mark.parametrize(
    "option", [{"lengths": (64,)}, {"taps": (0,)}, {"dtype": "float16"}, {"fresh": True}, {"memory": False}], ids=str
)
def test_options_of_a_cpu_are_refused_on_a_gpu(option, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match=f"{next(iter(option))} is no option of the benchmark on device 'cuda'"):
        fftconv.run(device="auto", **option)


def test_options_reach_the_benchmark_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_run, "run", lambda *args: list(args))
    got = fftconv.run(device="cuda", points=("*-256",), quick=True, output=tmp_path / "rows.csv")
    assert got == [("*-256",), True, 9.0, tmp_path / "rows.csv"]
    assert fftconv.run(minutes=2.5) == [(), False, 2.5, None]


# --- Roofline ---------------------------------------------------------------------------------------------------------


def test_round_trips():
    """On the chip: two products with real samples, 4 N1 operations each a sample, and two complex ones, 8 N2 each."""
    tile = Tile(64, 1, 32, 4, 56 * KB)
    assert roofline.round_trip(whole_row(tile)) == 2048 * (8 * 64 + 16 * 32)
    assert roofline.round_trip(Frames(tile, 1024, 1024, 0, count=5)) == 5 * 2048 * (8 * 64 + 16 * 32)
    # with three pieces of the filter a frame has three transforms, and one inverse
    assert roofline.round_trip(Frames(tile, 1024, 1024, 0, 5, pieces=3)) == 2 * 5 * 2048 * (8 * 64 + 16 * 32)
    # the outer DFT is real too, and all of the inner one is complex
    assert roofline.round_trip(Outer(tile, 48)) == 48 * 2048 * (8 * 48 + 16 * 64 + 16 * 32)
    # one of a few tiles is not a matrix product
    assert roofline.round_trip(Nested(tile, 8)) == 8 * 2048 * (16 * 64 + 16 * 32)


def test_work(monkeypatch):
    """At B = 64, D = 768, L = 4096, gated bfloat16: 1.6 GB forward. A tile of 64 x 64: 1536 operations a sample."""
    asked = []
    monkeypatch.setattr(roofline, "ways", lambda *args: asked.append(args) or (whole_row(Tile(64, 1, 64, 4, 64 * KB)),))
    point = Point("circular", True, "bfloat16", 4096, 64, 768)
    row, filters = 64 * 768 * 4096, 4 * 768 * 4096
    forward = roofline.work(point, "forward", 99 * KB)
    assert asked == [(64, 4096, 4096, 4095, torch.bfloat16, 99 * KB)]
    assert forward == Work(4 * 2 * row + filters, row * 1536)
    assert forward.bytes == pytest.approx(1.6e9, rel=0.02)
    assert forward.floor_ms(Rates(4.3e12, 790e12)) == pytest.approx(1e3 * row * 1536 / 790e12)
    assert forward.floor_ms(Rates(4.0e12, 790e12)) == pytest.approx(1e3 * forward.bytes / 4.0e12)
    assert roofline.work(point, "forward+backward", 99 * KB) == Work(11 * 2 * row + 3 * filters, 3 * row * 1536)
    plain = dataclasses.replace(point, gated=False, dtype="float32")
    assert roofline.work(plain, "forward", 99 * KB) == Work(2 * 4 * row + filters, row * 1536)
    assert roofline.work(plain, "forward+backward", 99 * KB) == Work(5 * 4 * row + 3 * filters, 2.5 * row * 1536)
    roofline.work(Point("causal", True, "float16", 512, 2, 3), "forward", 99 * KB)
    assert asked[-1] == (2, 256, 256, 0, torch.float16, 99 * KB)


@pytest.mark.parametrize("limit", [64 * KB, 99 * KB, 227 * KB])
def test_every_point_has_a_floor(limit):
    """With the plans that are really chosen: no fewer operations than with 16 x 16 points in every transform."""
    for point in gpu_points.all_points():
        for mode in MODES:
            found = roofline.work(point, mode, limit)
            assert found.flops >= point.B * point.D * point.L * (8 * 16 + 16 * 16)
            assert 0 < found.floor_ms(RATES) < 1e4


def test_rates(monkeypatch):
    """A copy of 1 MB that takes 2 ms moves 1 GB/s, read and written; 2 * 100^3 operations in 2 ms are 1 GFLOP/s."""
    monkeypatch.setattr(roofline, "time_call", lambda call, device: call() is None or 2.0)
    before = torch.get_float32_matmul_precision()
    for dtype, products in ((torch.bfloat16, 1), (torch.float32, 3)):
        rates = roofline.measure_rates(dtype, CPU, copy_bytes=10**6, matmul_size=100, repeats=2)
        assert (rates.copy, rates.matmul) == pytest.approx((1e9, 1e9 / products))
    assert torch.get_float32_matmul_precision() == before


# --- Contestants ------------------------------------------------------------------------------------------------------


def check(contestant, point):
    call = contestant.prepare(point, CPU)
    if call is None:
        return False
    (case, *_) = gpu_run.make_sets(point, CPU)
    channels = gpu_run.compared_channels(point, CPU)
    expected = gpu_run.expected_results(gpu_run.part_of(case, channels))
    gpu_run._admit(contestant.name, call, case, channels, expected, "forward+backward", CPU)
    return True


@pytest.mark.parametrize("contestant", gpu_contestants.contestants(), ids=lambda c: c.name)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_contestants_are_right(contestant, dtype, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    monkeypatch.setattr(Point, "headline", True)  # so that those take part that otherwise only do there
    if contestant.name == OURS and not interpreting():
        pytest.skip("Triton kernels run on a CPU in its interpreter only")
    took_part = {
        check(contestant, Point(form, gated, dtype, 256, 2, 3)) for form in gpu_points.FORMS for gated in (0, 1)
    }
    installed = contestant.name not in ("FlashFFTConv", "cuDNN", "subquadratic-ops")
    assert took_part == {installed}, "none of the others is installed here"


def install(monkeypatch, name, **attributes):
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def test_other_packages_are_called_as_they_want(monkeypatch):
    """With stand-ins that have their signatures: what they are given, and where they take part."""
    made = []

    class FlashFFTConv(torch.nn.Module):
        def __init__(self, seqlen, dtype=torch.float16):
            super().__init__()
            made.append((seqlen, dtype))
            self.n = seqlen

        def forward(self, u, k, pregate=None, postgate=None):
            assert self.training
            assert k.dtype == torch.float32
            circular = u.shape[-1] == self.n
            assert circular or 2 * u.shape[-1] == self.n
            return fft_conv_reference(u, k, circular=circular, pre_gate=pregate, post_gate=postgate)

    def fft_causal_conv1d(x, weight):
        assert x.dtype == weight.dtype
        return fft_conv(x, weight.float())

    install(monkeypatch, "flashfftconv", FlashFFTConv=FlashFFTConv)
    install(monkeypatch, "cudnn")
    install(monkeypatch, "cudnn.ops", fft_causal_conv1d=fft_causal_conv1d)
    install(monkeypatch, "subquadratic_ops_torch")
    install(monkeypatch, "subquadratic_ops_torch.fft_causal_conv1d", fft_causal_conv1d=fft_causal_conv1d)
    others = gpu_contestants.contestants()[-3:]
    took_part = {
        (c.name, form, dtype)
        for c in others
        for form in gpu_points.FORMS
        for dtype in ("bfloat16", "float32")
        for gated in (False, True)
        if check(c, Point(form, gated, dtype, 128, 2, 3))
    }
    assert took_part == {
        *(("FlashFFTConv", form, "bfloat16") for form in gpu_points.FORMS),
        *((name, "causal", dtype) for name in ("cuDNN", "subquadratic-ops") for dtype in ("bfloat16", "float32")),
    }
    assert set(made) == {(128, torch.bfloat16)}


def test_only_the_headline_has_the_slow_ones():
    by_name = {c.name: c for c in gpu_contestants.contestants()}
    everyday = Point("causal", True, "bfloat16", 1024, 2, 3)
    between = Point("circular", True, "bfloat16", 2048, 2, 3)
    assert by_name["longconv torch"].prepare(everyday, CPU) is None
    assert by_name["longconv torch"].prepare(between, CPU) is not None
    assert by_name["torch fft compiled"].prepare(between, CPU) is None, "2048 is not in the published table"
    assert by_name["torch fft compiled"].prepare(dataclasses.replace(between, fft_size=1024), CPU) is not None


# --- Runs -------------------------------------------------------------------------------------------------------------


def conv_of(point):
    def call(u, k, pre=None, post=None):
        return fft_conv(u, k, circular=point.circular, pre_gate=pre, post_gate=post)

    return call


def shifted(point, device):
    return lambda *x: conv_of(point)(*x).roll(1, -1)


def raising(error):
    def prepare(point, device):
        def call(*x):
            raise error

        return call

    return prepare


RIGHT = Contestant(OURS, lambda point, device: conv_of(point))
POINTS = [Point("circular", True, "float32", 64, 2, 5), Point("causal", False, "bfloat16", 64, 1, 2)]


@pytest.fixture
def measure(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_run, "SECONDS", 0.01)
    path = tmp_path / "rows.csv"
    run = functools.partial(gpu_run.measure, device=CPU, minutes=1.0, output=path, rates_of=lambda dtype, device: RATES)
    return run, path


@needs_interpreter
def test_a_run(measure, monkeypatch):
    run, path = measure
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    points = [Point("circular", True, "float32", 256, 2, 3), Point("causal", False, "float16", 256, 2, 2)]
    rows = run(points, gpu_contestants.contestants(), console=Console(width=200))
    assert [(r.form, r.mode, r.implementation) for r in rows] == [
        (form, mode, name)
        for form in gpu_points.FORMS
        for mode in ("forward", "forward+backward")
        for name in (OURS, RFFT, FFT)
    ]
    assert gpu_report.read_rows(path) == rows
    for row in rows:
        assert row.status == "ok"
        assert row.ms_min <= row.ms_median <= row.ms_max
        assert row.ms_wall > 0
        assert row.ms_scaled == pytest.approx(row.ms_wall * 64 * 768 / (row.B * row.D), rel=1e-3)
        assert row.floor_share == pytest.approx(row.floor_ms / row.ms_median, abs=1e-3)
        assert (row.copy_TBps, row.matmul_TFLOPs, row.torch) == (4.0, 800.0, torch.__version__)
        ours = next(r for r in rows if (r.form, r.mode, r.implementation) == (row.form, row.mode, OURS))
        assert row.ratio == pytest.approx(row.ms_median / ours.ms_median, abs=1e-3)
    first = rows[0]
    assert first.inputs_GB == pytest.approx(4 * (3 * 2 * 3 + 3) * 256 / 1e9, abs=1e-6)
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_those_who_are_wrong_or_fail_are_not_timed(measure, capsys):
    run, path = measure

    def broken(point, device):
        raise RuntimeError("no such size")

    def only_causal(point, device):
        return None if point.circular else conv_of(point)

    everyone = [
        RIGHT,
        Contestant("shifted", shifted),
        Contestant("hungry", raising(torch.OutOfMemoryError("out of it"))),
        Contestant("picky", raising(ValueError("odd sizes"))),
        Contestant("broken", broken),
        Contestant("only causal", only_causal),
    ]
    rows = run(POINTS, everyone, console=Console(width=200))
    found = {(r.form, r.mode, r.implementation): r for r in rows}
    for form, mode in {key[:2] for key in found}:
        states = {key[2]: row.status for key, row in found.items() if key[:2] == (form, mode)}
        expected = {OURS: "ok", "shifted": "wrong", "hungry": "out of memory", "picky": "failed", "broken": "failed"}
        assert states == expected | ({} if form == "circular" else {"only causal": "ok"})
    refused = found["circular", "forward", "shifted"]
    assert refused.ms_median is refused.ms_wall is refused.ratio is refused.floor_share is None
    assert refused.repeats == 0
    printed = capsys.readouterr().out
    for text in ("wrong, so not timed: shifted, forward", "ValueError: odd sizes", "RuntimeError: no such size"):
        assert text in printed
    assert gpu_report.read_rows(path) == rows


def test_ours_being_wrong_ends_in_an_error_after_the_others_have_their_rows(measure):
    run, path = measure
    everyone = [Contestant(OURS, shifted), Contestant(FFT, RIGHT.prepare)]
    with pytest.raises(DisagreementError, match=r"longconv triton at circular float32 64 gated=True forward: wrong"):
        run(POINTS, everyone, console=Console(width=200))
    rows = gpu_report.read_rows(path)
    assert [(r.implementation, r.status) for r in rows] == [(OURS, "wrong"), (FFT, "ok")] * 4
    assert all(r.ratio is None for r in rows)


def test_a_run_that_is_cut_keeps_its_rows(measure, capsys):
    run, path = measure

    def stop_at_the_second(point, device):
        if not point.circular:
            raise KeyboardInterrupt
        return conv_of(point)

    with pytest.raises(KeyboardInterrupt):
        run(POINTS, [Contestant(OURS, stop_at_the_second)], console=Console(width=200))
    assert [row.mode for row in gpu_report.read_rows(path)] == ["forward", "forward+backward"]
    assert run(POINTS, [RIGHT], minutes=-1.0, console=Console(width=200)) == []
    assert f"left out: {POINTS[0].name}, {POINTS[1].name}" in capsys.readouterr().out


def test_a_gpu_waits_before_a_call_that_is_timed(monkeypatch):
    """So the call is launched meanwhile. The events and the GPU are stand-ins."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")

        def synchronize(self):
            log.append("done")

        def elapsed_time(self, other):
            return 1.25

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: log.append("idle"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    assert harness.time_call(lambda: log.append("call"), torch.device("cuda")) == 1.25
    assert log == ["idle", "wait", "event", "call", "event", "done"]


def test_inputs_rotate_through_more_than_the_cache(monkeypatch):
    point = POINTS[0]
    size = 4 * (4 * 2 * 5 * 64 + 5 * 64)  # u, two gates and gradient (2, 5, 64), k (5, 64)
    assert len(gpu_run.make_sets(point, CPU)) == 1
    monkeypatch.setattr(gpu_run, "l2_bytes", lambda device: size)
    sets = gpu_run.make_sets(point, CPU)
    assert len(sets) == gpu_run.CACHES
    assert len({x.inputs[0].data_ptr() for x in sets}) == len(sets)
    assert not torch.equal(sets[0].inputs[0], sets[1].inputs[0])
    used = []

    def note(u, *others):
        used.append(u.data_ptr())
        return u

    gpu_run.measure_mode({OURS: note, FFT: note}, {}, sets, torch.arange(5), [sets[0].inputs[0].double()], "forward",
                         CPU, Console())  # fmt: skip
    timed = used[2 * 4 :]  # check, peak (twice) and single call of each come first, on the first set
    assert all(a != b for a, b in itertools.pairwise(timed)), "no call finds what the last one left"
    assert set(timed) == {x.inputs[0].data_ptr() for x in sets}


def test_some_channels_are_compared():
    point = Point("circular", True, "bfloat16", 2**20, 8, 48)
    assert gpu_run.compared_channels(point, CPU).tolist() == [0, 16, 31, 47]
    assert gpu_run.compared_channels(dataclasses.replace(point, fft_size=2**22), CPU).tolist() == [0]
    case = gpu_run.make_sets(POINTS[0], CPU)[0]
    part = gpu_run.part_of(case, torch.tensor([1, 4]))
    assert [tuple(x.shape) for x in part.inputs] == [(2, 2, 64), (2, 64), (2, 2, 64), (2, 2, 64)]
    assert torch.equal(part.inputs[0], case.inputs[0][:, [1, 4]])
    assert torch.equal(part.inputs[1], case.inputs[1][[1, 4]])
    assert part.shape.D == 2


# --- Reports ----------------------------------------------------------------------------------------------------------


def rows_of(point, times, peaks, mode="forward", date="2026-01-01T00:00Z", **place):
    context = {"date": date, "device": "GPU", "torch": "2", "triton": "3", "python": "3.12", "longconv": "1", **place}
    results = {
        name: Result("ok", Timing(ms, ms, ms), ms * 2, peaks.get(name, 1.0)) if ms else Result("failed")
        for name, ms in times.items()
    }
    return gpu_report.make_rows(context, point, mode, results, 9, 0.5, roofline.work(point, mode, 227 * KB), RATES)


def test_targets_and_what_was_reached(capsys):
    point = Point("circular", True, "bfloat16", 8192, 64, 768)
    rows = rows_of(point, {OURS: 2.0, FFT: 20.0, RFFT: 8.0}, {OURS: 0.5, FFT: 7.5})
    rows += rows_of(point, {OURS: 5.0, FFT: 50.0}, {}, mode="forward+backward")
    rows += rows_of(dataclasses.replace(point, fft_size=2**22, D=16, B=8), {OURS: 100.0, FFT: None}, {})
    rows += rows_of(dataclasses.replace(point, dtype="float16"), {OURS: 1.0, FFT: 1.0}, {})
    small, large = gpu_report.summarise(rows)
    assert (small.fft_size, small.ms, small.fft_ms) == (8192, 4.0, 40.0)
    assert small.flash == Verdict(pytest.approx(3.58 / 4.0), 1.0)
    assert small.fft == Verdict(10.0, 8.0)
    assert small.rfft == Verdict(4.0, 5.0)
    assert small.backward == Verdict(pytest.approx(30 / 3), 4.0)
    assert small.memory == Verdict(pytest.approx(8.0), 6.5)
    assert small.floor == Verdict(pytest.approx(rows[0].floor_ms / 2.0, rel=1e-3), 0.5)
    assert large.ms == 200.0 * 64 * 768 / (8 * 16)
    assert large.flash == Verdict(pytest.approx(10049.4 / large.ms, rel=1e-3), 1.0)
    assert large.fft == Verdict(None, 1.5)
    assert (large.rfft, large.floor.target) == (Verdict(None, None), None)
    gpu_report.print_targets(rows, Console(width=80))
    printed = capsys.readouterr().out
    assert "…" not in printed
    for text in ("8k", "4M", "10.00/8 ✓", "4.00/5 ✗", "?/1.5", "3.58", "1.005e+04"):
        assert text in printed


@pytest.mark.parametrize(
    ("fft_size", "fft", "rfft", "floor"),
    [(256, 8, None, 0.5), (1024, 8, 5, 0.5), (8192, 8, 5, 0.5), (16384, 4, None, None), (32768, 4, None, None),
     (65536, None, None, None), (2**20, 2, None, None), (2**22, 1.5, None, None)],
)  # fmt: skip
def test_targets(fft_size, fft, rfft, floor):
    aim = gpu_points.targets(fft_size)
    assert (aim.fft, aim.rfft, aim.backward, aim.memory, aim.floor) == (fft, rfft, 4, 6.5, floor)


def test_runs_that_share_the_points_make_one_table():
    a, b = POINTS
    old = rows_of(a, {OURS: 1.0, FFT: 2.0}, {}, date="2026-01-01T00:00Z")
    other = rows_of(a, {OURS: 7.0}, {}, device="another")
    new = rows_of(a, {OURS: 3.0}, {}, date="2026-01-02T00:00Z")
    both = gpu_report.latest([*old, *rows_of(b, {OURS: 5.0}, {}), *other, *new], like=old[0])
    found = {(r.form, r.implementation): r.ms_median for r in both}
    assert found == {("causal", OURS): 5.0, ("circular", FFT): 2.0, ("circular", OURS): 3.0}


def test_plot(tmp_path):
    rows = [row for p in select((), quick=True) for row in rows_of(p, {OURS: 1.0, FFT: 9.0, RFFT: None}, {})]
    rows += rows_of(POINTS[1], {OURS: 2.0}, {}, mode="forward+backward")
    gpu_report.plot_gpu(rows, tmp_path / "folder" / "plot.png")
    assert (tmp_path / "folder" / "plot.png").read_bytes().startswith(b"\x89PNG")
    gpu_report.plot_gpu([], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
