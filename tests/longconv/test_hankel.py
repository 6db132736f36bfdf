"""Hankel-SVD realisation: exact systems come back, bounds bound, and every filter comes out stable."""

import json
import math

import pytest
import torch
from numerics import relative_l2

from longconv.distill import distill_filter, hankel_singular_values
from longconv.kernels.recurrence import modal_kernel


def implicit_filters(D, L, emb, w, width=64):
    """Untrained Hyena filters: a sine MLP of positional features, times exponential windows. (D, L) float64."""
    t = torch.linspace(0, 1, L, dtype=torch.float64)[:, None]
    bands = (emb - 1) // 2
    f = torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64)
    angle = 2 * math.pi * torch.arange(L, dtype=torch.float64)[:, None] / L * f
    x = torch.cat([t, angle.cos(), -angle.sin()], 1)
    mlp = [torch.nn.Linear(n, width, dtype=torch.float64) for n in (emb, width, width)]
    with torch.no_grad():
        for layer in mlp:
            x = torch.sin(w * layer(x))
        x = torch.nn.Linear(width, D, bias=False, dtype=torch.float64)(x)
    rate = torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, D, dtype=torch.float64)
    return (x * torch.exp(-t * rate.abs())).T.contiguous()


def exact_system(D, L, modes=5):
    """Filters of 2 modes - 1 real states: complex modes, the first one a real negative pole."""
    poles = torch.polar(
        0.8 + 0.19 * torch.rand(D, modes, dtype=torch.float64), 0.2 + 2.7 * torch.rand(D, modes).double()
    )
    residues = torch.randn(D, modes, dtype=torch.complex128)
    poles[:, 0], residues[:, 0] = -0.9, 1.0
    return poles, residues, torch.randn(D, dtype=torch.float64)


def check(k, modal, report):
    """What holds for every filter and every order."""
    L = k.shape[1]
    assert (torch.view_as_complex(torch.view_as_real(modal.poles).double()).abs() < 1).all()
    assert torch.equal(modal.passthrough, k[:, 0].to(modal.passthrough.dtype))
    kernel = modal_kernel(modal.poles.cdouble(), modal.residues.cdouble(), modal.passthrough.double(), L)
    assert kernel.isfinite().all()
    norm = k.double().norm(dim=-1)
    error = (kernel - k.double()).norm(dim=-1) / torch.where(norm > 0, norm, 1.0)
    torch.testing.assert_close(report.relative_error, error, rtol=1e-6, atol=1e-14)
    assert (report.relative_error >= report.error_bound).all()
    # The randomised norm of long filters is an estimate from below.
    assert (report.hankel_error >= (1 if L < 256 else 0.9) * report.hankel_bound).all()
    assert (report.order <= report.numerical_rank).all()
    assert (report.modes <= modal.order).all()
    assert (report.order <= 2 * report.modes).all()
    assert (report.modes >= (modal.residues != 0).sum(-1)).all()
    assert not modal.poles[torch.arange(modal.order) >= report.modes[:, None]].any()


def dense_hankel(g):
    m = len(g) // 2 + 1
    return torch.stack([g[i : i + len(g) - m + 1] for i in range(m)])


@pytest.mark.parametrize("L", [2, 3, 6, 100, 101, 600, 601])
def test_singular_values_match_dense_svd(L):
    k = torch.cat([implicit_filters(2, L, 3, 5.0), torch.randn(1, L).double() * torch.exp(-torch.arange(L) / (L / 20))])
    s = hankel_singular_values(k, 24)
    for row, taps in zip(s, k, strict=True):
        exact = torch.linalg.svdvals(dense_hankel(taps[1:]))[:24]
        # Flat spectra of long filters converge slowly, and from below; the rest to rounding.
        torch.testing.assert_close(row[: len(exact)], exact, rtol=2e-2, atol=1e-14 * exact[0].item())
        torch.testing.assert_close(row[: min(4, len(exact))], exact[:4], rtol=1e-6, atol=1e-14 * exact[0].item())
        assert not row[len(exact) :].any()


