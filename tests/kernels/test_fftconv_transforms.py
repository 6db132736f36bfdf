"""fft_conv under PyTorch's transformations: derivatives of any order, vmap, autocast, export."""

import numerics
import pytest
import torch
from torch.func import functional_call, grad, vjp, vmap

from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference
from longconv.kernels.fftconv.op import fft_conv_backward_op

pytestmark = pytest.mark.usefixtures("on_a_cpu")

TENSORS = ("u", "k", "skip", "k_reverse", "pre_gate", "post_gate")


def make(B, D, L, K, R, names=TENSORS, dtype=torch.float64):
    rows, filters = dict.fromkeys(("u", "pre_gate", "post_gate"), (B, D, L)), {"k": (D, K), "k_reverse": (D, R)}
    shapes = {**rows, **filters, "skip": (D,)}
    return {name: torch.randn(shapes[name], dtype=dtype) for name in TENSORS if name in ("u", "k") or name in names}


@pytest.mark.parametrize("names", [(), ("skip",), ("k_reverse", "post_gate"), TENSORS])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("L", [1, 5, 8])
def test_gradgradcheck(L, circular, names):
    x = {n: t.requires_grad_() for n, t in make(2, 2, L, 4, 3, names).items()}
    assert torch.autograd.gradgradcheck(
        lambda *a: fft_conv(**dict(zip(x, a, strict=True)), circular=circular), tuple(x.values())
    )


@pytest.mark.parametrize(("L", "K", "R"), [(300, 300, 100), (2000, 30, 10), (70_001, 70_001, 0), (270_001, 270_001, 0)])
def test_second_derivatives_equal_the_definition(L, K, R):
    """Of a gradient penalty, the usual reason for a double backward, in every way to compute."""
    x = make(1, 2, L, K, R, dtype=torch.float32)
    x = {n: (t / t.shape[-1] ** 0.5 if n.startswith("k") else t).requires_grad_() for n, t in x.items() if t.numel()}
    results = []
    for impl in ("torch", "reference"):
        inputs = {n: (t.double() if impl == "reference" else t) for n, t in x.items()}
        first = torch.autograd.grad(fft_conv(**inputs, impl=impl).square().sum(), inputs.values(), create_graph=True)
        penalty = sum(g.square().mean() for g in first)
        results.append(torch.autograd.grad(penalty, x.values()))
    for name, a, b in zip(x, *results, strict=True):
        numerics.assert_close(a, b, torch.float32, name=name)


def test_third_derivatives():
    x = make(1, 1, 6, 4, 2)
    leaf = x["u"].requires_grad_()

    def third(impl):
        value = fft_conv(**x, impl=impl).pow(4).sum()
        for _ in range(3):
            (g,) = torch.autograd.grad(value, leaf, create_graph=True)
            value = (g * torch.linspace(1, 2, 6, dtype=torch.float64)).sum()
        return g

    numerics.assert_close(third("torch"), third("reference"))


def test_double_backward_in_half_precision_keeps_dtypes():
    x = make(2, 2, 64, 64, 5, dtype=torch.float32)
    x = {n: (t.bfloat16() if "gate" in n or n == "u" else t).requires_grad_() for n, t in x.items()}
    first = torch.autograd.grad(fft_conv(**x).float().square().sum(), x.values(), create_graph=True)
    second = torch.autograd.grad(sum(g.float().square().mean() for g in first), x.values())
    for t, g, h in zip(x.values(), first, second, strict=True):
        assert g.dtype == h.dtype == t.dtype
        assert h.isfinite().all()


MAPPED = [("u",), ("k",), ("u", "k"), ("post_gate",), ("skip", "k_reverse"), TENSORS]


@pytest.mark.parametrize("mapped", MAPPED)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_vmap_equals_a_loop(mapped, dim):
    x = make(2, 3, 40, 30, 7)
    for name in mapped:
        x[name] = torch.stack([torch.randn_like(x[name]) for _ in range(4)], dim=dim)
    dims = tuple(dim if name in mapped else None for name in x)
    f = lambda *a: fft_conv(**dict(zip(x, a, strict=True)))  # noqa: E731
    y = vmap(f, in_dims=dims)(*x.values())
    for i in range(4):
        row = {n: t.select(dim, i) if n in mapped else t for n, t in x.items()}
        numerics.assert_close(y[i], fft_conv_reference(**row))


def test_vmap_twice_and_with_an_empty_batch():
    u, k = torch.randn(2, 3, 1, 4, 20, dtype=torch.float64), torch.randn(3, 4, 20, dtype=torch.float64)
    y = vmap(vmap(fft_conv, in_dims=(0, 0)), in_dims=(0, None))(u, k)
    for i in range(2):
        for j in range(3):
            numerics.assert_close(y[i, j], fft_conv_reference(u[i, j], k[j]))
    assert vmap(fft_conv, in_dims=(0, None))(torch.randn(3, 0, 4, 8), torch.randn(4, 8)).shape == (3, 0, 4, 8)


