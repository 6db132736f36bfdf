"""fft_conv2d against its definition: values, gradients, dtypes, tracing, errors."""

import numerics
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longconv.functional import fft_conv2d
from longconv.kernels.fftconv import conv2d, spectral

OPTIONS = ("skip", "pre_gate", "post_gate")


def make(image: tuple[int, ...], taps: tuple[int, int], options: tuple[str, ...] = (), dtype=torch.float64) -> dict:
    """Unit-scale inputs: filters are scaled so that the output is of order one."""
    D = image[1]
    shapes = {"u": image, "k": (D, *taps), "skip": (D,), "pre_gate": image, "post_gate": image}
    tensors = {name: torch.randn(shapes[name], dtype=dtype) for name in ("u", "k", *options)}
    tensors["k"] /= (taps[0] * taps[1]) ** 0.5
    return tensors


def by_definition(u, k, skip=None, pre_gate=None, post_gate=None, origin=(0, 0), circular=(False, False)) -> Tensor:
    """The sum in the docstring, one tap at a time."""
    H, W = u.shape[2:]
    v = u if pre_gate is None else pre_gate * u
    y = torch.zeros_like(v) if skip is None else skip[:, None, None] * v
    h, w = torch.arange(H)[:, None], torch.arange(W)
    for i in range(k.shape[1]):
        for j in range(k.shape[2]):
            a, b = i - origin[0], j - origin[1]
            inside = (circular[0] | ((h - a >= 0) & (h - a < H))) & (circular[1] | ((w - b >= 0) & (w - b < W)))
            y = y + k[:, i, j, None, None] * torch.roll(v, (a, b), (-2, -1)) * inside
    return y if post_gate is None else post_gate * y


@pytest.mark.parametrize("circular", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    ("image", "taps", "origin"),
    [
        ((2, 3, 1, 1), (1, 1), (0, 0)),
        ((1, 2, 1, 5), (4, 3), (1, 1)),
        ((2, 2, 7, 2), (5, 5), (2, 4)),
        ((2, 2, 5, 11), (13, 27), (6, 13)),
        ((1, 3, 6, 8), (2, 3), (-2, 5)),
        ((1, 1, 4, 4), (3, 3), (-4, 0)),  # nothing reaches a pixel, unless it wraps
        ((1, 2, 3, 64), (3, 3), (1, 1)),  # narrow filter: a padded circle over W
    ],
)
def test_reference_and_blocked_equal_the_definition(image, taps, origin, circular):
    x = make(image, taps, OPTIONS)
    expected = by_definition(**x, origin=origin, circular=circular)
    for impl in ("reference", "torch", "auto"):
        numerics.assert_close(fft_conv2d(**x, origin=origin, circular=circular, impl=impl), expected, name=impl)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "taps", "origin", "circular"),
    [
        ((31, 64), (31, 64), "causal", False),
        ((64, 17), (80, 33), "center", (True, False)),
        ((13, 29), (40, 31), ("causal", "center"), (False, True)),
        ((1, 50), (1, 7), (0, 3), False),
        ((50, 1), (101, 1), "center", False),
    ],
)
def test_forward_and_backward_equal_the_reference(size, taps, origin, circular, dtype):
    x = make((3, 2, *size), taps, OPTIONS, torch.float32)
    activations = ("u", "pre_gate", "post_gate")
    x = {n: t.to(dtype if n in activations or dtype == torch.float64 else torch.float32) for n, t in x.items()}
    x = {n: t.requires_grad_() for n, t in x.items()}
    wide = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    dy = torch.randn(3, 2, *size).to(dtype)
    how = {"origin": origin, "circular": circular}
    y, y_wide = fft_conv2d(**x, **how), fft_conv2d(**wide, **how, impl="reference")
    assert y.dtype == dtype
    assert y.is_contiguous()
    numerics.assert_close(y, y_wide)
    for name, grad, expected in zip(
        x, torch.autograd.grad(y, x.values(), dy), torch.autograd.grad(y_wide, wide.values(), dy.double()), strict=True
    ):
        assert grad.dtype == x[name].dtype
        numerics.assert_close(grad, expected, name=f"gradient of {name}")


