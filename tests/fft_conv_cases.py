"""Inputs of `fft_conv`, and the comparison of all that it gives with the definition in float64."""

import numerics
import torch

from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference

TENSORS = ("u", "k", "skip", "k_reverse", "pre_gate", "post_gate")


def make(B, D, L, K, R, dtype=torch.float32, filter_dtype=torch.float32):
    """All tensors, with K causal taps and R others."""
    return {
        "u": torch.randn(B, D, L, dtype=torch.float64).to(dtype),
        "k": torch.randn(D, K, dtype=filter_dtype) / K**0.5,
        "skip": torch.randn(D, dtype=filter_dtype),
        **({"k_reverse": torch.randn(D, R, dtype=filter_dtype) / K**0.5} if R else {}),
        "pre_gate": torch.randn(B, D, L, dtype=torch.float64).to(dtype),
        "post_gate": torch.randn(B, D, L, dtype=torch.float64).to(dtype),
    }


def check(x, circular=False):
    """Compare output and gradients."""
    x = {name: t.requires_grad_() for name, t in x.items()}
    wide = {name: t.detach().double().requires_grad_() for name, t in x.items()}
    y, expected = fft_conv(**x, circular=circular), fft_conv_reference(**wide, circular=circular)
    assert y.dtype == x["u"].dtype
    assert y.is_contiguous()
    numerics.assert_close(y, expected)
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, x.values(), dy)
    for name, g, e in zip(x, grads, torch.autograd.grad(expected, wide.values(), dy.double()), strict=True):
        assert g.dtype == x[name].dtype
        numerics.assert_close(g, e, name=f"gradient of {name}")
