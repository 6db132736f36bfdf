"""Overlap-save, short filters on long rows: the definition, the choice, the memory."""

import os
import subprocess
import sys

import fft_conv_cases
import numerics
import pytest
import torch
from fft_conv_cases import TENSORS, make

from longconv.functional import fft_conv
from longconv.kernels.fftconv import blocked, dispatch, halo, overlap

pytestmark = pytest.mark.usefixtures("no_native")


def check(x, circular=False):
    assert dispatch.choose(x["u"], x["k"], x.get("k_reverse")) is overlap
    fft_conv_cases.check(x, circular)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(
    ("B", "D", "L", "K", "R"),
    [
        (2, 3, 512, 1, 0),
        (2, 3, 513, 1, 1),
        (1, 2, 1021, 64, 0),
        (2, 2, 1021, 64, 3),
        (3, 1, 4096, 7, 500),
        (1, 1, 20_011, 1000, 1000),
        (2, 5, 5000, 128, 0),
    ],
)
def test_equals_the_definition(B, D, L, K, R, circular, dtype):
    check(make(B, D, L, K, R, dtype, torch.float64 if dtype == torch.float64 else torch.float32), circular)


def test_which_way_is_taken():
    for K, R, L, way in (
        (1, 0, 2, blocked),
        (3, 0, 10_000, overlap),
        (3, 0, 100, blocked),
        (64, 0, 1024, overlap),
        (1000, 0, 10_000, overlap),
        (1000, 0, 3000, overlap),
        (1000, 0, 2990, blocked),
        (3, 500, 600, blocked),
        (1, 0, 1, blocked),
        (5000, 0, 5000, blocked),
    ):
        u, k, k_reverse = torch.empty(1, 1, L), torch.empty(1, K), torch.empty(1, R) if R else None
        assert dispatch.choose(u, k, k_reverse) is way, (K, R, L)


@pytest.mark.parametrize("circular", [False, True])
def test_any_cut_into_blocks_is_the_same(monkeypatch, circular):
    monkeypatch.setattr(halo, "LEAST_SAMPLES", 1)
    for samples in (1, 512 * 3, 512 * 8, 2**15):
        monkeypatch.setitem(halo.BLOCK_SAMPLES, "cpu", samples)
        check(make(3, 4, 3001, 33, 20), circular)
        check(make(3, 4, 3001, 33, 0), circular)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("N", [64, 100, 512, 1200])
@pytest.mark.parametrize(("K", "R"), [(33, 20), (33, 0), (1, 20), (1, 0)])
def test_any_frame_is_the_same(monkeypatch, K, R, N, circular):
    monkeypatch.setattr(overlap, "make_frames", lambda past, future, L: overlap.Frames(past, future, N))
    for L in (512, 513, 1150):
        check(make(2, 3, L, K, R), circular)


@pytest.mark.parametrize("wanted", TENSORS)
def test_gradient_of_one_argument_alone(wanted):
    x = make(2, 3, 1500, 40, 20, torch.float64, torch.float64)
    x[wanted].requires_grad_()
    (grad,) = torch.autograd.grad(fft_conv(**x).square().sum(), x[wanted])
    (expected,) = torch.autograd.grad(fft_conv(**x, impl="reference").square().sum(), x[wanted])
    numerics.assert_close(grad, expected)


def test_strided_and_expanded_inputs():
    x = make(2, 4, 2000, 50, 10)
    expected = fft_conv(**x)
    strided = {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in x.items()}
    numerics.assert_close(fft_conv(**strided), expected)
    leaf = {n: t.clone().requires_grad_() for n, t in x.items()}
    from_sum = torch.autograd.grad(fft_conv(**leaf).sum(), leaf.values())
    explicit = torch.autograd.grad(fft_conv(**leaf), leaf.values(), torch.ones(2, 4, 2000))
    for a, b in zip(from_sum, explicit, strict=True):
        numerics.assert_close(a, b)


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("L", "K", "R"), [(2000, 50, 30), (300, 300, 200), (70_000, 70_000, 0), (270_000, 270_000, 0)])
def test_what_is_not_finite_stays_in_its_row(L, K, R, circular):
    x = {name: t for name, t in make(2, 3, L, K, R).items() if "gate" not in name}
    clean = fft_conv(**x, circular=circular)
    x["u"][0, 1, L // 2] = float("nan")
    x["u"][1, 2, 0] = float("inf")
    y = fft_conv(**x, circular=circular)
    touched = torch.tensor([[False, True, False], [False, False, True]])
    assert torch.equal(y[~touched], clean[~touched])
    assert not y[touched].isfinite().all(-1).any()


_MEMORY = """
import ctypes, gc, torch
from pathlib import Path
from longconv.functional import fft_conv
def status(field):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(field))
fft_conv(torch.randn(1, 1, 100_000), torch.randn(1, 4096))
u, k = torch.randn(1, {rows}, {L}), torch.randn({rows}, 4096)
gc.collect(); ctypes.CDLL(None).malloc_trim(0); Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS"); y = fft_conv(u, k)
print((status("VmHWM") - before) * 1024 / (8 * u.numel()) + 0.5)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("rows", "L"), [(1, 1_000_000), (4, 1_000_000)])
@pytest.mark.parametrize("native", ["0", "1"])
def test_memory_of_a_million_samples_is_that_of_input_and_output(rows, L, native):
    code, environment = _MEMORY.format(rows=rows, L=L), {**os.environ, "LONGCONV_NATIVE": native}
    command = [sys.executable, "-P", "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert 1.0 - 0.02 < float(run.stdout) < 1.3
