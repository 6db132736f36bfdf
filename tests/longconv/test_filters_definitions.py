"""Filters against their definitions, tap by tap, in plain Python and float64."""

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close

from longconv.filters import DampedEMA, DCLSFilter, FreeFormFilter, RTFFilter, S4DFilter, SGConvFilter, SMPConvFilter
from longconv.filters.rtf import reciprocal_series
from longconv.functional import fft_conv


@torch.no_grad()
def table(D: int, L: int, tap) -> torch.Tensor:
    return torch.tensor([[float(tap(d, s)) for s in range(L)] for d in range(D)], dtype=torch.float64)


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("init", ["lin", "inv", "legs", "real"])
def test_s4d(init, disc):
    f = S4DFilter(3, 6, init=init, disc=disc, dt_min=0.02, dt_max=0.3).double()

    def tap(d, t):
        total, dt = 0.0, math.exp(f.log_dt[d])
        for n in range(3):
            A = complex(-math.exp(f.log_A_real[d, n]), f.A_imag[d, n])
            C = complex(*f.C[d, n].tolist())
            if disc == "zoh":
                Abar, Bbar = cmath.exp(dt * A), (cmath.exp(dt * A) - 1) / A
            else:
                Abar, Bbar = (1 + dt * A / 2) / (1 - dt * A / 2), dt / (1 - dt * A / 2)
            total += 2 * (C * Bbar * Abar**t).real
        return total

    assert_close(f(50), table(3, 50, tap))


def test_s4d_real():
    f = S4DFilter(3, 5, real=True, dt_min=0.02, dt_max=0.3).double()

    def tap(d, t):
        dt, A = math.exp(f.log_dt[d]), [-math.exp(a) for a in f.log_A_real[d]]
        return sum(2 * f.C[d, n].item() * math.expm1(dt * A[n]) / A[n] * math.exp(dt * A[n] * t) for n in range(5))

    assert_close(f(50), table(3, 50, tap))
    assert f.state_size == 10


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
def test_s4d_discretises_its_differential_equation(disc):
    """For small steps the taps are dt times the continuous kernel 2 Re C exp(tA)."""
    f = S4DFilter(2, 4, disc=disc, dt_min=1e-4, dt_max=1e-4).double()
    t = 1e-4 * (torch.arange(3000, dtype=torch.float64) + 0.5)  # each tap holds the kernel's mean over a step
    A = torch.complex(-f.log_A_real.exp(), f.A_imag)
    continuous = 2 * (torch.view_as_complex(f.C)[..., None] * (A[..., None] * t).exp()).sum(1).real
    assert (f(3000) / 1e-4 - continuous).norm() < 1e-3 * continuous.norm()


def test_s4d_in_float32_keeps_slow_oscillations():
    """20,000 taps of the slowest channels, whose poles do not survive rounding to complex64."""
    f = S4DFilter(8, 64, dt_min=1e-4, dt_max=1e-3)
    h = f(20_000)
    assert_close(h, f.double()(20_000), torch.float32)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_ema(bidirectional):
    f = DampedEMA(3, 4, bidirectional=bidirectional).double()
    assert f.channels == (6 if bidirectional else 3)

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    def tap(d, t):
        total = 0.0
        for n in range(4):
            p = sigmoid(f.delta[d, n])
            q = 1 - p * sigmoid(f.alpha[d, n])
            total += f.gamma[d, n].item() * f.beta[d, n].item() * p * q**t / math.sqrt(4)
        return total

    assert_close(f(40), table(f.channels, 40, tap))


def test_ema_two_sided_is_the_sum_of_both_directions():
    f = DampedEMA(3, 4, bidirectional=True).double()
    u = torch.randn(2, 3, 30, dtype=torch.float64)
    back, ahead = f(30).chunk(2)
    expected = fft_conv(u, back) + fft_conv(u.flip(-1), ahead).flip(-1)
    k, k_reverse = f.two_sided(30)
    assert_close(fft_conv(u, k, k_reverse=k_reverse), expected)
    with pytest.raises(ValueError, match="bidirectional"):
        DampedEMA(3).two_sided(5)


