"""fft_conv_sparse against its definition, the masks it takes, and how they are chosen."""

import itertools
import math

import numerics
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longconv.functional import SpectrumMask, choose_mask, fft_conv, fft_conv_sparse
from longconv.kernels.fftconv import sparse, spectral

OPTIONS = ("skip", "pre_gate", "post_gate")


def make(B: int, D: int, L: int, K: int, options: tuple[str, ...] = (), dtype=torch.float64) -> dict:
    """Unit-scale inputs: filters are scaled so that the output is of order one."""
    shapes = {"u": (B, D, L), "k": (D, K), "skip": (D,), "pre_gate": (B, D, L), "post_gate": (B, D, L)}
    tensors = {name: torch.randn(shapes[name], dtype=dtype) for name in ("u", "k", *options)}
    tensors["k"] /= K**0.5
    return tensors


def by_definition(u, k, mask: SpectrumMask, skip=None, pre_gate=None, post_gate=None, circular=False) -> Tensor:
    """Bin by bin: the digits of f decide, and every sum is written out."""
    L, K, n = u.shape[-1], k.shape[-1], mask.n

    def inside(f: int) -> bool:
        digits = []
        for factor in mask.factors:
            digits.append(f % factor)
            f //= factor
        return all(digit < bound for digit, bound in zip(digits, mask.kept, strict=True))

    kept = [f for f in range(n) if inside(f) or (mask.symmetric and inside(-f % n))]
    v = u if pre_gate is None else pre_gate * u
    t = torch.arange(max(n, K), dtype=torch.float64)
    y = torch.zeros_like(v) if skip is None else skip[:, None] * v
    for f in kept:
        kf = (k * torch.exp(-2j * math.pi * f * t[:K] / n)).sum(-1)
        vf = (v * torch.exp(-2j * math.pi * f * t[:L] / n)).sum(-1)
        y = y + (torch.exp(2j * math.pi * f * t[:L] / n) * (vf * kf)[..., None]).real / n
    return y if post_gate is None else post_gate * y


MASKS = [
    ((5,), (3,), False),
    ((1, 6), (1, 6), True),
    ((4, 4), (1, 4), False),
    ((4, 4), (3, 2), True),
    ((8, 5), (2, 5), True),
    ((3, 7), (1, 2), False),
    ((2, 3, 4), (1, 2, 4), False),
    ((2, 2, 3, 2), (2, 1, 2, 2), True),
    ((6, 9), (4, 9), False),
]


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("factors", "kept", "symmetric"), MASKS)
def test_reference_and_fast_equal_the_definition(factors, kept, symmetric, circular):
    mask = SpectrumMask(math.prod(factors), factors, kept, symmetric)
    L = mask.n if circular else mask.n // 2
    x = make(2, 3, L, mask.n + 3 if circular else mask.n - L + 1, OPTIONS)
    expected = by_definition(**x, mask=mask, circular=circular)
    for impl in ("reference", "torch", "auto"):
        numerics.assert_close(fft_conv_sparse(**x, mask=mask, circular=circular, impl=impl), expected, name=impl)
    for outer in itertools.accumulate(factors[:-1], lambda a, b: a * b):
        of = sparse.RowsPlan(mask, outer, torch.float64, torch.device("cpu"))
        u = x["u"] * x["pre_gate"]
        c = of.inverse(of.forward(u).mul_(of.filter_spectrum(x["k"])), torch.empty_like(u))
        numerics.assert_close(x["post_gate"] * (c + x["skip"][:, None] * u), expected, name=f"outer DFT over {outer}")