def test_singular_values_leave_lag_zero_out():
    k = torch.randn(2, 50)
    other = k.clone()
    other[:, 0] = 100.0
    assert torch.equal(hankel_singular_values(k, 5), hankel_singular_values(other, 5))
    assert hankel_singular_values(k[:, :1], 3).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("L", [60, 250, 1000, 1001])
def test_exact_system_is_recovered(L):
    poles, residues, passthrough = exact_system(4, L)
    k = modal_kernel(poles, residues, passthrough, L)
    for wanted in (9, 40):  # the order is capped at the rank, so asking for more changes nothing
        modal, report = distill_filter(k, "hankel", order=wanted)
        check(k, modal, report)
        assert report.order.tolist() == [9] * 4
        assert report.modes.tolist() == [5] * 4
        assert report.relative_error.max() < 1e-8
        found, found_residues = modal.poles.detach(), modal.residues.detach()
        mirrored = found.imag < -1e-9  # Re(R z^t) does not tell a mode from its conjugate
        found = torch.where(mirrored, found.conj(), found)
        found_residues = torch.where(mirrored, found_residues.conj(), found_residues)
        distance, match = (poles[:, :, None] - found[:, None]).abs().min(dim=-1)
        assert distance.max() < 1e-8
        assert relative_l2(found_residues.gather(1, match), residues) < 1e-6


def test_single_precision_exact_system():
    poles, residues, passthrough = exact_system(4, 500)
    k = modal_kernel(poles, residues, passthrough, 500).float()
    modal, report = distill_filter(k, "hankel", order=9)
    check(k, modal, report)
    assert modal.log_decay.dtype == torch.float32
    assert report.relative_error.max() < 1e-5
    assert relative_l2(modal(500), k) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_smooth_implicit_filters(dtype):
    k = implicit_filters(16, 2048, 3, 1.0).to(dtype)
    modal, report = distill_filter(k, "hankel", order=16)
    check(k, modal, report)
    # float32 taps are known to 6e-8, and nothing tells the last of their poles from rounding noise.
    assert report.relative_error.max() < (1e-6 if dtype == torch.float64 else 1e-4)
    assert report.relative_error.median() < 1e-6


def test_oscillatory_implicit_filters():
    k = implicit_filters(8, 1024, 33, 14.0).float()
    previous = torch.ones(8, dtype=torch.float64)
    for order in (8, 32, 96):
        modal, report = distill_filter(k, "hankel", order=order)
        check(k, modal, report)
        assert (report.relative_error <= 1.05 * previous).all()
        previous = report.relative_error
    assert previous.median() < 0.9


def test_error_is_nearly_monotone_in_order():
    k = implicit_filters(8, 300, 3, 5.0)
    best = torch.ones(8, dtype=torch.float64)
    for order in (1, 2, 3, 5, 7, 8, 10, 11, 13, 16, 19, 22, 26, 32):
        modal, report = distill_filter(k, "hankel", order=order)
        check(k, modal, report)
        # Close to the rank, and for filters that have not died out, which poles come out stable is down to rounding.
        assert (report.relative_error <= 10 * best + 1e-9).all(), order
        best = torch.minimum(best, report.relative_error)
    assert best.max() < 1e-4


def test_tolerance_chooses_an_order_for_each_filter():
    k = torch.cat([implicit_filters(8, 500, 3, 5.0), torch.zeros(1, 500).double()])
    modal, report = distill_filter(k, "hankel", tol=1e-3)
    check(k, modal, report)
    assert (report.relative_error <= 1e-3).all()
    assert len(set(report.order.tolist())) > 2
    assert report.order[-1] == 0
    tight = distill_filter(k, "hankel", tol=1e-6)[1]
    assert (tight.relative_error <= 1e-6).all()
    assert tight.order.sum() > report.order.sum()
    limited = distill_filter(k, "hankel", tol=1e-6, max_order=4)[1]
    assert limited.order.max() <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("order", [0, 1, 3, 20])
