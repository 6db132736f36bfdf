"""fft_conv against its definition: values, gradients, dtypes, tracing, errors."""

import itertools
import math

import numerics
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference, plan
from longconv.kernels.fftconv.op import fft_conv_op

pytestmark = pytest.mark.usefixtures("on_a_cpu")

TENSORS = ("u", "k", "skip", "k_reverse", "pre_gate", "post_gate")
ALL = ("skip", "k_reverse", "pre_gate", "post_gate")


def make(B: int, D: int, L: int, K: int, R: int = 0, options: tuple[str, ...] = (), dtype=torch.float64) -> dict:
    """Unit-scale inputs: filters are scaled so that the output is of order one."""
    shapes = {
        "u": (B, D, L),
        "k": (D, K),
        "skip": (D,),
        "k_reverse": (D, R),
        "pre_gate": (B, D, L),
        "post_gate": (B, D, L),
    }
    tensors = {name: torch.randn(shapes[name], dtype=dtype) for name in ("u", "k", *options)}
    for name in ("k", "k_reverse"):
        if name in tensors:
            tensors[name] /= max(tensors[name].shape[-1], 1) ** 0.5
    return tensors


def by_definition(u, k, skip=None, k_reverse=None, circular=False, pre_gate=None, post_gate=None) -> Tensor:
    """The sum in the docstring, one lag at a time."""
    L = u.shape[-1]
    v = u if pre_gate is None else pre_gate * u
    y = torch.zeros_like(v) if skip is None else skip[:, None] * v
    taps = [(s, k[:, s]) for s in range(k.shape[-1])]
    if k_reverse is not None:
        taps += [(-s, k_reverse[:, s - 1]) for s in range(1, k_reverse.shape[-1] + 1)]
    for lag, tap in taps:
        shifted = torch.roll(v, lag, -1)
        if not circular:
            t = torch.arange(L)
            shifted = shifted * ((t - lag >= 0) & (t - lag < L))
        y = y + tap[:, None] * shifted
    return y if post_gate is None else post_gate * y


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(
    "options", list(itertools.chain.from_iterable(itertools.combinations(ALL, n) for n in (0, 1, 4)))
)
@pytest.mark.parametrize(("L", "K", "R"), [(1, 1, 1), (1, 4, 3), (2, 1, 5), (7, 5, 2), (16, 16, 16), (13, 30, 29)])
def test_reference_and_blocked_equal_the_definition(L, K, R, options, circular):
    x = make(2, 3, L, K, R, options)
    expected = by_definition(**x, circular=circular)
    for impl in ("reference", "torch", "auto"):
        numerics.assert_close(fft_conv(**x, circular=circular, impl=impl), expected, name=impl)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("L", [1, 2, 63, 64, 65, 1000, 1021, 4096, 8193])
