"""How the Triton kernels of `fft_conv` cut a convolution: every way is valid, and the cheapest is taken."""

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longconv.kernels.fftconv.monarch import configs, conv, fused_run


@settings(max_examples=300)
@given(
    L=st.integers(1, 2**22),
    share=st.floats(0, 1),
    share_reverse=st.floats(0, 1),
    rows=st.sampled_from([1, 8, 64]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    limit=st.sampled_from([64, 99, 163, 227]),
)
def test_every_choice_covers_the_row_and_the_filter(L, share, share_reverse, rows, dtype, limit):
    K, K_reverse = max(1, int(L * share**3)), int((L - 1) * share_reverse**3)
    ways = configs.ways(rows, L, K, K_reverse, dtype, limit * 1024)
    assert len({way.name for way in ways}) == len(ways)
    for way in ways:
        assert way.tile.shared <= limit * 1024
        if isinstance(way, configs.Outer):
            assert way.P % 16 == 0 or way.P < 16
            assert L <= way.P * way.tile.N < L + 16 * way.tile.N
            continue
        if isinstance(way, configs.Nested):
            assert L <= way.P * way.tile.N < 2 * L
            continue
        assert way.count * way.hop >= L
        if way.whole:
            assert L <= way.tile.N
        elif way.pieces == 1:
            assert way.left >= K - 1
            assert way.right >= K_reverse
            assert way.hop + way.left + way.right <= way.tile.N
        else:
            assert way.hop + way.left <= way.tile.N
            assert -way.shift >= K_reverse
            assert way.shift + way.pieces * way.hop >= K


def test_choices_that_matter():
    def choose(L, K, limit=227, rows=64):
        return configs.ways(rows, L, K, 0, torch.bfloat16, limit * 1024)[0]

    assert choose(8192, 8192).whole
    assert choose(8192, 8192, 99).P == 4  # no tile of 8,192 points fits: four of 2,048
    for limit in (64, 99, 163, 227):  # FFTs of 32K points stay on the chip of any device
        assert isinstance(choose(16_384, 16_384, limit), configs.Nested)
    # By the estimate three kernels are as good for rows twice as long; which is faster is for LONGCONV_TUNE to say.
    assert "nested 16" in " ".join(way.name for way in configs.ways(64, 32_768, 32_768, 0, torch.bfloat16, 227 * 1024))
    assert choose(4096, 4096, 99).tile.N == 4096
    assert choose(2**20, 64).pieces == 1
    assert isinstance(choose(2**20, 2**20), configs.Outer)
    # One row of each filter: preparing a filter of a million points would cost more than many short frames.
    assert not isinstance(choose(2**20, 8192, rows=1), configs.Outer)


@pytest.mark.parametrize("L", [200, 1000, 5000, 9000, 20_000, 100_000])
@pytest.mark.parametrize("limit", [64, 99, 163, 227])
def test_the_cheapest_way_is_taken_where_nothing_was_measured(monkeypatch, tmp_path, L, limit):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path))
    for module in (conv, importlib.import_module("longconv.kernels.gpu.choose")):
        monkeypatch.setattr(module, "shared_memory_limit", lambda device: limit * 1024)
    u, taps = torch.empty(1, 1, L, dtype=torch.float16), (torch.empty(1, L), torch.empty(1, 0))
    for rows in (1, 64):
        cheapest = configs.ways(rows, L, L, 0, torch.float16, limit * 1024)[0]
        assert conv._choose(u, fused_run.Rows(rows, L), taps) == cheapest
