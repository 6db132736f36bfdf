"""distill_filter: what every method promises, and the parts they are made of."""

import math

import pytest
import torch
from numerics import relative_l2

from longconv.distill import METHODS, distill_filter
from longconv.distill.fitting.bank import compact, count_states, from_eigenvalues
from longconv.distill.fitting.exponentials import Exponentials, Normal, inner_products, padded, power_sums
from longconv.distill.fitting.polish import polish
from longconv.distill.fitting.pursuit import pursue
from longconv.distill.fitting.residues import fit_residues
from longconv.filters import build_filter
from longconv.kernels.recurrence import modal_kernel

# Enough to come close, and quick.
QUICK = {"gradient": {"steps": 100, "lr": 0.05}}
FAMILIES = {
    "hyena, smooth": {"name": "hyena", "emb_dim": 3, "w": 1.0},
    "hyena, published": {"name": "hyena", "emb_dim": 33, "w": 14.0},
    "sgconv": {"name": "sgconv", "kernel_dim": 16},
    "free-form": {"name": "freeform", "modulate": True},
    "s4d": {"name": "s4d"},
}


def taps(family, D=4, L=400):
    torch.manual_seed(3)
    return build_filter(FAMILIES[family], D, L)(L).detach()


def modes(D, N, low=0.5, high=0.999):
    poles = torch.polar(low + (high - low) * torch.rand(D, N).double(), math.pi * torch.rand(D, N).double())
    return poles, torch.randn(D, N, dtype=torch.complex128)


def fit(k, method, **limits):
    return distill_filter(k, method, **limits, **QUICK.get(method, {}))


def check(k, modal, report, limit):
    """Stable, within the limit, and as good as reported."""
    assert (modal.poles.abs() < 1).all()
    assert (report.order <= limit).all()
    assert (report.order <= report.numerical_rank).all()
    assert torch.equal(modal.passthrough, k[:, 0].to(modal.passthrough.dtype))
    error = modal_kernel(modal.poles, modal.residues, modal.passthrough.double(), k.shape[1]) - k.double()
    norm = k.double().norm(dim=-1)
    error = error.norm(dim=-1) / torch.where(norm > 0, norm, 1.0)
    torch.testing.assert_close(report.relative_error, error, rtol=1e-6, atol=1e-13)
    assert (report.relative_error >= report.error_bound).all()
    real = (modal.poles.imag.abs() < 1e-12) & (modal.residues.imag == 0)
    states = torch.where(modal.residues == 0, 0, torch.where(real, 1, 2)).sum(-1)
    assert (states <= report.order).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_on_every_family(family, method):
    k = taps(family)
    for order in (5, torch.tensor([0, 3, 8, 12])):
        modal, report = fit(k, method, order=order)
        check(k, modal, report, torch.as_tensor(order))
        assert (report.relative_error <= 1).all()
        assert report.relative_error.min() < 0.999