def test_equals_torch_conv2d_and_the_naive_fft():
    x = make((2, 3, 20, 30), (7, 5), (), torch.float64)
    torch_conv = torch.nn.functional.conv2d(x["u"], x["k"].flip(1, 2)[:, None], padding="same", groups=3)
    numerics.assert_close(fft_conv2d(**x, origin="center"), torch_conv)
    s = (27, 35)
    naive = torch.fft.irfft2(torch.fft.rfft2(x["u"], s) * torch.fft.rfft2(x["k"], s), s)[..., :20, :30]
    numerics.assert_close(fft_conv2d(**x), naive)


def test_large_images_go_through_the_tiled_transpose():
    x = make((1, 2, 200, 190), (200, 190), (), torch.float32)
    assert conv2d.TILED_TRANSPOSE <= 200 * 190
    s = (400, 380)
    u, k = x["u"].double(), x["k"].double()
    wide = torch.fft.irfft2(torch.fft.rfft2(u, s) * torch.fft.rfft2(k, s), s)
    numerics.assert_close(fft_conv2d(**x), wide[..., :200, :190], torch.float32)
    reverse = torch.fft.irfft2(torch.fft.rfft2(u, s) * torch.fft.rfft2(k.flip(1, 2), s), s)
    y = fft_conv2d(u, k.flip(1, 2), origin=(199, 189))
    numerics.assert_close(y, reverse[..., 199:399, 189:379])


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(0, 3), D=st.integers(1, 3), size=st.tuples(*[st.integers(1, 20)] * 2),
    taps=st.tuples(*[st.integers(1, 25)] * 2), origin=st.tuples(*[st.integers(-5, 30)] * 2),
    circular=st.tuples(st.booleans(), st.booleans()), options=st.sets(st.sampled_from(OPTIONS)),
    seed=st.integers(0, 2**20),
)  # fmt: skip
def test_any_shape_and_option(B, D, size, taps, origin, circular, options, seed):
    torch.manual_seed(seed)
    x = {n: t.requires_grad_() for n, t in make((B, D, *size), taps, tuple(sorted(options))).items()}
    y, expected = (fft_conv2d(**x, origin=origin, circular=circular, impl=impl) for impl in ("torch", "reference"))
    assert torch.allclose(y, expected, rtol=1e-11, atol=1e-12)
    dy = torch.randn_like(y)
    for name, g, e in zip(
        x, torch.autograd.grad(y, x.values(), dy), torch.autograd.grad(expected, x.values(), dy), strict=True
    ):
        assert torch.allclose(g, e, rtol=1e-10, atol=1e-11), name


@pytest.mark.parametrize("circular", [(False, True), (False, False)])
@pytest.mark.parametrize("options", [(), OPTIONS])
def test_gradcheck_twice(options, circular):
    x = {n: t.requires_grad_() for n, t in make((2, 1, 2, 3), (3, 2), options).items()}

    def f(*args):
        return fft_conv2d(**dict(zip(x, args, strict=True)), origin=(1, 0), circular=circular)

    assert torch.autograd.gradcheck(f, tuple(x.values()))
    assert torch.autograd.gradgradcheck(f, tuple(x.values()))


@pytest.mark.parametrize("wanted", ["u", "k", *OPTIONS])
def test_gradient_of_one_argument_alone(wanted):
    x = make((2, 3, 9, 10), (9, 12), OPTIONS)
    x[wanted].requires_grad_()
    for graph in (False, True):
        (grad,) = torch.autograd.grad(fft_conv2d(**x).square().sum(), x[wanted], create_graph=graph)
        (expected,) = torch.autograd.grad(fft_conv2d(**x, impl="reference").square().sum(), x[wanted])
        numerics.assert_close(grad, expected)


