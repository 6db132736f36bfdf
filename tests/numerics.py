"""The one tolerance of the suite: relative L2 error against a float64 reference, by dtype. Never relaxed."""

import torch

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}


def relative_l2(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """``||actual - expected|| / ||expected||`` in float64 (complex128 for complex tensors)."""
    wide = torch.complex128 if expected.is_complex() else torch.float64
    actual, expected = actual.detach().to(wide), expected.detach().to(wide)
    return (torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)).item()


def assert_close(
    actual: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype | None = None, name: str = "output"
) -> None:
    """Fail unless `actual` equals `expected` within the tolerance of `dtype` (default: the dtype of `actual`)."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    assert torch.isfinite(torch.view_as_real(actual) if actual.is_complex() else actual).all(), f"{name}: not finite"
    if expected.numel() == 0:
        return
    dtype = dtype or actual.dtype
    limit = TOLERANCE[dtype]
    if not expected.any():
        assert not actual.any(), f"{name}: expected zeros"
        return
    error = relative_l2(actual, expected)
    assert error <= limit, f"{name}: relative L2 error {error:.2e} > {limit:.0e} ({dtype})"
