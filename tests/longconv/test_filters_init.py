"""Initialisations as published: distributions, not ranges (Kolmogorov-Smirnov at a level of about 1e-4), and marks."""

import math

import pytest
import torch

from longconv.filters import DampedEMA, DCLSFilter, FreeFormFilter, RTFFilter, S4DFilter, SGConvFilter, SMPConvFilter
from longconv.filters.window import decay_rates


def assert_distribution(x: torch.Tensor, cdf) -> None:
    x = x.detach().double().flatten().sort().values
    n = len(x)
    assert n >= 500
    expected, steps = cdf(x), torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((steps[1:] - expected).abs().max(), (steps[:-1] - expected).abs().max()).item()
    assert distance < 2.2 / math.sqrt(n), f"distance {distance:.3f} for {n} values"


def assert_normal(x: torch.Tensor, mean: float, std: float) -> None:
    assert_distribution(x, lambda x: torch.special.ndtr((x - mean) / std))


def assert_uniform(x: torch.Tensor, low: float, high: float) -> None:
    assert_distribution(x, lambda x: ((x - low) / (high - low)).clamp(0, 1))


def test_the_test_can_fail():
    with pytest.raises(AssertionError):
        assert_normal(1.1 * torch.randn(20_000), 0, 1)
    with pytest.raises(AssertionError):
        assert_uniform(torch.rand(20_000) + 0.02, 0, 1)


def test_s4d():
    f = S4DFilter(2000, 8, dt_min=1e-3, dt_max=1e-1)
    assert_uniform(f.log_dt, math.log(1e-3), math.log(1e-1))
    assert_normal(f.C[..., 0], 0, math.sqrt(0.5))
    assert_normal(f.C[..., 1], 0, math.sqrt(0.5))
    assert (f.log_A_real == math.log(0.5)).all()
    assert torch.allclose(f.A_imag, math.pi * torch.arange(4.0).expand(2000, 4), rtol=1e-6)
    for name in ("log_dt", "log_A_real", "A_imag"):
        assert f.get_parameter(name)._optim == {"lr": 1e-3, "weight_decay": 0.0}
    assert not hasattr(f.C, "_optim")
    assert sum(p.numel() for p in S4DFilter(1, 64).parameters()) == 1 + 32 + 32 + 64