def test_images_and_channels_do_not_see_each_other():
    x = make((3, 2, 12, 10), (12, 10), (), torch.float32)
    clean = fft_conv2d(**x)
    x["u"][1, 0] = torch.nan
    y = fft_conv2d(**x)
    touched = torch.zeros(3, 2, dtype=torch.bool)
    touched[1, 0] = True
    assert torch.equal(y[~touched], clean[~touched])
    assert y[touched].isnan().all()


def test_many_blocks_give_the_same_as_one(monkeypatch):
    x = {n: t.requires_grad_() for n, t in make((5, 7, 8, 6), (8, 6), OPTIONS).items()}

    def run():
        y = fft_conv2d(**x)
        return [y, *torch.autograd.grad(y.sin().sum(), x.values())]

    whole = run()
    for points in (1, 8 * 16 * 3, 8 * 16 * 16):
        monkeypatch.setitem(spectral.BLOCK_POINTS, "cpu", points)
        for a, b in zip(run(), whole, strict=True):
            numerics.assert_close(a, b)


def test_any_strides_and_an_expanded_gradient():
    x = make((2, 4, 9, 14), (9, 14), OPTIONS)
    expected = fft_conv2d(**x)
    strided = {n: t.transpose(0, -1).contiguous().transpose(0, -1) for n, t in x.items()}
    numerics.assert_close(fft_conv2d(**strided), expected)
    one = {**x, "u": x["u"][:1].expand(2, -1, -1, -1)}
    numerics.assert_close(fft_conv2d(**one), fft_conv2d(**{**x, "u": one["u"].contiguous()}))
    leaf = {n: t.clone().requires_grad_() for n, t in x.items()}
    from_sum = torch.autograd.grad(fft_conv2d(**leaf).sum(), leaf.values())  # the gradient of sum() has stride 0
    explicit = torch.autograd.grad(fft_conv2d(**leaf), leaf.values(), torch.ones(2, 4, 9, 14, dtype=torch.float64))
    for a, b in zip(from_sum, explicit, strict=True):
        numerics.assert_close(a, b)


@pytest.mark.parametrize("options", [(), OPTIONS])
def test_opcheck(options):
    x = {n: t.requires_grad_() for n, t in make((2, 3, 7, 8), (5, 9), options, torch.float32).items()}
    args = [x.get(n) for n in ("u", "k", *OPTIONS)]
    torch.library.opcheck(conv2d.OPERATOR.forward, (*args, [1, 2, 0, 1]))
    dy = torch.randn(2, 3, 7, 8)
    needs = [True, True, *(n in options for n in OPTIONS)]
    torch.library.opcheck(conv2d.OPERATOR.backward, (dy, *args, [1, 2, 0, 1], needs))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    def f(u, k, skip, gate):
        return fft_conv2d(torch.tanh(u), k, origin=("center", "causal"), skip=skip, post_gate=gate).sin()

    compiled = torch.compile(f, fullgraph=True, dynamic=dynamic)
    for H, W in ((8, 12), (10, 9)):
        x = make((2, 3, H, W), (H, W), ("skip", "post_gate"), torch.float32)
        args = [t.requires_grad_() for t in x.values()]
        y, expected = compiled(*args), f(*args)
        numerics.assert_close(y, expected)
        for a, b in zip(torch.autograd.grad(y.sum(), args), torch.autograd.grad(expected.sum(), args), strict=True):
            numerics.assert_close(a, b)


def test_autocast_lowers_activations_and_leaves_filters():
    x = {n: t.requires_grad_() for n, t in make((2, 3, 16, 16), (16, 16), OPTIONS, torch.float32).items()}
    expected = fft_conv2d(**x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = fft_conv2d(**x)
    assert y.dtype == torch.bfloat16
    numerics.assert_close(y, expected)
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.abs().sum() > 0 for t in x.values())