def test_special_filters(dtype, order):
    t = torch.arange(64, dtype=dtype)
    k = torch.zeros(7, 64, dtype=dtype)
    k[1, 0] = 2.0
    k[2, 3] = 1.0  # a delay: nilpotent, so no modal form is exact
    k[3] = 1.0
    k[4] = (-1) ** t
    k[5] = torch.randn(64, dtype=dtype) * torch.exp(-t / 10)
    k[6, 63] = 1.0  # at the far corner of the Hankel matrix
    modal, report = distill_filter(k, "hankel", order=order)
    check(k, modal, report)
    assert report.relative_error[:2].tolist() == [0, 0]
    assert (report.relative_error <= 1).all()
    if order >= 1:
        assert report.relative_error[3:5].max() < 1e-5
        assert report.order[3:5].tolist() == [1, 1]
    if order >= 3:
        assert report.relative_error[2] < 1e-3


@pytest.mark.parametrize("L", [1, 2, 3, 4, 5])
def test_short_filters(L):
    k = torch.randn(3, L, dtype=torch.float64)
    modal, report = distill_filter(k, "hankel", order=8)
    check(k, modal, report)
    assert modal(L).shape == (3, L)
    if L <= 2:
        assert report.relative_error.max() < 1e-14


def test_scale_does_not_matter():
    k = implicit_filters(3, 300, 3, 5.0)
    errors = [distill_filter(k * scale, "hankel", order=10)[1].relative_error for scale in (1.0, 2.0**-200, 2.0**200)]
    torch.testing.assert_close(errors[0], errors[1], rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(errors[0], errors[2], rtol=1e-3, atol=1e-12)


def test_result_depends_neither_on_threads_nor_on_the_generator():
    k = implicit_filters(20, 300, 3, 5.0)
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            before = torch.get_rng_state()
            results.append(distill_filter(k, "hankel", order=10)[0](300))
            assert torch.equal(before, torch.get_rng_state())
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6 * k.abs().max().item())
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=1e-6 * k.abs().max().item())


def test_distilled_filter_streams():
    k = implicit_filters(4, 400, 3, 1.0).float()
    modal, _ = distill_filter(k, "hankel", order=12)
    u = torch.randn(2, 4, 400)
    expected = torch.fft.irfft(torch.fft.rfft(u, 800) * torch.fft.rfft(k, 800), 800)[..., :400]
    y, _ = modal.scan(u)
    assert relative_l2(y, expected) < 1e-4


def test_report_as_dict_and_text():
    k = implicit_filters(3, 100, 3, 1.0)
    report = distill_filter(k, "hankel", order=4)[1]
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["length"] == 100
    assert len(plain["order"]) == 3
    assert len(plain["singular_values"][0]) == 5
    text = str(report)
    assert "3 filters of 100 taps" in text
    assert "relative_error" in text
    assert str(distill_filter(k[:0], "hankel", order=4)[1])


def test_errors_name_the_argument():
    k = torch.randn(2, 10)
    for kwargs, match in (
        ({}, "order and tol"),
        ({"order": 3, "tol": 0.1}, "order and tol"),
        ({"order": -1}, "order"),
        ({"tol": float("nan")}, "tol"),
        ({"tol": 0.1, "max_order": 0}, "max_order"),
        ({"order": 3, "dtype": torch.bfloat16}, "dtype"),
    ):
        with pytest.raises(ValueError, match=match):
            distill_filter(k, "hankel", **kwargs)
    for bad in (k[0], k[:, :0], k.int(), k / 0):
        with pytest.raises(ValueError, match="k must"):
            distill_filter(bad, "hankel", order=3)
    with pytest.raises(ValueError, match="n must"):
        hankel_singular_values(k, 0)
