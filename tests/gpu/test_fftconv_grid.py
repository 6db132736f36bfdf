"""The Triton kernels of `fft_conv`, forward and backward, over sizes, dtypes, gates, batches and channels."""

import itertools
import math

import gpu_cases
import pytest
import torch
from gpu_cases import GridCase, at_each_place, check, grid, make

TINY = [
    GridCase(256, torch.float32, True, True, 1, 3),
    GridCase(256, torch.float16, False, True, 2, 2),
    GridCase(512, torch.float16, True, False, 3, 1),
    GridCase(4096, torch.float32, False, False, 1, 2),
    GridCase(16384, torch.float16, True, True, 1, 1),
]


@at_each_place(TINY, grid())
def test_grid(place, case):
    B, D, L = case.shape(gpu_cases.most_samples(place))
    check(make(place, B, D, L, L, case.dtype, 0, *(["gates"] if case.gated else [])), circular=case.full)


def test_the_grid_covers_what_it_says():
    cases = grid()
    assert len(cases) == len(set(cases)) == 15 * 12
    kinds = set(itertools.product(gpu_cases.DTYPES, (False, True), (False, True)))
    pairs = set(itertools.product(gpu_cases.BATCHES, gpu_cases.CHANNELS))
    assert {(c.fft_size, (c.dtype, c.gated, c.full)) for c in cases} == set(
        itertools.product(gpu_cases.FFT_SIZES, kinds)
    )
    assert {(c.fft_size, (c.B, c.D)) for c in cases} == set(itertools.product(gpu_cases.FFT_SIZES, pairs))
    assert {((c.B, c.D), (c.dtype, c.gated, c.full)) for c in cases} == set(itertools.product(pairs, kinds))


@pytest.mark.parametrize("samples", [gpu_cases.MOST_SAMPLES, gpu_cases.FEWER_SAMPLES])
def test_caps(samples):
    for case in grid():
        B, D, L = case.shape(samples)
        assert math.prod((B, D, L)) <= samples
        assert 1 <= B <= case.B
        assert 1 <= D <= case.D
    assert GridCase(2048, torch.float16, True, True, 64, 768).shape(2**27) == (64, 768, 2048)
    assert GridCase(2**22, torch.float16, True, True, 64, 768).shape(2**27) == (32, 1, 2**22)


def test_a_wrong_result_is_seen():
    """Controls: an error in any output or gradient, in any channel, fails."""
    x = make("cpu", 2, 3, 40, 40, torch.float32, 0, "gates", "skip")
    dy = torch.randn_like(x["u"])
    found = gpu_cases.run(x, dy, impl="torch")
    gpu_cases.compare(found, x, dy)
    for name in found:
        wrong = {**found, name: found[name].clone()}
        wrong[name].view(-1)[-1] += 1
        with pytest.raises(AssertionError, match=f"{name}: relative"):
            gpu_cases.compare(wrong, x, dy)
        gpu_cases.compare(wrong, x, dy, channels=[0, 1])


@pytest.mark.parametrize("chunk", [1, 80, 100, 200])
def test_the_comparison_in_chunks(chunk, monkeypatch):
    """Of channels, and of batch rows where one channel is too many samples: filters' gradients are summed over them."""
    monkeypatch.setattr(gpu_cases, "CHUNK", chunk)
    x = make("cpu", 3, 5, 40, 30, torch.float32, 4, "gates", "skip")
    dy = torch.randn_like(x["u"])
    found = gpu_cases.run(x, dy, impl="torch")
    gpu_cases.compare(found, x, dy)
    found["k"][-1, -1] += 1
    with pytest.raises(AssertionError, match="k: relative"):
        gpu_cases.compare(found, x, dy)