@pytest.mark.parametrize("K", ["shorter", "equal", "longer"])
def test_blocked_forward_and_backward_equal_the_reference(L, K, circular, dtype):
    K = {"shorter": max(1, L // 3), "equal": L, "longer": L + 17}[K]
    x = make(3, 2, L, K, max(1, L // 2), ALL, torch.float32)
    activations = ("u", "pre_gate", "post_gate")
    x = {n: t.to(dtype if n in activations or dtype == torch.float64 else torch.float32) for n, t in x.items()}
    x = {n: t.requires_grad_() for n, t in x.items()}
    wide = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    dy = torch.randn(3, 2, L).to(dtype)
    y, y_wide = fft_conv(**x, circular=circular), fft_conv(**wide, circular=circular, impl="reference")
    assert y.dtype == dtype
    assert y.is_contiguous()
    numerics.assert_close(y, y_wide)
    for name, grad, expected in zip(
        x, torch.autograd.grad(y, x.values(), dy), torch.autograd.grad(y_wide, wide.values(), dy.double()), strict=True
    ):
        assert grad.dtype == x[name].dtype
        if name == "k_reverse" and L == 1 and not circular:  # no tap reaches a sample: the reference has rounding noise
            assert not grad.any()
            continue
        numerics.assert_close(grad, expected, name=f"gradient of {name}")


def test_control_the_tolerance_fails_wrong_outputs():
    x = make(2, 2, 100, 100, dtype=torch.float32)
    y = fft_conv(**x)
    for wrong in (torch.zeros_like(y), torch.roll(y, 1, -1), y * 1.1):
        with pytest.raises(AssertionError):
            numerics.assert_close(wrong, y, torch.bfloat16)


@pytest.mark.parametrize("options", [(), ("skip",), ALL])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("L", [5, 12])
def test_gradcheck(L, circular, options):
    x = {n: t.requires_grad_() for n, t in make(2, 2, L, 7, 4, options).items()}
    assert torch.autograd.gradcheck(
        lambda *a: fft_conv(**dict(zip(x, a, strict=True)), circular=circular), tuple(x.values())
    )


@pytest.mark.parametrize("wanted", TENSORS)
def test_gradient_of_one_argument_alone(wanted):
    x = make(2, 3, 50, 50, 20, ALL)
    x[wanted].requires_grad_()
    (grad,) = torch.autograd.grad(fft_conv(**x).square().sum(), x[wanted])
    (expected,) = torch.autograd.grad(fft_conv(**x, impl="reference").square().sum(), x[wanted])
    numerics.assert_close(grad, expected)


@pytest.mark.parametrize(("L", "circular"), [(50_021, False), (50_021, True), (270_001, False)])
def test_long_rows(L, circular):
    """Lengths that take a long transform and the factored one, neither of them the transform's own."""
    x = {n: t.requires_grad_() for n, t in make(1, 2, L, L, 30_000, ALL, torch.float32).items()}
    y, expected = (fft_conv(**x, circular=circular, impl=impl) for impl in ("torch", "reference"))
    numerics.assert_close(y, expected)
    dy = torch.randn_like(y)
    for name, g, e in zip(
        x, torch.autograd.grad(y, x.values(), dy), torch.autograd.grad(expected, x.values(), dy), strict=True
    ):
        numerics.assert_close(g, e, name=name)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(0, 3), D=st.integers(1, 3), L=st.integers(1, 300), K=st.integers(1, 400), R=st.integers(1, 400),
    circular=st.booleans(), options=st.sets(st.sampled_from(ALL)), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_any_shape_and_option(B, D, L, K, R, circular, options, seed):
    torch.manual_seed(seed)
    x = {n: t.requires_grad_() for n, t in make(B, D, L, K, R, tuple(sorted(options))).items()}
    y, expected = fft_conv(**x, circular=circular), fft_conv_reference(**x, circular=circular)
    numerics.assert_close(y, expected)
    for name, g, e in zip(
        x, torch.autograd.grad(y.sum(), x.values()), torch.autograd.grad(expected.sum(), x.values()), strict=True
    ):
        # Single-tap or symmetric cases can cancel to rounding noise, where a relative error means nothing.
        assert torch.allclose(g, e, rtol=1e-9, atol=1e-10), name


@pytest.mark.parametrize("factors", [(8, 9), (8, 16), (16, 27), (128, 8)])
def test_factored_transform_equals_the_direct_one(factors):
    outer, inner = factors
    factored = plan.MonarchPlan(outer, inner, torch.float64, torch.device("cpu"))
    n = outer * inner
    direct = plan.RightAnglePlan(n, torch.float64, torch.device("cpu"))
    x = torch.randn(2, 3, n - 5, dtype=torch.float64)
    in_order = factored.forward(x).view(2, 3, outer, inner).transpose(-1, -2).reshape(2, 3, n)  # f = f1 + N1 f2
    numerics.assert_close(in_order, direct.forward(x), torch.float64)
    for p in (factored, direct):
        numerics.assert_close(p.inverse(p.forward(x), torch.empty_like(x)), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", [plan.RightAnglePlan, plan.LongRightAnglePlan, plan.MonarchPlan])
@pytest.mark.parametrize(
    ("outer", "n", "m"), [(8, 8, 8), (8, 72, 72), (8, 72, 31), (16, 80, 3), (3, 75, 38), (1, 1, 1)]
)
def test_transforms_and_their_conjugates(outer, n, m, kind, dtype):
    """Both ways of a transform and of its conjugate, with the tables that they share, against the definition."""
    outer, sizes = (outer, (outer, n // outer)) if kind is plan.MonarchPlan else (1, (n,))
    p = kind(*sizes, dtype, torch.device("cpu"))
    x, y = torch.randn(2, 3, 2, m, dtype=dtype).unbind()
    t = torch.arange(m, dtype=torch.float64)
    roots = torch.exp(-2j * math.pi * (torch.arange(n, dtype=torch.float64)[:, None] + 0.25) / n)
    for conj in (False, True):
        defined = x.to(torch.complex128) @ (roots.conj() if conj else roots).pow(t).T
        in_order = p.forward(x, conj).view(3, 2, outer, n // outer).mT.reshape(3, 2, n)
        numerics.assert_close(in_order.to(torch.complex128), defined, dtype)
        numerics.assert_close(p.inverse(p.forward(x, conj), torch.empty_like(x), conj), x)
        product = p.forward(x, conj).mul_(p.forward(y, conj))
        expected = torch.stack([(x[..., : j + 1] * y[..., : j + 1].flip(-1)).sum(-1) for j in range(m)], -1)
        numerics.assert_close(p.inverse(product, torch.empty_like(x), conj), expected.double())
        lowered = p.inverse(p.forward(x, conj), torch.empty_like(x, dtype=torch.bfloat16), conj)
        numerics.assert_close(lowered, x.double())


def is_smooth(n: int) -> bool:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


@pytest.mark.parametrize("length", [1, 2, 7, 11, 97, 1021, 8193, 99991, 10**6 + 3])
def test_planned_lengths(length):
    fast = plan.next_fast_length(length)
    assert is_smooth(fast)
    assert not any(is_smooth(n) for n in range(length, fast))
    for limit in (plan.INNER_LIMIT, plan.INNER_LIMIT_WITHOUT_SETUP):
        if length > limit:
            outer, inner = plan.factorise(length, limit)
            assert length <= outer * inner <= 1.1 * length
            assert inner <= limit


def test_many_blocks_give_the_same_as_one(monkeypatch):
    from longconv.kernels.fftconv import blocked

    x = {n: t.requires_grad_() for n, t in make(5, 7, 64, 64, 64, ALL).items()}

    def run():
        y = fft_conv(**x)
        return [y, *torch.autograd.grad(y.sin().sum(), x.values())]

    whole = run()
    for points in (64 * 3, 64 * 7, 64 * 16):
        monkeypatch.setitem(blocked.BLOCK_POINTS, "cpu", points)
        for a, b in zip(run(), whole, strict=True):
            numerics.assert_close(a, b)


def test_any_strides_and_an_expanded_gradient():
    x = make(2, 4, 300, 300, 100, ALL)
    expected = fft_conv(**x)
    strided = {n: t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t for n, t in x.items()}
    strided["skip"] = torch.stack([x["skip"], x["skip"]], -1)[:, 0]
    numerics.assert_close(fft_conv(**strided), expected)
    one_row = {**x, "u": x["u"][:1].expand(2, -1, -1)}
    numerics.assert_close(fft_conv(**one_row), fft_conv(**{**x, "u": one_row["u"].contiguous()}))
    leaf = {n: t.clone().requires_grad_() for n, t in x.items()}
    from_sum = torch.autograd.grad(fft_conv(**leaf).sum(), leaf.values())  # the gradient of sum() has stride 0
    explicit = torch.autograd.grad(fft_conv(**leaf), leaf.values(), torch.ones(2, 4, 300, dtype=torch.float64))
    for a, b in zip(from_sum, explicit, strict=True):
        numerics.assert_close(a, b)


def test_gradients_are_deterministic():
    x = {n: t.requires_grad_() for n, t in make(4, 3, 500, 500, 0, (), torch.float32).items()}
    first, second = (torch.autograd.grad(fft_conv(**x).square().sum(), x.values()) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("options", [(), ALL])
@pytest.mark.parametrize("circular", [False, True])
def test_opcheck(circular, options):
    x = {n: t.requires_grad_() for n, t in make(2, 3, 40, 40, 11, options, torch.float32).items()}
    filters, gates = (
        [x.get(n) for n in names] for names in (("u", "k", "skip", "k_reverse"), ("pre_gate", "post_gate"))
    )
    torch.library.opcheck(fft_conv_op, (*filters, circular, *gates, None, "auto"))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    def f(u, k, skip, gate):
        return fft_conv(torch.tanh(u), k, skip=skip, post_gate=gate).sin()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for L in (48, 80):
        x = make(2, 3, L, L, 0, ("skip", "post_gate"), torch.float32)
        args = [t.requires_grad_() for t in x.values()]
        y, expected = compiled(*args), f(*args)
        numerics.assert_close(y, expected)
        for a, b in zip(
            torch.autograd.grad(y.sum(), args),
            torch.autograd.grad(expected.sum(), args),
            strict=True,
        ):
            numerics.assert_close(a, b)


def test_autocast_lowers_activations_and_leaves_filters():
    x = {n: t.requires_grad_() for n, t in make(2, 3, 128, 128, 64, ALL, torch.float32).items()}
    expected = fft_conv(**x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fft_conv(**x)
        compiled = torch.compile(lambda: fft_conv(**x), fullgraph=True)()
    assert y.dtype == compiled.dtype == torch.bfloat16
    numerics.assert_close(y, expected)
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.abs().sum() > 0 for t in x.values())


def test_works_under_inference_mode_then_training():
    x = make(1, 2, 777, 777, dtype=torch.float32)
    with torch.inference_mode():
        first = fft_conv(**x)
    leaf = {n: t.requires_grad_() for n, t in x.items()}
    y = fft_conv(**leaf)
    y.sum().backward()
    assert torch.equal(first, y)


def test_a_length_of_a_million_is_exact():
    u, k = torch.randn(1, 1, 10**6), torch.randn(1, 10**6) / 1e3
    numerics.assert_close(fft_conv(u, k), fft_conv(u, k, impl="reference").double())


OK = {"u": torch.randn(2, 3, 8), "k": torch.randn(3, 8)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.randn(2, 3, 0)}, "u must have at least one time step"),
        ({"u": torch.randn(3, 8)}, r"u must have shape \(B, D, L\)"),
        ({"k": torch.randn(4, 8)}, "k must have shape .* D = 3"),
        ({"k": torch.randn(3, 0)}, "k must have shape .* K >= 1"),
        ({"k": torch.randn(2, 3, 8)}, "k must have shape"),
        ({"k_reverse": torch.randn(4, 8)}, "k_reverse must have shape"),
        ({"skip": torch.randn(4)}, "skip must have shape"),
        ({"pre_gate": torch.randn(2, 1, 8)}, "pre_gate must have the shape of u"),
        ({"post_gate": torch.randn(2, 3, 7)}, "post_gate must have the shape of u"),
        ({"cu_seqlens": torch.tensor([0, 8])}, "cu_seqlens: packed sequences lie in a single row"),
        ({"impl": "fast"}, "impl must be one of"),
        ({"impl": "cuda"}, "impl must be one of"),
        ({"k": torch.randn(3, 8, device="meta")}, "k must be on the device of u"),
    ],
)  # fmt: skip
def test_bad_input_names_the_argument(change, message):
    with pytest.raises(ValueError, match=message):
        fft_conv(**{**OK, **change})


def test_integer_input_is_a_type_error():
    with pytest.raises(TypeError, match="u must be floating point"):
        fft_conv(torch.ones(1, 3, 8, dtype=torch.long), OK["k"])


def test_more_than_two_to_the_31_elements_address_with_64_bits():
    """Offsets of the blocks are slices of PyTorch views: the fake kernel shows that no 32-bit size is formed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        y = fft_conv(torch.empty(2, 2**10, 2**21), torch.empty(2**10, 2**21))
    assert y.shape == (2, 2**10, 2**21)