@pytest.mark.parametrize("order", [4, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_best_is_the_best(family, order):
    k = taps(family)
    error = {method: fit(k, method, order=order)[1].relative_error for method in METHODS}
    noise = 1e-6  # of float32 taps, below which the methods differ by chance
    for method, other in error.items():
        assert error["best"].mean() <= 1.001 * other.mean() + noise, method


@pytest.mark.parametrize("method", ["hankel", "balanced", "rational", "best"])
@pytest.mark.parametrize("L", [300, 301])
def test_an_exact_recurrence_comes_back(method, L):
    poles, residues = modes(3, 4, 0.8, 0.99)
    k = modal_kernel(poles, residues, torch.randn(3).double(), L)
    modal, report = distill_filter(k, method, order=8)
    assert report.relative_error.max() < 1e-7
    distance = (poles[:, :, None] - modal.poles[:, None]).abs().min(-1).values
    assert distance.max() < 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_tolerance(method):
    poles, residues = modes(4, 3, 0.8, 0.97)
    k = modal_kernel(poles, residues, torch.zeros(4).double(), 200)
    k[3] = 0
    k[2] = torch.randn(200).double()  # nothing of 8 states comes near
    modal, report = fit(k, method, tol=0.3, max_order=8)
    check(k, modal, report, torch.tensor(8))
    assert (report.relative_error[:2] <= 0.3).all() or method == "gradient"  # so few steps do not get there
    assert report.order[3] == 0
    assert report.relative_error[2] > 0.3
    if method in ("best", "hankel"):  # no smaller order would do
        for row in range(2):
            smaller = distill_filter(k[row : row + 1], method, order=int(report.order[row]) - 1)[1]
            assert smaller.relative_error.item() > 0.3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_filters_that_no_recurrence_fits(method, dtype):
    t = torch.arange(80, dtype=dtype)
    k = torch.zeros(6, 80, dtype=dtype)
    k[1] = 1.05**t  # grows: no stable recurrence is exact
    k[2, 40] = 1.0  # a delay
    k[3] = torch.randn(80)
    k[4] = 1.0
    k[5] = 1e-30 * torch.exp(-t / 10)
    for order in (1, 6):
        modal, report = fit(k, method, order=order)
        check(k, modal, report, torch.tensor(order))
        assert modal(80).isfinite().all()
        assert modal(4000).isfinite().all()
        assert report.relative_error[0] == 0
    if method != "gradient":
        assert report.relative_error[4:].max() < 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("L", [1, 2, 3, 7])
def test_short_filters(method, L):
    k = torch.randn(3, L, dtype=torch.float64)
    modal, report = fit(k, method, order=2)
    check(k, modal, report, torch.tensor(2))


def test_no_filters_at_all():
    for method in METHODS:
        modal, report = fit(torch.zeros(0, 50), method, order=4)
        assert modal(50).shape == (0, 50)
        assert len(report.order) == 0


def test_errors_name_the_argument():
    k = torch.randn(3, 20)
    for options, match in (
        ({"method": "magic", "order": 2}, "unknown distillation method 'magic'"),
        ({"method": "hankel", "order": 2, "steps": 3}, "has no option steps; it has: none"),
        ({"order": torch.tensor([1, 2])}, "order must be an integer or 3 of them"),
        ({"order": 2.5}, "order must be an integer"),
        ({"order": torch.tensor([1, -2, 3])}, "not be negative"),
        ({"method": "gradient", "order": 2, "steps": 0}, "steps"),
        ({"method": "balanced", "order": 2, "excess": 1.0}, "excess"),
    ):
        with pytest.raises(ValueError, match=match):
            distill_filter(k, **options)
    k[1, 3] = math.nan
    with pytest.raises(ValueError, match="k must be finite"):
        distill_filter(k, order=2)


def test_progress_counts_the_filters():
    seen = []
    distill_filter(torch.randn(20, 60), order=2, progress=seen.append)
    assert seen[-1] == 20
    assert seen == sorted(seen)


def test_long_filters_do_not_form_the_matrix():
    poles, residues = modes(2, 3, 0.99, 0.9999)
    k = modal_kernel(poles, residues, torch.zeros(2).double(), 32768)
    for method in ("hankel", "best"):
        _, report = distill_filter(k, method, order=6)
        assert report.relative_error.max() < 1e-6


# --- The parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 64, 100, 2047])
def test_power_sums(count):
    z = torch.cat([modes(1, 20)[0][0], torch.tensor([1, -1, 1 - 1e-9, 1 - 1.1e-3, 1 - 9e-4j, 1j])])
    t = torch.arange(count, dtype=torch.float64)
    powers = z[:, None] ** t
    expected = powers.sum(-1), (t * powers).sum(-1), (t * t * powers).sum(-1)
    for actual, wanted in zip(power_sums(z, count, slopes=True), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10 * count**2)
    torch.testing.assert_close(power_sums(z, count, slopes=False)[0], expected[0], rtol=1e-10, atol=1e-10)
    assert power_sums(torch.zeros(1).cdouble(), count, slopes=True)[0] == 1  # 0^0 = 1


def test_exponentials_without_forming_them():
    poles, residues = modes(3, 5)
    M = 333
    t = torch.arange(M)
    f = poles[..., None] ** t
    columns = torch.ones(3, 10, dtype=torch.bool)
    basis, r = Exponentials(poles, columns, M), torch.randn(3, M).double()
    whole = basis.residual(padded(r), residues)
    torch.testing.assert_close(whole[:, :M], r - (residues[..., None] * f).sum(1).real)
    assert not whole[:, M:].any()
    torch.testing.assert_close(basis.correlate(padded(r)), (r[:, None] * f).sum(-1))
    torch.testing.assert_close(basis.correlate(padded(r), slope=True), (r[:, None] * t * f).sum(-1))
    Q, P = basis.sums(slopes=False)[0].chunk(2, dim=-1)
    real = torch.cat([f.real, (1j * f).real], dim=1)
    torch.testing.assert_close(inner_products(Q, P), real @ real.mT)
    fitted, left = Normal.of(torch.cat([Q, P], -1), columns).fit(basis, padded(r), torch.zeros_like(residues), sweeps=2)
    exact = torch.linalg.lstsq(real.mT, r[..., None]).solution[..., 0]
    torch.testing.assert_close(torch.cat([fitted.real, fitted.imag], 1), exact, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(left[:, :M], r - (exact[:, None] @ real)[:, 0], rtol=1e-6, atol=1e-8)


def test_polish_finds_the_poles_from_nearby():
    poles, residues = modes(4, 3, 0.7, 0.98)
    poles[:, 2] = poles[:, 2].abs() * torch.tensor([1, -1, 1, -1])  # real ones of both signs
    residues[:, 2] = 1.0
    g = modal_kernel(poles, residues, torch.zeros(4).double(), 301)[:, 1:]
    start = torch.polar(poles.abs() ** 1.2, poles.angle() * 0.97 + 0.003)
    start[:, 2] = poles[:, 2].real.sign() * poles[:, 2].abs() ** 1.3
    used = torch.ones(4, 3, dtype=torch.bool)
    found, residual = polish(start, used, g, steps=100, eps=1e-12)
    assert (residual / g.norm(dim=-1)).max() < 1e-6
    assert (found - poles).abs().max() < 1e-5
    assert (found[:, 2].imag == 0).all()


def test_polish_goes_down_and_stays_inside():
    torch.manual_seed(0)
    g = taps("hyena, published", 6)[:, 1:].double()
    order = torch.full((6,), 12)
    poles, used, residual = pursue(g, order)
    previous = residual * (1 + 1e-9)
    for steps in (1, 5, 30):
        moved, residual = polish(poles, used, g, steps=steps, eps=1e-7)
        assert (residual <= previous).all()
        assert (moved.abs() <= math.exp(-1e-7) + 1e-12).all()
        previous = residual
    basis = (moved[..., None] ** torch.arange(g.shape[1])).conj()
    real = torch.cat([basis.real, basis.imag], 1)
    exact = torch.linalg.lstsq(real.mT, g[..., None], driver="gelsd").solution
    assert relative_l2(residual, (g - (real.mT @ exact)[..., 0]).norm(dim=-1)) < 1e-6


def test_pursuit_takes_the_strongest_first():
    poles = torch.polar(torch.tensor([[0.99, 0.95]]).double(), torch.tensor([[0.5, 2.0]]).double())
    g = modal_kernel(poles, torch.tensor([[1.0 + 0j, 0.8]]), torch.zeros(1).double(), 401)[:, 1:]
    first = pursue(g, torch.tensor([2]))[0][0, 0]
    assert abs(first.angle() - 0.5) < 0.02
    found, used, _ = pursue(g, torch.tensor([4]))
    assert used.sum() == 2
    assert abs(found[0, 1].angle() - 2.0) < 0.1
    odd, used, _ = pursue(g, torch.tensor([5]))
    assert int(torch.where(odd.imag == 0, 1, 2)[used].sum()) == 5


def test_conjugate_pairs_are_halved():
    values = torch.tensor([[0.9, 0.5 + 0.1j, 0.5 - 0.1j, -0.2], [0.3j, -0.3j, 0.7, 0.0]], dtype=torch.complex128)
    poles, used = from_eigenvalues(values, torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool())
    assert used.sum(-1).tolist() == [3, 2]
    assert poles[0].tolist() == [0.9, 0.5 + 0.1j, -0.2]
    assert poles[1, :2].tolist() == [0.7, 0.3j]


def test_gradient_descends():
    poles, residues = modes(2, 3, 0.9, 0.99)
    k = modal_kernel(poles, residues, torch.zeros(2).double(), 120)
    descended = distill_filter(k, "gradient", order=6, steps=400, lr=0.02)[1].relative_error
    started = distill_filter(k, "gradient", order=6, steps=1, lr=1e-9)[1].relative_error
    assert (descended < 0.8 * started).all()


def test_modes_are_moved_together():
    poles = torch.tensor([[0, 0.5 + 0.1j, 0, 0.3], [0.2j, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.complex128)
    packed, used = compact(poles, poles != 0)
    assert torch.equal(packed, torch.tensor([[0.5 + 0.1j, 0.3], [0.2j, 0], [0, 0]], dtype=torch.complex128))
    assert torch.equal(used, packed != 0)
    assert [x.shape for x in compact(poles[:0], poles[:0] != 0)] == [(0, 0), (0, 0)]


def test_a_pursuit_makes_no_more_columns_than_there_are_modes():
    """Poles to begin with stand in other columns in every row, and take different shares of the order."""
    torch.manual_seed(0)
    g = torch.randn(3, 300, dtype=torch.float64) * torch.linspace(1, 0.1, 300)
    begun = torch.zeros(3, 6, dtype=torch.complex128)
    begun[0, 5], begun[1, :2] = 0.9 + 0.3j, torch.tensor([0.8 + 0.2j, 0.5])
    order = torch.tensor([6, 5, 8])
    poles, used, residual = pursue(g, order, begun, begun != 0)
    assert poles.shape[1] == int(used.sum(-1).max())
    assert ((poles[0] == 0.9 + 0.3j) & used[0]).any()
    assert (count_states(poles, used) == order + torch.tensor([2, 3, 0])).all()
    fitted = fit_residues(poles, used, g, 1e-16)[1]
    torch.testing.assert_close(residual, fitted, rtol=2e-3, atol=0)
    assert (residual < torch.linalg.vector_norm(g, dim=-1)).all()