def interpolate(w: torch.Tensor, factor: int, mode: str) -> torch.Tensor:
    """Tap j of the stretched kernel lies at (j + 1/2) / factor - 1/2 of the original, held within its ends."""
    out = []
    for j in range(len(w) * factor):
        x = min(max((j + 0.5) / factor - 0.5, 0.0), len(w) - 1)
        low = min(int(x), len(w) - 2) if len(w) > 1 else 0
        linear = w[low] * (1 - (x - low)) + (w[low + 1] * (x - low) if len(w) > 1 else 0)
        out.append(w[j // factor] if mode == "nearest" else linear)
    return torch.stack(out)


@pytest.mark.parametrize("decay", ["geometric", "learnable", "fixed"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize(("combine", "init_scale"), [("cat", 0), ("cat", 1), ("sum", 0), ("sum", 2)])
def test_sgconv(combine, init_scale, interpolation, decay):
    S, d, D = 4, 6, 3
    f = SGConvFilter(
        D, 40, kernel_dim=d, num_scales=S, init_scale=init_scale, combine=combine, interpolation=interpolation,
        decay=decay, decay_min=1.5, decay_max=3.0,
    ).double()  # fmt: skip
    f.reset_parameters()
    taps = d * 2 ** (S - 1 + init_scale)
    expected = torch.zeros(D, taps, dtype=torch.float64)
    for c in range(D):
        a = 1.5 + 1.5 * c / (D - 1) if decay == "geometric" else 1.0
        start = 0
        for i in range(S):
            factor = 2 ** ((i if combine == "sum" else max(0, i - 1)) + init_scale)
            part = interpolate(f.kernels[i, c], factor, interpolation) * a ** (S - 1 - i)
            expected[c, start : start + len(part)] += part.detach()
            start += len(part) if combine == "cat" else 0
        if decay != "geometric":
            expected[c] *= torch.tensor([(t + 1) ** -f.decay[c].item() for t in range(taps)], dtype=torch.float64)
    expected /= expected.norm(dim=-1, keepdim=True)
    assert_close(f(5), expected[:, :5])
    assert_close(f(40), F.pad(expected, (0, max(0, 40 - taps)))[:, :40])


def test_sgconv_norm_is_frozen_at_the_first_call_whatever_its_length():
    f, g = SGConvFilter(4, 300, kernel_dim=16), SGConvFilter(4, 300, kernel_dim=16)
    g.load_state_dict(f.state_dict())  # not frozen yet, and that is loaded too
    f(3)
    g(300)
    assert torch.equal(f.kernel_norm, g.kernel_norm)
    assert f._taps == 512
    assert_close(f._unnormalised(512).norm(dim=-1), f.kernel_norm.double())
    frozen = f.kernel_norm.clone()
    h = f(300)
    with torch.no_grad():
        f.kernels.mul_(3)
    assert_close(f(300), 3 * h)
    assert torch.equal(f.kernel_norm, frozen)
    other = SGConvFilter(4, 300, kernel_dim=16)
    other(300)
    other.load_state_dict(f.state_dict())
    assert torch.equal(other(300), f(300))
    other.reset_parameters()
    assert not other.kernel_norm.any()
    with torch.no_grad():
        other.kernels.mul_(5)
    assert not torch.equal(other(300), f(300))
    assert other.kernel_norm.all()
    zero = SGConvFilter(4, 300, kernel_dim=16)
    with torch.no_grad():
        zero.kernels.zero_()
    assert not zero(300).any()
    with torch.inference_mode():
        assert SGConvFilter(4, 300)(7).isfinite().all()


def test_smpconv():
    M, n = 60, 5
    f = SMPConvFilter(3, M, points=n, radius=0.3, coord_std=0.5).double()
    with torch.no_grad():
        f.radius.uniform_(0.1, 0.6)

    def tap(d, s):
        x = 1 - 2 * s / (M - 1)
        heights = [max(0.0, 1 - abs(x - f.weight_coord[d, i].item()) / f.radius[d, i].item()) for i in range(n)]
        total = sum(w.item() * h for w, h in zip(f.weights[d], heights, strict=True))
        return total / (sum(h > 0 for h in heights) + 1e-6)

    assert_close(f(M), table(3, M, tap))
    assert SMPConvFilter(3, 1)(1).shape == (3, 1)


def test_smpconv_in_float32_and_in_blocks(monkeypatch):
    f = SMPConvFilter(4, 16_000, radius=2e-4)
    assert_close(f(16_000), f.double()(16_000), torch.float32)
    whole = f(1000)
    gradients = torch.autograd.grad(whole.square().sum(), tuple(f.parameters()))
    monkeypatch.setattr("longconv.filters.smpconv._BLOCK_ELEMENTS", 4 * 30 * 77)
    monkeypatch.setattr("longconv.filters.smpconv._SPARSE", 0.0)  # every tap from every point, in blocks
    assert_close(f(1000), whole.detach())
    for g, expected in zip(torch.autograd.grad(f(1000).square().sum(), tuple(f.parameters())), gradients, strict=True):
        assert_close(g, expected)


def test_smpconv_finds_the_taps_of_every_point(monkeypatch):
    """Points at both ends, on taps and between them, with radii that end on a tap, just before it and just after."""
    M = 65  # a tap every 1/32
    f = SMPConvFilter(1, M, points=6).double()
    for _ in range(50):
        with torch.no_grad():
            f.weight_coord.copy_(torch.randint(-32, 33, (1, 6)) / 32 + torch.randint(-1, 2, (1, 6)) * 1e-9)
            f.radius.copy_(torch.randint(1, 8, (1, 6)) / 32 + torch.randint(-1, 2, (1, 6)) * 1e-9)
        for L in (M, 40):
            monkeypatch.setattr("longconv.filters.smpconv._SPARSE", 9.0)
            scattered = f(L)
            monkeypatch.setattr("longconv.filters.smpconv._SPARSE", 0.0)
            assert_close(scattered, f(L).detach())


def test_smpconv_radii_are_held_within_limits_and_come_back():
    f = SMPConvFilter(1, 50, points=2, radius=0.5).double()
    h = f(50)
    with torch.no_grad():
        f.radius.fill_(7.0)
    clipped = f(50)
    with torch.no_grad():
        f.radius.fill_(1.0)
    assert_close(clipped, f(50))
    assert not torch.equal(h, clipped)
    with torch.no_grad():
        f.radius.fill_(7.0)
    f(50).sum().backward()
    assert f.radius.grad.any()


@pytest.mark.parametrize("K", [1, 2, 16, 17])
@pytest.mark.parametrize("version", ["nearest", "linear", "triangle", "gauss"])
def test_dcls(version, K):
    D, n = 3, 4
    f = DCLSFilter(D, n, K, version=version).double()
    with torch.no_grad():
        f.P.uniform_(-(K // 2), K - 1 - K // 2)
        if f.SIG is not None:
            f.SIG.normal_()

    def spread(d, i, j):
        x = j - K // 2 - f.P[d, i].item()
        if version == "nearest":
            return float(j == math.floor(K // 2 + f.P[d, i].item() + 0.5))
        if version == "linear":
            return max(0.0, 1 - abs(x))
        width = abs(f.SIG[d, i].item())
        return max(0.0, 1 + width - abs(x)) if version == "triangle" else math.exp(-0.5 * (x / (width + 0.27)) ** 2)

    expected = torch.zeros(D, K, dtype=torch.float64)
    for d in range(D):
        for i in range(n):
            values = [spread(d, i, j) for j in range(K)]
            total = 1.0 if version == "nearest" else sum(values) + 1e-7
            for j in range(K):
                expected[d, K - 1 - j] += f.weight[d, i].item() * values[j] / total
    assert_close(f(K), expected)
    assert_close(f(K + 5), F.pad(expected, (0, 5)))
    assert f.support == K
    assert f.max_length is None


def test_dcls_positions_are_held_within_the_kernel_and_come_back():
    f = DCLSFilter(1, 1, 9).double()
    with torch.no_grad():
        f.P.fill_(30.0)
    beyond = f(9)
    f(9)[0, 0].backward()
    assert f.P.grad.any()
    with torch.no_grad():
        f.P.fill_(4.0)
    assert_close(beyond, f(9))
    assert f(9)[0].abs().argmax() == 0  # the largest position is the present


def test_dcls_moves_a_weight_to_where_the_target_has_it():
    target = torch.zeros(1, 33)
    target[0, 10] = 1.0  # lag 10 is index 22, six to the right of the middle
    f = DCLSFilter(1, 1, 33, version="gauss")
    with torch.no_grad():
        f.weight.fill_(1.0)
        f.SIG.fill_(4.0)
    optimiser = torch.optim.Adam(f.parameters(), lr=0.05)
    for _ in range(400):
        loss = (f(33) - target).square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert f.P.item() == pytest.approx(6, abs=0.1)


def test_freeform():
    M = 30
    f = FreeFormFilter(3, M, squash=0.001, smooth=5, modulate=True).double()
    f.reset_parameters()
    taps, rates = (
        f.taps.detach(),
        [math.log(0.01) / 1.5, math.log(0.01) * (1 / 1.5 + 1 / 0.3) / 2, math.log(0.01) / 0.3],
    )

    def tap(d, s):
        k = sum(taps[d, r].item() for r in range(s - 2, s + 3) if 0 <= r < M) / 5
        k = math.copysign(max(0.0, abs(k) - 0.001), k)
        return k * math.exp(-s / (M - 1) * abs(rates[d]))

    expected = table(3, M, tap)
    assert (expected == 0).any()
    assert_close(f(M), expected)
    plain = FreeFormFilter(3, M)
    assert torch.equal(plain(11), plain.taps[:, :11])


def run_rational(a, b, h_0, L):
    """The difference equation, one sample at a time."""
    N, w, taps = len(a), [], []
    for t in range(L):
        past = [w[t - n] if t >= n else 0.0 for n in range(1, N + 1)]
        taps.append((h_0 if t == 0 else 0.0) + sum(bn * x for bn, x in zip(b, past, strict=True)))
        w.append((1.0 if t == 0 else 0.0) - sum(an * x for an, x in zip(a, past, strict=True)))
    return taps


@pytest.mark.parametrize("constraint", ["no", "l1_montel"])
@pytest.mark.parametrize("num_a", [2, 4])
def test_rtf(constraint, num_a):
    f = RTFFilter(4, 5, num_a=num_a, init="xavier", constraint=constraint).double()
    with torch.no_grad():
        f.a.mul_(0.5)
    rows = []
    for d in range(4):
        a = f.a[d * num_a // 4].tolist()
        if constraint == "l1_montel":
            scale = sum(map(abs, a)) + abs(f.scalar[d * num_a // 4].item()) + 1e-6
            a = [x / scale for x in a]
        rows.append(run_rational(a, f.b[d].tolist(), f.h_0[d].item(), 100))
    expected = torch.tensor(rows, dtype=torch.float64)
    for L in (1, 2, 3, 64, 100):
        assert_close(f(L), expected[:, :L])


def test_rtf_is_the_filter_of_scipy():
    signal = pytest.importorskip("scipy.signal")
    f = RTFFilter(3, 8, init="montel").double()
    u = torch.zeros(500, dtype=torch.float64)
    u[0] = 1
    rows = []
    for d in range(3):
        a = [1.0, *f.a[d].tolist()]
        b = [x + f.h_0[d].item() * y for x, y in zip([0.0, *f.b[d].tolist()], a, strict=True)]
        rows.append(signal.lfilter(b, a, u.numpy()))
    assert_close(f(500), torch.stack([torch.from_numpy(row) for row in rows]))


def test_rtf_published_kernel_is_aliased_and_its_recurrence_corrected():
    f = RTFFilter(3, 6, init="xavier", trunc_len=41, constraint="l1_montel").double()
    with torch.no_grad():
        f.a[:, -1] = 3.0  # slow enough that tap 42, which wraps onto lag 0, is seen
        f.scalar.fill_(0.2)
    n = 42  # trunc_len is odd
    true = RTFFilter(3, 6, constraint="l1_montel").double()
    true.load_state_dict(f.state_dict())
    long = true(n * 40)
    folded = torch.cat([long[:, :1], torch.zeros(3, n - 1, dtype=torch.float64)], dim=1)
    for start in range(1, n * 40, n):  # lags from 1 on fold onto 1 .. n, and n onto 0
        block = long[:, start : start + n]
        for i in range(block.shape[1]):
            folded[:, (start + i) % n] += block[:, i]
    assert_close(f(41), folded[:, :41])
    assert not torch.allclose(f(41), long[:, :41], rtol=1e-6)
    system = f.prepare_step()
    rows = [run_rational(system.a[d].tolist(), system.b[d].tolist(), system.h_0[d].item(), 41) for d in range(3)]
    assert_close(torch.tensor(rows, dtype=torch.float64), f(41))
    with pytest.raises(ValueError, match="max_length = 41"):
        f(42)


def test_reciprocal_series_is_an_inverse():
    a = 0.1 * torch.randn(5, 7, dtype=torch.float64)
    for length in (1, 2, 5, 100, 1000):
        g = reciprocal_series(a, length)
        product = fft_conv(g[None], F.pad(a, (1, 0), value=1.0))[0]
        one = torch.zeros(5, length, dtype=torch.float64)
        one[:, 0] = 1
        assert_close(product, one)


def test_l1_montel_is_stable_whatever_the_parameters():
    f = RTFFilter(3, 16, constraint="l1_montel").double()
    with torch.no_grad():
        f.a.normal_(std=100.0)
        f.b.normal_()
        f.scalar.fill_(0.1)
    assert f(20_000).abs().max() < 1e4
