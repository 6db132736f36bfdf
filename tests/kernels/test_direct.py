"""A few taps, added up one by one: the definition, for every shape that takes this way."""

import functools

import pytest
import torch
from fft_conv_cases import check, make

from longconv.functional import fft_conv
from longconv.kernels.fftconv import blocked, direct, dispatch, halo, overlap

pytestmark = pytest.mark.usefixtures("no_native")

CASES = [
    # B, D, L, K, R
    (8, 16, 256, 64, 0),
    (3, 48, 256, 40, 24),
    (1, 3, 20_000, 24, 0),
    (1, 1, 33_000, 1, 0),
    (2, 5, 5000, 10, 7),
    (2, 17, 1001, 1, 31),
    (700, 3, 17, 4, 2),
    (2, 4, 2**13, 64, 0),
]


@pytest.fixture
def taken(monkeypatch):
    """How often the two functions are called."""
    calls = {"filtered": 0, "correlate": 0}

    def counted(name, function, *args):
        calls[name] += 1
        return function(*args)

    for module, name in ((direct, "filtered"), (overlap, "correlate")):
        monkeypatch.setattr(module, name, functools.partial(counted, name, getattr(module, name)))
    return calls


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("B", "D", "L", "K", "R"), CASES)
def test_equals_the_definition(B, D, L, K, R, circular, dtype, taken):
    check(make(B, D, L, K, R, dtype), circular)
    assert taken["filtered"] > 0
    assert (taken["correlate"] > 0) == (K + R <= direct.GRADIENT_TAPS)
    x = make(B, D, L, K, R, dtype, dtype)
    del x["pre_gate"], x["post_gate"], x["skip"]
    check(x, circular)


def test_which_way_is_taken(taken):
    for B, D, L, K, dtype, forward, backward in (
        (8, 32, 512, 16, torch.float32, overlap, overlap),
        (8, 32, 512, 64, torch.float32, overlap, blocked),
        (8, 64, 127, 64, torch.float32, blocked, blocked),
        (8, 32, 500, 16, torch.float64, blocked, blocked),
        (1, 1, 500, 16, torch.float32, blocked, blocked),
    ):
        u, k = torch.empty(B, D, L, dtype=dtype), torch.empty(D, K)
        assert dispatch.choose(u, k, None) is forward, (B, D, L, K)
        assert dispatch.choose(u, k, None, backward=True) is backward, (B, D, L, K)
    for L, direct_way in ((2**13, True), (2**13 + 1, False)):
        assert overlap.choose_frames(torch.empty(1, 8, L), torch.empty(8, 64), None).direct == direct_way


@pytest.mark.parametrize("circular", [False, True])
def test_any_cut_into_blocks_and_frames_is_the_same(monkeypatch, circular, taken):
    monkeypatch.setattr(halo, "LEAST_SAMPLES", 1)
    for samples, frame in ((1, 64), (3001 * 3, 100), (2**15, 2048), (2**15, 5000)):
        monkeypatch.setitem(halo.BLOCK_SAMPLES, "cpu", samples)
        monkeypatch.setattr(direct, "FRAME", frame)
        check(make(3, 4, 3001, 13, 10), circular)
        check(make(3, 4, 3001, 23, 0), circular)
    assert taken["filtered"] > 100


def test_a_backward_pass_inside_autocast_keeps_its_digits(taken):
    x = {name: t.requires_grad_() for name, t in make(2, 16, 1024, 16, 0).items()}
    y = fft_conv(**x)
    expected = torch.autograd.grad(y.sum(), x.values(), retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = torch.autograd.grad(y.sum(), x.values())
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)
    assert taken["correlate"] > 0


@pytest.mark.parametrize("circular", [False, True])
def test_what_is_not_finite_stays_in_its_row(circular, taken):
    x = {name: t for name, t in make(2, 20, 1000, 10, 6).items() if "gate" not in name}
    clean = fft_conv(**x, circular=circular)
    x["u"][0, 1, 500] = float("nan")
    x["u"][1, 2, 0] = float("inf")
    y = fft_conv(**x, circular=circular)
    touched = torch.zeros(2, 20, dtype=bool)
    touched[0, 1] = touched[1, 2] = True
    assert torch.equal(y[~touched], clean[~touched])
    assert not y[touched].isfinite().all(-1).any()
    assert taken["filtered"] > 0
