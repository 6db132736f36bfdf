"""`fft_conv` in matrix products against its definition, and the factors of its transforms."""

import math

import pytest
import torch
from numerics import assert_close

from longconv.kernels.fftconv import fft_conv_reference
from longconv.kernels.fftconv.matmul import DIRECT_TAPS, MAX_FACTOR, factors, fft_conv_matmul

LENGTHS = [1, 2, 3, 65, 130, 1021, 4099, 20000]


def arguments(B, D, L, K, K_reverse, dtype):
    shapes = {"u": (B, D, L), "k": (D, K), "skip": (D,), "pre_gate": (B, D, L), "post_gate": (B, D, L)}
    if K_reverse is not None:
        shapes["k_reverse"] = (D, K_reverse)
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("circular", [False, True], ids=["linear", "circular"])
@pytest.mark.parametrize("L", LENGTHS)
def test_it_equals_the_definition(L, circular, dtype):
    for K, K_reverse in [(1, None), (5, 0), (L, 1), (L + 9, L), (5, L + 70), (2 * L + 300, None)]:
        x = arguments(2, 3, L, K, K_reverse, dtype)
        expected = fft_conv_reference(**{name: t.double() for name, t in x.items()}, circular=circular)
        assert_close(fft_conv_matmul(**x, circular=circular), expected, dtype, name=f"K = {K}, K' = {K_reverse}")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype):
    x = arguments(2, 3, 300, 300, None, dtype)
    y = fft_conv_matmul(**x)
    assert y.dtype == dtype
    assert_close(y, fft_conv_reference(**{name: t.double() for name, t in x.items()}), dtype)


def test_without_options_and_without_a_batch():
    u, k = torch.randn(2, 3, 400), torch.randn(3, 400)
    assert_close(fft_conv_matmul(u, k), fft_conv_reference(u.double(), k.double()), torch.float32)
    assert fft_conv_matmul(u[:0], k).shape == (0, 3, 400)


def test_kernels_at_the_limit_of_the_direct_form():
    u = torch.randn(1, 2, 500)
    for K, K_reverse in [(DIRECT_TAPS, 0), (DIRECT_TAPS - 7, 7), (DIRECT_TAPS - 6, 7)]:
        k, k_reverse = torch.randn(2, K), torch.randn(2, K_reverse)
        expected = fft_conv_reference(u.double(), k.double(), k_reverse=k_reverse.double())
        assert_close(fft_conv_matmul(u, k, k_reverse=k_reverse), expected, torch.float32)


def test_factors_cover_the_length_without_much_waste():
    for length in [*range(1, 300), 1021, 16384, 65537, 10**6, MAX_FACTOR**3]:
        sizes = factors(length)
        assert length <= math.prod(sizes) <= 1.2 * length + 16
        assert len(sizes) <= 3
        assert max(sizes) <= MAX_FACTOR
    with pytest.raises(ValueError, match="at most"):
        factors(MAX_FACTOR**3 + 1)


def test_packed_sequences_are_an_error():
    u = torch.randn(1, 2, 10)
    with pytest.raises(ValueError, match="cu_seqlens"):
        fft_conv_matmul(u, torch.randn(2, 10), cu_seqlens=torch.tensor([0, 4, 10]))
