"""`short_conv` in C: the definition for every layout, gate and option, at every width of vectors."""

import numerics
import pytest
import torch

from longconv.kernels.native import build
from longconv.kernels.shortconv import native, short_conv, short_conv_reference
from longconv.kernels.shortconv.fused_op import gated_short_conv_op

pytestmark = pytest.mark.skipif(not build.possible(), reason="no C compiler, or not Linux")
LAYOUTS = ("rows", "channels last", "stepped", "expanded")
NAMES = ("u", "weight", "bias", "pre_gate", "post_gate")


def lay(x, layout):
    if layout == "channels last":
        return x.mT.contiguous().mT
    if layout == "stepped":
        return torch.stack([x, torch.full_like(x, float("nan"))], -1).flatten(-2)[..., ::2]
    return x[:1].expand(x.shape) if layout == "expanded" else x


def make(B, D, L, K, layout="rows", dtype=torch.float32, names=NAMES):
    x = {name: lay(torch.randn(B, D, L).to(dtype), layout) for name in ("u", "pre_gate", "post_gate") if name in names}
    x["weight"] = torch.randn(D, K) / K**0.5
    if "bias" in names:
        x["bias"] = torch.randn(D)
    return {name: x[name] for name in NAMES if name in x}


def reference(u, weight, bias=None, pre_gate=None, post_gate=None, **options):
    y = short_conv_reference(u if pre_gate is None else u * pre_gate, weight, bias, **options)
    return y if post_gate is None else y * post_gate


def check(x, wanted=None, **options):
    wanted = list(wanted or x)
    x = {n: t.detach().requires_grad_(n in wanted) for n, t in x.items()}
    wide = {n: t.detach().double().requires_grad_(n in wanted) for n, t in x.items()}
    y, expected = short_conv(**x, **options, impl="native"), reference(**wide, **options)
    assert y.dtype == x["u"].dtype
    assert y.is_contiguous()
    numerics.assert_close(y, expected)
    dy = lay(torch.randn(y.shape).to(y.dtype), "channels last" if x["u"].stride(1) == 1 else "rows")
    grads = torch.autograd.grad(y, [x[n] for n in wanted], dy)
    exact = torch.autograd.grad(expected, [wide[n] for n in wanted], dy.double())
    for name, g, e in zip(wanted, grads, exact, strict=True):
        assert g.dtype == x[name].dtype
        # A single number may cancel out; its terms are of unit scale.
        scale = g.numel() ** 0.5 * (x["u"].numel() / x["u"].shape[1]) ** 0.5 if name in ("weight", "bias") else 1.0
        error = torch.linalg.vector_norm(g.double() - e)
        assert error <= numerics.TOLERANCE[g.dtype] * max(torch.linalg.vector_norm(e).item(), scale), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("K", [1, 3, 4, 8, 13, 128])
def test_equals_the_definition(native_width, K, layout, dtype):
    for D, L in ((1, 1), (16, 33), (37, 130)):
        check(make(2, D, L, K, layout, dtype), activation="silu")
        check(make(2, D, L, K, layout, dtype, ("u", "weight")), padding="same")


@pytest.mark.parametrize("padding", ["causal", "same"])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize(("K", "L"), [(4, 511), (4, 512), (4, 513), (1, 1024), (128, 700), (7, 3000)])
def test_rows_cut_into_items(K, L, activation, padding):
    check(make(2, 18, L, K), activation=activation, padding=padding)


@pytest.mark.parametrize("padding", ["causal", "same"])
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("cuts", [[0, 90], [0, 1, 2, 3, 40, 40, 89, 90], list(range(0, 91, 9))], ids=str)
def test_packed_sequences(cuts, activation, padding, monkeypatch):
    monkeypatch.setattr(native, "LEAST_SAMPLES", 16)
    for K in (1, 2, 5, 20):
        check(make(1, 5, 90, K), activation=activation, padding=padding, cu_seqlens=torch.tensor(cuts))


@pytest.mark.parametrize("wanted", [(n,) for n in NAMES] + [("u", "bias"), ("pre_gate", "weight")], ids=str)
@pytest.mark.parametrize("activation", [None, "silu"])
def test_only_the_wanted_gradients(wanted, activation):
    check(make(2, 20, 600, 5, "channels last"), wanted, activation=activation)


@pytest.mark.parametrize(("left", "right"), [(0, 0), (4, 3), (9, -2), (-3, 9), (2, 2), (7, 40)])
def test_any_zeros_around(left, right):
    """As the operator takes them; negative ones cut samples off."""
    for L in (30, 600):
        u, weight, bias = torch.randn(2, 3, L), torch.randn(3, 5), torch.randn(3)
        leaves = [t.requires_grad_() for t in (u, weight, bias)]
        wide = [t.detach().double().requires_grad_() for t in leaves]
        y = gated_short_conv_op(*leaves, None, None, None, left, right, True, "native")
        padded = torch.nn.functional.pad(wide[0], (left, right))
        expected = torch.nn.functional.conv1d(padded, wide[1].flip(1)[:, None], wide[2], groups=3)
        expected = torch.nn.functional.silu(expected)
        numerics.assert_close(y, expected)
        dy = torch.randn_like(y)
        grads = torch.autograd.grad(y, leaves, dy)
        for g, e in zip(grads, torch.autograd.grad(expected, wide, dy.double()), strict=True):
            numerics.assert_close(g, e, torch.float32)