@pytest.mark.parametrize("circular", [False, True])
def test_gradients_per_sample(circular):
    x = make(4, 2, 30, 25, 5)

    def loss(k, k_reverse, skip, u, pre_gate, post_gate):
        gates = {"pre_gate": pre_gate[None], "post_gate": post_gate[None]}
        return fft_conv(u[None], k, k_reverse=k_reverse, skip=skip, circular=circular, **gates).square().sum()

    names = ("k", "k_reverse", "skip", "u", "pre_gate", "post_gate")
    per_sample = vmap(grad(loss, argnums=(0, 1, 2)), in_dims=(None, None, None, 0, 0, 0))(*(x[n] for n in names))
    for i in range(4):
        row = [x[n] if n in ("k", "k_reverse", "skip") else x[n][i] for n in names]
        leaves = [t.clone().requires_grad_() for t in row[:3]]
        for got, want in zip(per_sample, torch.autograd.grad(loss(*leaves, *row[3:]), leaves), strict=True):
            numerics.assert_close(got[i], want)


def test_hessian_and_vjp_of_torch_func():
    u, k = torch.randn(1, 1, 6, dtype=torch.float64), torch.randn(1, 4, dtype=torch.float64)
    f = lambda k, conv: conv(u, k).pow(3).sum()  # noqa: E731
    ours = torch.func.jacrev(torch.func.jacrev(lambda k: f(k, fft_conv)))(k)
    numerics.assert_close(ours, torch.autograd.functional.hessian(lambda k: f(k, fft_conv_reference), k))
    y, pull = vjp(fft_conv, u, k)
    du, dk = pull(torch.ones_like(y))
    assert du.shape == u.shape
    assert dk.shape == k.shape


@pytest.mark.parametrize("circular", [False, True])
def test_forward_mode(circular):
    x = make(2, 2, 12, 9, 4)
    f = lambda *a, impl="auto": fft_conv(**dict(zip(x, a, strict=True)), circular=circular, impl=impl)  # noqa: E731
    tangents = tuple(torch.randn_like(t) for t in x.values())
    y, dy = torch.func.jvp(f, tuple(x.values()), tangents)
    step = 1e-6
    ahead, behind = (f(*(t + s * d for t, d in zip(x.values(), tangents, strict=True))) for s in (step, -step))
    assert torch.allclose(dy, (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-6)
    numerics.assert_close(y, f(*x.values(), impl="reference"))


@pytest.mark.parametrize("name", ["u", "k", "skip", "pre_gate"])
def test_forward_over_reverse(name):
    """`torch.func.hessian`, against reverse over reverse of the definition."""
    x = make(1, 1, 5, 4, 2)
    loss = lambda t, impl: fft_conv(**{**x, name: t}, impl=impl).pow(3).sum()  # noqa: E731
    ours = torch.func.hessian(lambda t: loss(t, "auto"))(x[name])
    numerics.assert_close(ours, torch.autograd.functional.hessian(lambda t: loss(t, "reference"), x[name]))


def test_functional_call_over_an_ensemble_of_filters():
    class Conv(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.k = torch.nn.Parameter(torch.randn(3, 20))

        def forward(self, u):
            return fft_conv(u, self.k)

    models = [Conv() for _ in range(3)]
    stacked, _ = torch.func.stack_module_state(models)
    u = torch.randn(2, 3, 20)
    y = vmap(lambda p: functional_call(models[0], p, (u,)))(stacked)
    for i, model in enumerate(models):
        numerics.assert_close(y[i], model(u))


def test_vmap_over_boundaries_is_refused():
    with pytest.raises(ValueError, match="cu_seqlens: vmap"):
        vmap(lambda cu: fft_conv(torch.ones(1, 2, 8), torch.ones(2, 8), cu_seqlens=cu))(torch.tensor([[0, 8], [0, 8]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("L", "K"), [(128, 128), (2048, 20)])
def test_autocast(L, K, dtype):
    x = make(2, 3, L, K, 5, dtype=torch.float32)
    x = {n: (t / K**0.5 if n.startswith("k") else t).requires_grad_() for n, t in x.items()}
    expected = fft_conv(**x)
    with torch.autocast("cpu", dtype=dtype):
        y = fft_conv(**x)
    assert y.dtype == dtype
    numerics.assert_close(y, expected)
    got, want = (torch.autograd.grad(t.float().square().sum(), x.values()) for t in (y, expected))
    for name, a, b in zip(x, got, want, strict=True):
        assert a.dtype == torch.float32
        numerics.assert_close(a, b, dtype, name=name)


def test_opcheck_of_the_backward_operator():
    x = {n: t.requires_grad_() for n, t in make(2, 2, 20, 20, 3, dtype=torch.float32).items()}
    dy = torch.randn(2, 2, 20, requires_grad=True)
    args = (
        dy,
        x["u"],
        x["k"],
        x["skip"],
        x["k_reverse"],
        False,
        x["pre_gate"],
        x["post_gate"],
        [True] * 6,
        None,
        "auto",
    )
    torch.library.opcheck(fft_conv_backward_op, args)


def test_no_recompilation_when_lengths_change():
    compiled = torch.compile(lambda u, k: fft_conv(u.tanh(), k), fullgraph=True, dynamic=True)
    u, k = torch.randn(2, 3, 40), torch.randn(3, 40)
    compiled(u, k)
    with torch.compiler.set_stance("fail_on_recompile"):
        for L in (41, 64, 3000):
            u, k = torch.randn(2, 3, L), torch.randn(3, L)
            numerics.assert_close(compiled(u, k), fft_conv(u.tanh(), k))