@pytest.mark.parametrize("L", [1, 7, 100])
def test_a_mask_that_keeps_all_bins_changes_nothing(L):
    x = make(2, 3, L, L, OPTIONS)
    for factors in ((2 * L,), (2, L), (L, 2)):
        numerics.assert_close(fft_conv_sparse(**x, mask=SpectrumMask(2 * L, factors, factors)), fft_conv(**x))
    whole = SpectrumMask(L, (L,), (L,))
    numerics.assert_close(fft_conv_sparse(**x, mask=whole, circular=True), fft_conv(**x, circular=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("L", "K", "mask", "circular"),
    [
        (500, 521, SpectrumMask(1020, (4, 255), (1, 255)), False),
        (1021, 300, SpectrumMask(1320, (8, 165), (2, 165), True), False),
        (1000, 1300, SpectrumMask(1000, (10, 100), (3, 90)), True),
        (601, 600, SpectrumMask(1200, (12, 100), (12, 25), True), False),
    ],
)
def test_forward_and_backward_equal_the_reference(L, K, mask, circular, dtype):
    x = make(3, 2, L, K, OPTIONS, torch.float32)
    activations = ("u", "pre_gate", "post_gate")
    x = {n: t.to(dtype if n in activations or dtype == torch.float64 else torch.float32) for n, t in x.items()}
    x = {n: t.requires_grad_() for n, t in x.items()}
    wide = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    dy = torch.randn(3, 2, L).to(dtype)
    y = fft_conv_sparse(**x, mask=mask, circular=circular)
    y_wide = fft_conv_sparse(**wide, mask=mask, circular=circular, impl="reference")
    assert y.dtype == dtype
    assert y.is_contiguous()
    numerics.assert_close(y, y_wide)
    for name, grad, expected in zip(
        x, torch.autograd.grad(y, x.values(), dy), torch.autograd.grad(y_wide, wide.values(), dy.double()), strict=True
    ):
        assert grad.dtype == x[name].dtype
        numerics.assert_close(grad, expected, name=f"gradient of {name}")


@settings(max_examples=40, deadline=None)
@given(data=st.data(), B=st.integers(0, 3), D=st.integers(1, 3), symmetric=st.booleans(), circular=st.booleans(),
       options=st.sets(st.sampled_from(OPTIONS)), seed=st.integers(0, 2**20))  # fmt: skip
def test_any_shape_mask_and_option(data, B, D, symmetric, circular, options, seed):
    torch.manual_seed(seed)
    factors = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
    kept = [data.draw(st.integers(1, factor)) for factor in factors]
    mask = SpectrumMask(math.prod(factors), tuple(factors), tuple(kept), symmetric)
    assert mask.sparsity == pytest.approx(1 - mask.bins().double().mean().item())
    L = mask.n if circular else data.draw(st.integers(1, mask.n))
    K = data.draw(st.integers(1, 2 * mask.n if circular else mask.n - L + 1))
    x = {n: t.requires_grad_() for n, t in make(B, D, L, K, tuple(sorted(options))).items()}
    y, expected = (fft_conv_sparse(**x, mask=mask, circular=circular, impl=impl) for impl in ("torch", "reference"))
    assert torch.allclose(y, expected, rtol=1e-11, atol=1e-12)
    dy = torch.randn_like(y)
    for name, g, e in zip(
        x, torch.autograd.grad(y, x.values(), dy), torch.autograd.grad(expected, x.values(), dy), strict=True
    ):
        assert torch.allclose(g, e, rtol=1e-10, atol=1e-11), name


@pytest.mark.parametrize("mask", [SpectrumMask(6, (3, 2), (1, 2)), SpectrumMask(6, (2, 3), (2, 1), True)])
@pytest.mark.parametrize("options", [(), OPTIONS])
def test_gradcheck_twice(options, mask):
    x = {n: t.requires_grad_() for n, t in make(2, 2, 4, 3, options).items()}

    def f(*args):
        return fft_conv_sparse(**dict(zip(x, args, strict=True)), mask=mask)

    assert torch.autograd.gradcheck(f, tuple(x.values()))
    assert torch.autograd.gradgradcheck(f, tuple(x.values()))


def test_rows_do_not_see_each_other(monkeypatch):
    x = make(3, 2, 60, 60, (), torch.float32)
    mask = SpectrumMask(120, (4, 30), (1, 30))
    clean = fft_conv_sparse(**x, mask=mask)
    touched = torch.zeros(3, 2, dtype=torch.bool)
    touched[1, 0] = True
    x["u"][1, 0] = torch.nan
    y = fft_conv_sparse(**x, mask=mask)
    assert torch.equal(y[~touched], clean[~touched])
    assert y[touched].isnan().all()
    monkeypatch.setitem(spectral.BLOCK_POINTS, "cpu", 1)
    numerics.assert_close(fft_conv_sparse(**x, mask=mask)[~touched], clean[~touched])


def test_any_strides_and_an_expanded_gradient():
    x = make(2, 4, 30, 31, OPTIONS)
    mask = SpectrumMask(60, (4, 15), (2, 15))
    expected = fft_conv_sparse(**x, mask=mask)
    strided = {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in x.items()}
    numerics.assert_close(fft_conv_sparse(**strided, mask=mask), expected)
    leaf = {n: t.clone().requires_grad_() for n, t in x.items()}
    y = fft_conv_sparse(**leaf, mask=mask)
    from_sum = torch.autograd.grad(y.sum(), leaf.values(), retain_graph=True)  # the gradient of sum() has stride 0
    for a, b in zip(from_sum, torch.autograd.grad(y, leaf.values(), torch.ones_like(y)), strict=True):
        numerics.assert_close(a, b)


def test_a_masked_filter_is_no_longer_causal():
    impulse = torch.zeros(1, 1, 32)
    impulse[..., 16] = 1
    y = fft_conv_sparse(impulse, torch.ones(1, 4), SpectrumMask(64, (4, 16), (4, 4), True))
    assert y[..., :16].abs().max() > 1e-3


@pytest.mark.parametrize("options", [(), OPTIONS])
def test_opcheck(options):
    x = {n: t.requires_grad_() for n, t in make(2, 3, 7, 10, options, torch.float32).items()}
    args = [x.get(n) for n in ("u", "k", *OPTIONS)]
    torch.library.opcheck(sparse.OPERATOR.forward, (*args, [0, 0, 0, 4, 4, 1, 4]))


def test_compiles_without_a_graph_break():
    mask = SpectrumMask(64, (4, 16), (1, 16))

    def f(u, k, skip, gate):
        return fft_conv_sparse(torch.tanh(u), k, mask, skip=skip, post_gate=gate).sin()

    compiled = torch.compile(f, fullgraph=True, dynamic=True)
    for L in (24, 32):
        args = [t.requires_grad_() for t in make(2, 3, L, L, ("skip", "post_gate"), torch.float32).values()]
        y, expected = compiled(*args), f(*args)
        numerics.assert_close(y, expected)
        for a, b in zip(torch.autograd.grad(y.sum(), args), torch.autograd.grad(expected.sum(), args), strict=True):
            numerics.assert_close(a, b)


def test_autocast_and_vmap():
    mask = SpectrumMask(64, (4, 16), (2, 16))
    x = {n: t.requires_grad_() for n, t in make(2, 3, 32, 33, OPTIONS, torch.float32).items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fft_conv_sparse(**x, mask=mask)
    assert y.dtype == torch.bfloat16
    numerics.assert_close(y, fft_conv_sparse(**x, mask=mask))
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.abs().sum() > 0 for t in x.values())
    u, k = torch.randn(4, 2, 3, 32), torch.randn(4, 3, 33)
    numerics.assert_close(
        torch.vmap(lambda u, k: fft_conv_sparse(u, k, mask))(u, k),
        torch.stack([fft_conv_sparse(a, b, mask) for a, b in zip(u, k, strict=True)]),
    )


def test_mask_bins_follow_the_digits():
    mask = SpectrumMask(12, (3, 4), (2, 1))  # f = f1 + 3 f2 with f1 < 2, f2 < 1
    assert mask.bins().nonzero().flatten().tolist() == [0, 1]
    assert SpectrumMask(12, (3, 4), (1, 4)).bins().nonzero().flatten().tolist() == [0, 3, 6, 9]
    both = SpectrumMask(12, (3, 4), (2, 1), symmetric=True)
    assert both.bins().nonzero().flatten().tolist() == [0, 1, 11]
    assert both.sparsity == 0.75
    assert mask.response().tolist() == [1, 0.5, *[0] * 9, 0.5]
    assert SpectrumMask(12, [3, 4], [2, 1]) == mask  # lists become tuples


@pytest.mark.parametrize("symmetric", [None, False, True])
@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("n", "factors"), [(24, None), (16, [(16,), (2, 2, 4)]), (30, [(3, 10), (5, 6), (2, 3, 5)])])
def test_choose_mask_finds_the_best_of_all(n, factors, symmetric, fast):
    k = torch.randn(2, 9, dtype=torch.float64) * 0.7 ** torch.arange(9)
    full = torch.nn.functional.pad(k, (0, n - 9))
    mask, change = choose_mask(k, 0.5, n, factors=factors, symmetric=symmetric, fast=fast)
    assert mask.sparsity >= 0.5

    def measured(mask: SpectrumMask) -> float:
        masked = torch.fft.ifft(torch.fft.fft(k, n) * mask.bins()).real
        return numerics.relative_l2(masked, full)

    assert change == pytest.approx(measured(mask), rel=1e-9)
    candidates = factors or [(24,), (2, 12), (3, 8), (4, 6), (6, 4), (8, 3), (12, 2)]
    others = [
        SpectrumMask(n, of, bounds, mirrored)
        for of in candidates
        for bounds in itertools.product(*(range(1, factor + 1) for factor in of))
        for mirrored in ((False, True) if symmetric is None else (symmetric,))
        if not fast or (len(of) > 1 and bounds[1:] == of[1:])
    ]
    best = min(measured(other) for other in others if other.sparsity >= 0.5 - 1e-12)
    assert change == pytest.approx(best, rel=1e-6)


