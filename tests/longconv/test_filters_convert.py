"""Converters: state dicts with the published names and shapes, and the published formulas written out once more.

Everything is in float64. The formulas follow the order of the public code where that matters (the normalisation of DCLS
and SMPConv), so that the kernels agree to rounding.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close

from longconv.filters import (
    DampedEMA,
    DCLSFilter,
    FreeFormFilter,
    HyenaFilter,
    RTFFilter,
    S4DFilter,
    S4DReadout,
    SGConvFilter,
    SMPConvFilter,
)
from longconv.filters.convert import (
    DCLS_VERSIONS,
    load_dcls,
    load_ema,
    load_freeform,
    load_rtf,
    load_s4d,
    load_sgconv,
    load_smpconv,
    sgconv_options,
)
from longconv.functional import fft_conv

f64 = torch.float64


def randn(*shape):
    return torch.randn(*shape, dtype=f64)


def rand(*shape):
    return torch.rand(*shape, dtype=f64)


# --- S4D


def s4d_state(H, N):
    return {
        "k.log_dt": math.log(0.05) + rand(H),
        "k.C": randn(H, N // 2, 2),
        "k.log_A_real": randn(H, N // 2),
        "k.A_imag": 10 * rand(H, N // 2),
    }


def test_s4d_minimal_kernel():
    H, N, L = 5, 8, 70
    state = s4d_state(H, N)
    f = S4DFilter(H, N).double()
    load_s4d(f, state, prefix="k.")
    C = torch.view_as_complex(state["k.C"])
    A = -torch.exp(state["k.log_A_real"]) + 1j * state["k.A_imag"]
    dtA = A * torch.exp(state["k.log_dt"])[:, None]
    C = C * (torch.exp(dtA) - 1.0) / A
    K = 2 * torch.einsum("hn,hnl->hl", C, torch.exp(dtA[..., None] * torch.arange(L, dtype=f64))).real
    assert_close(f(L), K)


@pytest.mark.parametrize("dt_transform", ["exp", "softplus"])
@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("n_ssm", [None, 2])
def test_s4d_full_kernel(n_ssm, real, disc, dt_transform):
    """Of two directions, with one system for both and two C's."""
    H, S, modes, L = 6, 2, 4, 60
    pair = () if real else (2,)
    state = {
        "inv_dt": -3 + rand(H, 1),
        "A_real": randn(S, modes),
        "B": randn(1, S, modes, *pair),
        "C": randn(2, H, modes, *pair),
    }
    if not real:
        state["A_imag"] = 5 * rand(S, modes)
    f = S4DFilter(H, modes if real else 2 * modes, real=real, disc=disc, n_ssm=n_ssm).double()
    ahead = S4DReadout(f)
    load_s4d(f, state, dt_transform=dt_transform)
    load_s4d(ahead, state, dt_transform=dt_transform, channel=1)
    assert f.log_A_real.shape == (n_ssm or H, modes)
    number = (lambda x: x) if real else torch.view_as_complex
    A = -state["A_real"].exp()
    A = A if real else A - 1j * state["A_imag"]
    A, B = A.repeat(H // S, 1), number(state["B"]).repeat(1, H // S, 1)
    dt = state["inv_dt"].exp() if dt_transform == "exp" else F.softplus(state["inv_dt"])
    C, dtA = B * number(state["C"]), dt * A
    if disc == "zoh":
        C, base = C * (dtA.exp() - 1) / A, dtA.exp()
    else:
        C, base = C * dt / (1 - dtA / 2), (1 + dtA / 2) / (1 - dtA / 2)
    K = 2 * (C[..., None] * base[..., None] ** torch.arange(L, dtype=f64)).sum(-2).real
    assert_close(f(L), K[0])
    assert_close(ahead(L), K[1])


# --- SGConv


def sgconv_kernel(state, mode, S, init_scale):
    """All normalised taps (C, H, taps) of `GConv` in any mode, its `kernel_norm` included."""
    decay = state.get("decay")
    multiplier = torch.ones((), dtype=f64) if decay is not None else state["multiplier"]
    interpolation = "nearest" if "nearest" in mode else "linear"
    parts = []
    for i in range(S):
        doublings = (i if "sum" in mode else max(0, i - 1)) + init_scale
        part = F.interpolate(state[f"kernel_list.{i}"], scale_factor=2.0**doublings, mode=interpolation)
        parts.append(part * multiplier ** (S - i - 1))
    if "sum" in mode:
        k = sum(F.pad(part, (0, parts[-1].shape[-1] - part.shape[-1])) for part in parts)
    else:
        k = torch.cat(parts, dim=-1)
    if decay is not None:
        k = k * torch.exp(-decay[:, None] * torch.log(torch.arange(k.shape[-1], dtype=f64) + 1))
    norm = state["kernel_norm"] if state["kernel_norm_initialized"] else k.norm(dim=-1, keepdim=True)
    return k / norm


MODES = ["cat_randn", "sum_randn", "cat_cos_nearest", "sum_randn_nearest_learnable", "cat_randn_fixed_learnable"]


@pytest.mark.parametrize("initialised", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_sgconv(mode, initialised):
    C, H, d, S, init_scale = 2, 5, 8, 4, 1
    state = {f"kernel_list.{i}": randn(C, H, d) for i in range(S)}
    if "learnable" in mode:
        state["decay"] = rand(H)
        state["multiplier"] = torch.tensor(1.0)
    else:
        state["multiplier"] = torch.linspace(2, 3, H, dtype=f64).view(1, H, 1)
    state["kernel_norm"] = rand(C, H, 1) + 1 if initialised else torch.ones(H, 1)
    state["kernel_norm_initialized"] = torch.tensor(initialised)
    L = 100
    for channel in range(C):
        f = SGConvFilter(H, L, kernel_dim=d, init_scale=init_scale, num_scales=S, **sgconv_options(mode)).double()
        f(L)  # a norm that was frozen for other weights must go
        load_sgconv(f, state, channel=channel)
        expected = sgconv_kernel(state, mode, S, init_scale)[channel]
        assert_close(f(7), expected[:, :7])
        assert_close(f(L), F.pad(expected, (0, L))[:, :L])


def test_sgconv_options():
    assert sgconv_options("cat_randn") == {
        "combine": "cat", "interpolation": "linear", "kernel_init": "randn", "decay": "geometric",
    }  # fmt: skip
    for mode in ("randn", "cat", "cat_sum_randn"):
        with pytest.raises(ValueError, match="mode must say"):
            sgconv_options(mode)


# --- MEGA


@pytest.mark.parametrize("bidirectional", [False, True])
def test_ema(bidirectional):
    D, N, L = 5, 16, 40
    rows = 2 * D if bidirectional else D
    state = {f"move.{name}": randn(rows, N, 1) for name in ("delta", "alpha", "beta")}
    state |= {"move.gamma": randn(rows, N), "move.omega": randn(D)}
    f = DampedEMA(D, bidirectional=bidirectional).double()
    omega = load_ema(f, state, prefix="move.")
    assert torch.equal(omega, state["move.omega"])
    p = torch.sigmoid(state["move.delta"])
    q = 1.0 - p * torch.sigmoid(state["move.alpha"])
    kernel = (p * state["move.beta"]) * torch.exp(torch.arange(L, dtype=f64) * torch.log(q))
    k = torch.einsum("dnl,dn->dl", kernel, state["move.gamma"] * math.sqrt(1.0 / N))
    assert_close(f(L), k)
    if bidirectional:
        # The published convolution, written as a correlation with the two halves side by side: lag 0 has both.
        k1, k2 = k.split(D)
        both = F.pad(k1, (L - 1, 0)) + F.pad(k2.flip(-1), (0, L - 1))
        u = randn(2, D, L)
        y = F.conv1d(F.pad(u, (L - 1, L - 1)), both.flip(-1)[:, None], groups=D)
        taps, reverse = f.two_sided(L)
        assert_close(fft_conv(u, taps, k_reverse=reverse), y)


# --- SMPConv


@pytest.mark.parametrize("inputs", [1, 3])
def test_smpconv(inputs):
    O, n, K = 4, 6, 51
    state = {
        "weight_coord": 2 * rand(O, n, 1) - 1,
        "radius": 0.05 + 0.3 * rand(O, n, 1),
        "weights": randn(O, inputs, n),
    }
    f = SMPConvFilter(O * inputs, K, points=n).double()
    load_smpconv(f, state)
    x = torch.linspace(-1, 1, K, dtype=f64)
    diff = F.relu(1 - (state["weight_coord"] - x).abs() / state["radius"])  # (O, n, K)
    weighted = diff / ((diff != 0).sum(1, keepdim=True, dtype=f64) + 1e-6)
    kernel = torch.matmul(state["weights"], weighted)  # (O, I, K), for a correlation: the newest sample is the last
    assert_close(f(K), kernel.flatten(0, 1).flip(-1))
    u = randn(2, 1, 80)
    y = F.conv1d(F.pad(u, (K - 1, 0)), kernel[:, :1])
    assert_close(fft_conv(u.expand(2, O, 80), f(K)[::inputs]), y)


# --- DCLS


def dcls_kernel(version, W, P, SIG, K):
    """(D, K) of `ConstructKernel1d`, in the order of a Conv1d."""
    at = torch.arange(K, dtype=f64)
    P = P + K // 2
    if version == "v0":
        low = P.floor()
        rest = (P - low)[..., None]
        first, second = (at == low[..., None]).to(f64), (at == low[..., None] + 1).to(f64)
        return (W[..., None] * (first + rest * (second - first))).sum(1)
    x = at - P[..., None]
    if version == "v1":
        X = (1 - x.abs()).relu()
    elif version == "max":
        X = (SIG.abs()[..., None] + 1.0 - x.abs()).relu()
    else:
        X = (-0.5 * (x / (SIG.abs()[..., None] + 0.27)) ** 2).exp()
    return (X / (X.sum(-1, keepdim=True) + 1e-7) * W[..., None]).sum(1)


@pytest.mark.parametrize("K", [16, 17])
@pytest.mark.parametrize("version", DCLS_VERSIONS)
def test_dcls(version, K):
    D, n = 4, 5
    state = {"weight": randn(D, 1, n), "P": (K - 1) * rand(1, D, 1, n) - K // 2, "SIG": randn(1, D, 1, n)}
    f = DCLSFilter(D, n, K, version=DCLS_VERSIONS[version]).double()
    load_dcls(f, state, version=version)
    expected = dcls_kernel(version, state["weight"][:, 0], state["P"][0, :, 0], state["SIG"][0, :, 0], K)
    assert_close(f(K), expected.flip(-1))
    u = randn(2, D, 50)
    assert_close(fft_conv(u, f(50)), F.conv1d(F.pad(u, (K - 1, 0)), expected[:, None], groups=D))


def test_dcls_rounded():
    state = {"weight": randn(1, 1, 2), "P": torch.tensor([[[[-2.4, 1.6]]]]), "SIG": randn(1, 1, 1, 2)}
    f = DCLSFilter(1, 2, 9, version="nearest").double()
    load_dcls(f, state)
    expected = torch.zeros(1, 9, dtype=f64)
    expected[0, 8 - (4 - 2)], expected[0, 8 - (4 + 2)] = state["weight"][0, 0]
    assert_close(f(9), expected)


# --- long convolutions of safari


def test_freeform():
    C, H, L, lam = 2, 4, 50, 0.5
    state = {"kernel.kernel": randn(C, H, L)}
    for window in (1, 7):
        f = FreeFormFilter(H, L, squash=lam, smooth=window).double()
        load_freeform(f, state, prefix="kernel.", channel=1)
        k = torch.nn.AvgPool1d(window, stride=1, padding=window // 2)(state["kernel.kernel"])[1]
        assert_close(f(L), F.relu(k.abs() - lam) * k.sign())


# --- RTF


def rtf_state(D, num_a, N, constrained):
    state = {"ab": 0.4 * (rand(num_a + D, N) - 0.5), "h_0": randn(D)}
    return state | ({"scalar": rand(num_a)} if constrained else {})


def rtf_denominators(state, num_a):
    a = state["ab"][:num_a]
    return a if "scalar" not in state else a / (a.abs().sum(-1) + state["scalar"].abs() + 1e-6)[:, None]


@pytest.mark.parametrize("constrained", [False, True])
@pytest.mark.parametrize("trunc_len", [32, 33])
def test_rtf(trunc_len, constrained):
    D, num_a, N = 6, 3, 8
    state = rtf_state(D, num_a, N, constrained)
    constraint = "l1_montel" if constrained else "no"
    f = RTFFilter(D, N, num_a=num_a, constraint=constraint, trunc_len=trunc_len).double()
    load_rtf(f, state)
    n = trunc_len + trunc_len % 2
    ab = F.pad(torch.cat([rtf_denominators(state, num_a), state["ab"][num_a:]]), (1, n - N - 1))
    ab[:num_a, 0] = 1.0
    spectrum = torch.fft.rfft(ab)
    ratio = spectrum[num_a:] / spectrum[:num_a].repeat_interleave(D // num_a, dim=0)
    k = torch.fft.irfft(ratio + state["h_0"][:, None])[:, :trunc_len]
    assert_close(f(trunc_len), k)
    assert_close(f(5), k[:, :5])


@pytest.mark.parametrize("constrained", [False, True])
def test_rtf2(constrained):
    D, num_a, N, L = 4, 2, 5, 60
    state = rtf_state(D, num_a, N, constrained)
    f = RTFFilter(D, N, num_a=num_a, constraint="l1_montel" if constrained else "no").double()
    load_rtf(f, state, variant="RTF2")
    a = rtf_denominators(state, num_a).repeat_interleave(D // num_a, dim=0)
    b, x, taps = state["ab"][num_a:], torch.zeros(D, N, dtype=f64), []
    for t in range(L):  # its recurrence: the state moves first, and is read then
        u = float(t == 0)
        x = torch.cat([(u - (a * x).sum(-1))[:, None], x[:, :-1]], dim=1)
        taps.append((b * x).sum(-1) + state["h_0"] * u)
    assert_close(f(L), torch.stack(taps, dim=1))


# --- what does not fit


def unchanged(f, load):
    before = {name: t.clone() for name, t in f.state_dict().items()}
    load()
    assert all(torch.equal(t, before[name]) for name, t in f.state_dict().items())


def drop(state, name):
    return {n: t for n, t in state.items() if n != name}


ema_state = {name: torch.randn(3, 2, 1) for name in ("delta", "alpha", "beta")} | {"gamma": torch.randn(3, 2)}
dcls_state = {"weight": torch.randn(2, 1, 3), "P": torch.randn(1, 2, 1, 3), "SIG": torch.randn(1, 2, 1, 3)}
sg_state = {"kernel_list.0": torch.randn(1, 2, 8), "multiplier": torch.ones(1, 2, 1)}
sg_state |= {"kernel_norm": torch.ones(1, 2, 1), "kernel_norm_initialized": torch.tensor(True)}
two_s4d = {"inv_dt": torch.randn(6, 1), "A_real": torch.randn(2, 2), "C": torch.randn(1, 6, 2, 2)}
full_s4d = {"inv_dt": torch.randn(6, 1), "A_real": torch.randn(4, 2), "C": torch.randn(1, 6, 2, 2)}


@pytest.mark.parametrize(
    ("load", "f", "state", "options", "message"),
    [
        (load_s4d, S4DFilter(5, 8), drop(s4d_state(5, 8), "k.C"), {"prefix": "k."}, "has no k.C"),
        (load_s4d, S4DFilter(5, 4), s4d_state(5, 8), {"prefix": "k."}, r"k.C has shape \(5, 4, 2\).*\(5, 2, 2\)"),
        (load_s4d, S4DFilter(6, 4), full_s4d, {}, "A_real has 4 systems"),
        (load_s4d, S4DFilter(6, 4), two_s4d | {"B": torch.ones(1, 2, 2, 2)}, {"channel": 1}, "channel must be in 0..0"),
        (load_s4d, S4DFilter(6, 4, n_ssm=1), two_s4d, {}, "A_real has 2 systems, the filter 1 for 6 channels"),
        (load_s4d, S4DReadout(S4DFilter(5, 8)), s4d_state(5, 8), {"prefix": "k."}, "without two directions and n_ssm"),
        (load_s4d, S4DFilter(5, 8, n_ssm=1), s4d_state(5, 8), {"prefix": "k."}, "without two directions and n_ssm"),
        (load_s4d, S4DFilter(6, 4), full_s4d, {"dt_transform": "relu"}, "dt_transform must be exp or softplus"),
        (load_ema, DampedEMA(3, 2), ema_state, {}, "has no omega"),
        (load_ema, DampedEMA(4, 2), ema_state, {}, r"delta has shape \(3, 2, 1\).*\(4, 2, 1\)"),
        (load_sgconv, SGConvFilter(2, 16, kernel_dim=8), sg_state, {}, "has no kernel_list.1"),
        (load_sgconv, SGConvFilter(2, 8, kernel_dim=8), sg_state | {"kernel_list.1": 0}, {}, "num_scales = 1 kernels"),
        (load_sgconv, SGConvFilter(2, 8, kernel_dim=8), sg_state, {"channel": 1}, r"channel must be in 0\.\.0"),
        (load_sgconv, SGConvFilter(2, 8, kernel_dim=8, decay="fixed"), sg_state, {}, "has no decay"),
        (load_dcls, DCLSFilter(2, 3, 9), drop(dcls_state, "SIG"), {}, "has no SIG"),
        (load_dcls, DCLSFilter(2, 3, 9), dcls_state, {"version": "v1"}, "needs a filter of version 'linear'"),
        (load_dcls, DCLSFilter(2, 3, 9), dcls_state, {"version": "v2"}, "version must be one of v0, v1, max, gauss"),
        (load_dcls, DCLSFilter(2, 3, 9), dcls_state | {"P": torch.full((1, 2, 1, 3), 5.0)}, {}, "P exceeds .* 4"),
        (load_dcls, DCLSFilter(2, 3, 8, version="linear"), dcls_state | {"P": torch.full((1, 2, 1, 3), 3.5)},
         {"version": "v0"}, "beyond the taps"),
        (load_smpconv, SMPConvFilter(2, 9, points=3), {"weights": torch.randn(2, 2, 3)}, {}, "2 x 2 kernels"),
        (load_freeform, FreeFormFilter(2, 9), {"kernel": torch.randn(1, 2, 8)}, {}, r"\(1, 2, 8\).*\(\*, 2, 9\)"),
        (load_freeform, FreeFormFilter(2, 9), {"kernel": torch.randn(1, 2, 9)}, {"channel": 2}, "channel must be"),
        (load_rtf, RTFFilter(2, 3), rtf_state(2, 2, 3, False), {}, "RTF needs a filter with trunc_len"),
        (load_rtf, RTFFilter(2, 3, trunc_len=9), rtf_state(2, 2, 3, True), {}, "constraint='l1_montel'"),
        (load_rtf, RTFFilter(2, 3, trunc_len=9), rtf_state(2, 2, 4, False), {}, r"ab has shape \(4, 4\).*\(4, 3\)"),
        (load_rtf, RTFFilter(2, 3), rtf_state(2, 2, 3, False), {"variant": "S5"}, "variant must be"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)  # fmt: skip
def test_mismatches_are_named_and_change_nothing(load, f, state, options, message):
    def attempt():
        with pytest.raises(ValueError, match=message):
            load(f, state, **options)

    unchanged(f, attempt)


def test_another_filter_is_a_type_error():
    with pytest.raises(TypeError, match="filter must be a DampedEMA, got HyenaFilter"):
        load_ema(HyenaFilter(3, 10), ema_state)