def test_s4d_poles_of_the_other_initialisations():
    N = 16
    inv = S4DFilter(1, N, init="inv").A_imag[0].double()
    n = torch.arange(N // 2, dtype=torch.float64)
    assert torch.allclose(inv, N / math.pi * (N / (2 * n + 1) - 1), rtol=1e-6)
    real = S4DFilter(1, N, real=True)
    assert torch.allclose(real.log_A_real[0].double().exp(), torch.arange(1, N + 1, dtype=torch.float64), rtol=1e-6)
    assert real.A_imag is None
    assert real.C.shape == (1, N)
    mixed = S4DFilter(1, N, init="real")
    assert torch.allclose(mixed.log_A_real[0].double().exp(), n + 1, rtol=1e-6)
    assert not mixed.A_imag.any()


@pytest.mark.parametrize("N", [2, 8, 64])
def test_s4d_legs_has_the_eigenvalues_of_the_normal_part_of_hippo(N):
    # HiPPO-LegS: A_ij = -sqrt((2i+1)(2j+1)) below the diagonal, -(i+1) on it; A + P P^T is normal, P_i = sqrt(i+1/2).
    A = torch.zeros(N, N, dtype=torch.float64)
    for i in range(N):
        for j in range(i):
            A[i, j] = -math.sqrt((2 * i + 1) * (2 * j + 1))
        A[i, i] = -(i + 1)
    P = torch.tensor([math.sqrt(i + 0.5) for i in range(N)], dtype=torch.float64)
    eigenvalues = torch.linalg.eigvals(A + torch.outer(P, P))
    assert torch.allclose(eigenvalues.real, torch.full((N,), -0.5, dtype=torch.float64), atol=1e-8)
    positive = eigenvalues.imag[eigenvalues.imag > 0].sort(descending=True).values
    f = S4DFilter(1, N, init="legs")
    assert torch.allclose(f.A_imag[0].double(), positive, rtol=1e-6)
    assert (f.log_A_real == math.log(0.5)).all()


def test_ema():
    f = DampedEMA(800, 16)
    assert_normal(f.delta, 0, 0.2)
    assert_normal(f.alpha, 0, 0.2)
    assert_normal(f.beta[:, ::2], 1, 0.02)
    assert_normal(f.beta[:, 1::2], -1, 0.02)
    assert_normal(f.gamma, 0, 1)
    assert sum(p.numel() for p in DampedEMA(10).parameters()) == 10 * 16 * 4
    assert sum(p.numel() for p in DampedEMA(10, bidirectional=True).parameters()) == 20 * 16 * 4


@pytest.mark.parametrize(
    ("max_length", "kernel_dim", "init_scale", "scales"),
    [
        (1024, 64, 0, 5),
        (1000, 64, 0, 5),
        (1025, 64, 0, 6),
        (16384, 64, 0, 9),
        (64, 64, 0, 1),
        (1024, 64, 2, 3),
        (7, 64, 0, 1),
    ],
)
def test_sgconv_scales(max_length, kernel_dim, init_scale, scales):
    f = SGConvFilter(2, max_length, kernel_dim=kernel_dim, init_scale=init_scale)
    assert f.num_scales == scales
    if max_length >= kernel_dim:  # the published count, 1 + ceil(log2(L / d)) - init_scale
        assert scales == 1 + math.ceil(math.log2(max_length / kernel_dim)) - init_scale
    assert f.kernels.shape == (scales, 2, kernel_dim)
    assert f.support == max_length


def test_sgconv():
    f = SGConvFilter(100, 1024, decay_min=2, decay_max=4)
    assert_normal(f.kernels, 0, 1)
    assert torch.allclose(f.multiplier, torch.linspace(2, 4, 100))
    assert not f.kernel_norm.any()
    assert f.kernels._optim == {"lr": 1e-3}
    learnable = SGConvFilter(1000, 64, decay="learnable", decay_min=1, decay_max=3)
    assert_uniform(learnable.decay, 1, 3)
    assert learnable.decay._optim == {"lr": 1e-3}
    assert not SGConvFilter(4, 64, decay="fixed").decay.requires_grad
    cos = SGConvFilter(6, 128, kernel_dim=32, kernel_init="cos").kernels.double()
    phase = torch.linspace(0, 2 * math.pi, 32, dtype=torch.float64)
    expected = torch.stack([(i * phase).cos() for i in range(6)])
    for kernel in cos:  # every number of periods once, in any order
        distance = torch.cdist(kernel, expected)
        assert distance.min(dim=0).values.max() < 1e-5
        assert distance.min(dim=1).values.max() < 1e-5
    assert not torch.equal(cos[0], cos[1])


def test_smpconv():
    f = SMPConvFilter(300, 784, lr=2e-3)
    assert f.weights.shape == (300, 30)
    assert (f.radius == 0.002).all()
    assert_normal(f.weights, 0, 0.02)
    z = ((1 - f.weight_coord.detach()) / 2).abs()  # half-normal
    assert_distribution(z, lambda z: 2 * torch.special.ndtr(z / 0.1) - 1)
    assert f.weight_coord.abs().max() <= 1
    assert f.weight_coord._optim == {"lr": 2e-3, "weight_decay": 0.0}
    assert f.radius._optim == {"lr": 2e-4, "weight_decay": 0.0}
    assert f.weights._optim == {"lr": 2e-3}


def test_dcls():
    f = DCLSFilter(600, 9, 33)
    assert_uniform(f.weight, -1 / 3, 1 / 3)
    assert_normal(f.P, 0, 0.5)
    assert (f.SIG == 0.23).all()
    assert f.P._optim == f.SIG._optim == {"weight_decay": 0.0}
    assert not hasattr(f.weight, "_optim")
    assert (DCLSFilter(6, 9, 33, version="triangle").SIG == 0).all()
    assert DCLSFilter(6, 9, 33, version="linear").SIG is None
    assert DCLSFilter(600, 9, 1).P.abs().max() == 0
    assert DCLSFilter(600, 9, 3).P.abs().max() == 1


def test_freeform():
    assert_normal(FreeFormFilter(10, 100).taps, 0, 0.002)
    D, M = 40, 200
    f = FreeFormFilter(D, M, init="double_exp")
    window = torch.tensor([[math.exp(-(s / M) * (D // 2) ** (d / D)) for s in range(M)] for d in range(D)])
    assert_normal(f.taps / window, 0, 0.02)
    assert f.taps._optim == {"lr": 1e-3, "weight_decay": 0.0}
    assert sum(p.numel() for p in f.parameters()) == D * M


def test_window():
    deltas = decay_rates(5, fast_decay_pct=0.3, slow_decay_pct=1.5, target=1e-2)
    assert torch.allclose(deltas[[0, -1]], torch.tensor([math.log(0.01) / 1.5, math.log(0.01) / 0.3]).double())
    assert torch.allclose(deltas.diff(), deltas.diff()[0])


def test_rtf():
    zeros = RTFFilter(700, 4)
    assert not zeros.a.any()
    assert not zeros.b.any()
    assert_normal(zeros.h_0, 0, 1)
    impulse = zeros(5)
    assert torch.equal(impulse[:, 0], zeros.h_0)
    assert not impulse[:, 1:].any()
    for init, bound in (("xavier", 0.5), ("montel", 0.25)):
        f = RTFFilter(700, 4, init=init, constraint="l1_montel")
        assert_uniform(f.a, -bound, bound)
        assert_uniform(f.b, -bound, bound)
        assert_uniform(f.scalar, 0, 1)
    assert all(p._optim == {"lr": 1e-3, "weight_decay": 0.0} for p in f.parameters())
    # Published: (D + num_a) N + D, and num_a more with the constraint.
    assert sum(p.numel() for p in RTFFilter(12, 64, num_a=3, constraint="l1_montel").parameters()) == 15 * 64 + 12 + 3