def test_choose_mask_keeps_all_of_a_filter_that_is_a_comb():
    """A filter with a period of n / 4 samples has nothing but every fourth bin."""
    k = torch.randn(16).repeat(4)
    mask, change = choose_mask(k, 0.7, 64, factors=[(4, 16)], fast=True)
    assert mask.kept == (1, 16)
    assert change < 1e-6


MASK = SpectrumMask(16, (4, 4), (1, 4))
OK = {"u": torch.randn(2, 3, 8), "k": torch.randn(3, 8), "mask": MASK}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.randn(2, 3, 0)}, ValueError, "u must have at least one time step"),
        ({"u": torch.randn(3, 8)}, ValueError, r"u must have shape \(B, D, L\)"),
        ({"k": torch.randn(4, 8)}, ValueError, "k must have shape .* D = 3"),
        ({"skip": torch.randn(4)}, ValueError, "skip must have shape"),
        ({"pre_gate": torch.randn(2, 1, 8)}, ValueError, "pre_gate must have the shape of u"),
        ({"k": torch.randn(3, 10)}, ValueError, r"mask must have n >= L \+ K - 1 = 17"),
        ({"circular": True}, ValueError, "mask must have n = L = 8"),
        ({"mask": torch.ones(16)}, TypeError, "mask must be a SpectrumMask"),
        ({"impl": "fast"}, ValueError, "impl must be one of"),
        ({"k": torch.ones(3, 8, dtype=torch.long)}, TypeError, "k must be floating point"),
    ],
)  # fmt: skip
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        fft_conv_sparse(**{**OK, **change})


def test_bad_masks_are_named():
    with pytest.raises(ValueError, match="factors must be positive integers with product n = 16"):
        SpectrumMask(16, (4, 3), (1, 1))
    for kept in ((0, 4), (1, 5), (1,)):
        with pytest.raises(ValueError, match="kept must have"):
            SpectrumMask(16, (4, 4), kept)
    with pytest.raises(ValueError, match="sparsity must be at least 0"):
        choose_mask(torch.randn(4), 1.0, 16)
    with pytest.raises(ValueError, match=r"k must have shape \(K,\) or \(D, K\) with 1 <= K <= n = 16"):
        choose_mask(torch.randn(17), 0.5, 16)
    with pytest.raises(ValueError, match="k must not be zero"):
        choose_mask(torch.zeros(4), 0.5, 16)
    with pytest.raises(ValueError, match="sparsity: no mask"):
        choose_mask(torch.randn(4), 0.9, 4)
    with pytest.raises(ValueError, match="sparsity: no mask"):
        choose_mask(torch.randn(4), 0.5, 17, fast=True)
    with pytest.raises(TypeError, match="k must be floating point"):
        choose_mask(torch.ones(4, dtype=torch.long), 0.5, 16)