def test_vmap_over_inputs_filters_and_gradients():
    u, k = torch.randn(4, 2, 3, 5, 6, dtype=torch.float64), torch.randn(4, 3, 4, 4, dtype=torch.float64)
    gate = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    shared = torch.vmap(lambda u: fft_conv2d(u, k[0], post_gate=gate))(u)
    own = torch.vmap(lambda u, k: fft_conv2d(u, k, post_gate=gate), in_dims=(0, 0))(u, k)
    by_filter = torch.vmap(lambda k: fft_conv2d(u[0], k))(k)
    grads = torch.func.vmap(torch.func.grad(lambda k, u: fft_conv2d(u, k).square().sum()), in_dims=(None, 0))(k[0], u)
    for i in range(4):
        numerics.assert_close(shared[i], fft_conv2d(u[i], k[0], post_gate=gate))
        numerics.assert_close(own[i], fft_conv2d(u[i], k[i], post_gate=gate))
        numerics.assert_close(by_filter[i], fft_conv2d(u[0], k[i]))
        leaf = k[0].clone().requires_grad_()
        numerics.assert_close(grads[i], torch.autograd.grad(fft_conv2d(u[i], leaf).square().sum(), leaf)[0])


def test_forward_mode_and_hessians_of_torch_func():
    x = make((1, 2, 3, 2), (2, 2), OPTIONS)

    def f(k, skip, pre_gate, post_gate):
        return fft_conv2d(x["u"], k, skip=skip, pre_gate=pre_gate, post_gate=post_gate, impl=impl).square().sum()

    args = tuple(x[n] for n in ("k", *OPTIONS))
    found = {}
    for impl in ("torch", "reference"):
        found[impl] = torch.func.hessian(f, argnums=(0, 1, 2, 3))(*args)
    for row, expected in zip(found["torch"], found["reference"], strict=True):
        for a, b in zip(row, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-10, atol=1e-11)


OK = {"u": torch.randn(2, 3, 8, 9), "k": torch.randn(3, 8, 9)}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"u": torch.randn(2, 3, 0, 9)}, ValueError, "u must have at least one pixel"),
        ({"u": torch.randn(3, 8, 9)}, ValueError, r"u must have shape \(B, D, H, W\)"),
        ({"k": torch.randn(4, 8, 9)}, ValueError, "k must have shape .* D = 3"),
        ({"k": torch.randn(3, 8, 0)}, ValueError, "k must have shape .* KH, KW >= 1"),
        ({"k": torch.randn(3, 8)}, ValueError, "k must have shape"),
        ({"skip": torch.randn(4)}, ValueError, "skip must have shape"),
        ({"pre_gate": torch.randn(2, 1, 8, 9)}, ValueError, "pre_gate must have the shape of u"),
        ({"post_gate": torch.randn(2, 3, 9, 8)}, ValueError, "post_gate must have the shape of u"),
        ({"origin": "middle"}, ValueError, "origin must be integers, 'causal' or 'center'"),
        ({"origin": (1, 2, 3)}, ValueError, "origin must be one value or a pair"),
        ({"origin": 1.5}, TypeError, "origin must be integers"),
        ({"circular": (True,)}, ValueError, "circular must be one value or a pair"),
        ({"circular": "yes"}, TypeError, "circular must be a bool"),
        ({"impl": "fast"}, ValueError, "impl must be one of"),
        ({"u": torch.ones(2, 3, 8, 9, dtype=torch.long)}, TypeError, "u must be floating point"),
        ({"k": torch.randn(3, 8, 9, device="meta")}, ValueError, "k must be on the device of u"),
    ],
)  # fmt: skip
def test_bad_input_names_the_argument(change, error, message):
    with pytest.raises(error, match=message):
        fft_conv2d(**{**OK, **change})
