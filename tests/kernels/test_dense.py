"""Dilated convolutions that mix channels: `F.conv1d`, whatever way their gradients take."""

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close
from torch.autograd import forward_ad

from longconv.kernels.dilated import dense
from longconv.kernels.dilated.dense import dense_conv


@pytest.fixture
def taken(monkeypatch):
    """How often the gradient of the input was left to a forward convolution."""
    calls = []
    original = dense._DenseConv.apply

    def apply(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(dense._DenseConv, "apply", apply)
    return calls


def make(dtype=torch.float64, B=2, I=16, O=5, L=100, K=3, d=4):
    x = torch.randn(B, I, L + (K - 1) * d, dtype=dtype, requires_grad=True)
    return x, torch.randn(O, I, K, dtype=dtype, requires_grad=True), torch.randn(O, dtype=dtype, requires_grad=True), d


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("size", [{}, {"d": 7, "K": 4}, {"K": 2, "d": 25, "B": 1}, {"O": 1}], ids=str)
def test_values_and_gradients(size, with_bias, dtype, taken):
    x, weight, bias, d = make(dtype, **size)
    inputs = [x, weight, bias][: 2 + with_bias]
    y = dense_conv(x, weight, bias if with_bias else None, d)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.conv1d(wide[0], wide[1], wide[2] if with_bias else None, dilation=d)
    assert_close(y, expected)
    dy = torch.randn_like(y)
    for name, grad, want in zip(
        ("x", "weight", "bias"),
        torch.autograd.grad(y, inputs, dy),
        torch.autograd.grad(expected, wide, dy.double()),
        strict=False,
    ):
        assert_close(grad, want, name=name)
    assert len(taken) == 1


def test_derivatives(taken):
    x, weight, bias, _ = make(B=1, O=2, L=8, K=2, d=2)
    x, weight = x[:, :2].detach().requires_grad_(), weight[:, :2].detach().requires_grad_()

    def conv(*inputs):
        return dense._DenseConv.apply(*inputs, 2)

    assert torch.autograd.gradcheck(conv, (x, weight, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(conv, (x, weight, bias))
    (only,) = torch.autograd.grad(conv(x.detach(), weight, bias).sum(), [weight])
    assert_close(only, torch.autograd.grad(F.conv1d(x, weight, bias, dilation=2).sum(), [weight])[0])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), torch.ones_like(x))
        tangent = forward_ad.unpack_dual(conv(dual, weight.detach(), bias.detach())).tangent
    assert_close(tangent, F.conv1d(torch.ones_like(x), weight, dilation=2))


@pytest.mark.parametrize("size", [{"d": 1}, {"I": 8}, {"L": 19}, {"K": 1, "d": 9}], ids=str)
def test_what_gains_nothing_is_left_alone(size, taken):
    x, weight, bias, d = make(**size)
    assert_close(dense_conv(x, weight, bias, d), F.conv1d(x, weight, bias, dilation=d))
    assert not taken


def test_where_only_conv1d_knows_what_to_do(taken):
    x, weight, bias, d = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = dense_conv(x, weight, bias, d)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad.dtype == torch.float32
    with torch.no_grad():
        dense_conv(x, weight, bias, d)
    compiled = torch.compile(lambda x: dense_conv(x, weight, bias, d), fullgraph=True, backend="eager")
    assert_close(compiled(x), F.conv1d(x, weight, bias, dilation=d))
    slope = torch.func.grad(lambda x: dense_conv(x, weight, bias, d).square().sum())(x.detach())
    again = x.detach().requires_grad_()
    assert_close(slope, torch.autograd.grad(F.conv1d(again, weight, bias, dilation=d).square().sum(), again)[0])
    assert not taken