def test_silu_over_the_whole_range():
    x = torch.cat([torch.linspace(-110, 110, 20_001), torch.tensor([0.0, -0.0, 1e-30, -1e-38, 3e38, -3e38])])
    x = x.view(1, 1, -1).requires_grad_()
    y = short_conv(x, torch.ones(1, 1), activation="silu", impl="native")
    wide = x.detach().double().requires_grad_()
    expected = torch.nn.functional.silu(wide)
    (slope,) = torch.autograd.grad(y.sum(), x)
    (exact,) = torch.autograd.grad(expected.sum(), wide)
    assert ((y - expected).abs() <= 3e-7 * expected.abs() + 1e-36).all()  # less than 1e-36: where exp(-x) overflows
    assert ((slope - exact).abs() <= 3e-7 * exact.abs().clamp(min=0.5)).all()  # it cancels out near -1.28
    odd = torch.tensor([float("nan"), float("inf")]).view(1, 1, 2)
    assert short_conv(odd, torch.ones(1, 1), activation="silu", impl="native")[0, 0, 0].isnan()
    assert short_conv(odd[..., 1:], torch.ones(1, 1), activation="silu", impl="native").item() == float("inf")


@pytest.mark.parametrize("layout", ["rows", "channels last"])
def test_a_nan_stays_in_its_row_channel_and_reach(layout):
    x = make(2, 20, 1100, 5, layout, names=("u", "weight", "bias"))
    clean = short_conv(**x, activation="silu", impl="native")
    x["u"][1, 3, 511] = float("nan")
    y = short_conv(**x, activation="silu", impl="native")
    touched = torch.zeros(2, 20, 1100, dtype=torch.bool)
    touched[1, 3, 511:516] = True
    assert torch.equal(y[~touched], clean[~touched])
    assert y[touched].isnan().all()


def test_sums_do_not_depend_on_threads():
    x = {n: t.requires_grad_() for n, t in make(3, 40, 1500, 4, "channels last").items()}

    def gradients(threads):
        torch.set_num_threads(threads)
        return torch.autograd.grad(short_conv(**x, activation="silu", impl="native").square().sum(), x.values())

    try:
        one, four = gradients(1), gradients(4)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, four, strict=True))


def test_operator_checks_and_second_derivatives():
    x = {n: t.requires_grad_() for n, t in make(2, 3, 20, 4, "channels last").items()}
    torch.library.opcheck(gated_short_conv_op, (*x.values(), None, 3, 0, True, "native"))

    def second(impl, x):
        first = torch.autograd.grad(
            short_conv(**x, activation="silu", impl=impl).square().sum(), x.values(), create_graph=True
        )
        return torch.autograd.grad(sum(g.square().sum() for g in first), x.values())

    wide = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    for a, b in zip(second("native", x), second("torch", wide), strict=True):
        numerics.assert_close(a, b, torch.float32)


def test_compiled_for_any_length():
    weight, bias = torch.randn(3, 4), torch.randn(3)
    compiled = torch.compile(
        lambda u: short_conv(u.tanh(), weight, bias, activation="silu"), fullgraph=True, dynamic=True
    )
    for L in (50, 77, 600):
        u = torch.randn(2, 3, L)
        numerics.assert_close(compiled(u), short_conv(u.tanh(), weight, bias, activation="silu", impl="torch").double())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(1, 2, 8, dtype=torch.float64)}, "no torch.float64"),
        ({"weight": torch.ones(2, 3, dtype=torch.float64)}, "no float64"),
        ({"pre_gate": torch.ones(1, 2, 8, dtype=torch.bfloat16)}, "gates must be of u's dtype"),
        ({"weight": torch.ones(2, 129)}, "up to 128 taps, not 129"),
    ],
)
def test_what_it_cannot_do_is_refused_or_done_otherwise(change, message):
    x = {"u": torch.ones(1, 2, 8), "weight": torch.ones(2, 3), **change}
    with pytest.raises(ValueError, match=f"impl='native' is not possible here: .*{message}"):
        short_conv(**x, impl="native")
    numerics.assert_close(short_conv(**x), reference(**{n: t.double() for n, t in x.items()}), x["u"].dtype)
    assert native.unavailable(torch.ones(1, 2, 8, device="meta"), x["weight"], None) == "it needs a CPU, not meta"


def test_auto_takes_it_and_torch_does_not(monkeypatch):
    taken = []
    for name in ("forward", "backward"):
        function = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, f=function, n=name: taken.append(n) or f(*a))
    u, weight = torch.randn(1, 2, 50, requires_grad=True), torch.randn(2, 3)
    short_conv(u, weight).sum().backward()
    assert taken == ["forward", "backward"]
    short_conv(u, weight, impl="torch").sum().backward()
    monkeypatch.setattr(build.Native, "library", lambda self: None)
    short_conv(u, weight).sum().backward()
    assert len(taken) == 2
