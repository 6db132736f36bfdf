"""The Triton kernels of `fft_conv_sparse` and `dilated_conv`: output and gradients against their definitions."""

import pytest
import torch
from gpu_cases import DTYPES, at_each_place
from numerics import assert_close

from longconv.functional import SpectrumMask, dilated_conv, fft_conv_sparse


def compare(f, x):
    """Output and all gradients of `impl="triton"`, in the precision of the input, with those of the reference."""
    given = {name: t.requires_grad_() for name, t in x.items()}
    wide = {name: t.detach().double().requires_grad_() for name, t in x.items()}
    y, expected = f(**given, impl="triton"), f(**wide, impl="reference")
    assert_close(y, expected)
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, list(given.values()), dy)
    for name, grad, wanted in zip(
        x, grads, torch.autograd.grad(expected, list(wide.values()), dy.double()), strict=True
    ):
        assert_close(grad, wanted, y.dtype, name=f"gradient of {name}")


@at_each_place(
    [(700, (8, 256), (3, 256), torch.float16)],
    [
        (L, factors, kept, dtype)
        for L, factors, kept in (
            (4096, (32, 256), (8, 256)),
            (30_000, (32, 2048), (9, 2048)),
            (2**19, (256, 4096), (64, 4096)),
            (2**19, (16, 32, 2048), (4, 32, 2000)),
        )
        for dtype in DTYPES
    ],
)
@pytest.mark.parametrize("symmetric", [False, True])
def test_sparse(place, case, symmetric):
    L, factors, kept, dtype = case
    n = torch.Size(factors).numel()
    mask = SpectrumMask(n, factors, kept, symmetric)
    D = 8 if L < 10**5 else 2
    rows = {name: torch.randn(2, D, L, device=place).to(dtype) for name in ("u", "pre_gate", "post_gate")}
    k = torch.randn(D, L, device=place) / L**0.5
    compare(lambda **x: fft_conv_sparse(x.pop("u"), x.pop("k"), mask, **x), {**rows, "k": k})


@at_each_place(
    [(300, 3, 7, torch.float32)],
    [(L, K, d, t) for L in (1021, 65_536) for K, d in ((2, 1), (3, 256), (15, 16)) for t in DTYPES],
)
def test_dilated(place, case):
    L, K, dilation, dtype = case
    x = {
        "u": torch.randn(3, 33, L, device=place).to(dtype),
        "k": torch.randn(33, K, device=place) / K**0.5,
        "bias": torch.randn(33, device=place),
    }
    compare(lambda **x: dilated_conv(x.pop("u"), x.pop("k"), x.pop("bias"), dilation=dilation, **x), x)
