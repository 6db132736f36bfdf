"""Attention against its definition in float64, and what only attention has."""

import pytest
import torch
from numerics import assert_close

from longconv.layers import Attention


def define(layer, x):
    B, L, D = x.shape
    H = layer.num_heads
    d = D // H
    qkv = x.double() @ layer.in_proj.weight.detach().double().T
    q, k, v = (part.view(B, L, H, d) for part in qkv.split(D, -1))
    theta = layer.rope_theta ** (-torch.arange(d // 2, dtype=torch.float64) * 2 / d)
    turn = torch.polar(torch.ones(L, d // 2, dtype=torch.float64), torch.arange(L)[:, None] * theta)[:, None]
    q, k = (torch.complex(t[..., : d // 2], t[..., d // 2 :]) * turn for t in (q, k))
    scores = torch.einsum("blhd,bmhd->bhlm", q, k.conj()).real / d**0.5
    if layer.causal:
        scores = scores.masked_fill(~torch.ones(L, L, dtype=torch.bool).tril(), -torch.inf)
    y = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v).reshape(B, L, D)
    return y @ layer.out_proj.weight.detach().double().T


sides = pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "two-sided"])


@sides
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_equals_definition(heads, bidirectional):
    layer, x = Attention(16, num_heads=heads, bidirectional=bidirectional), torch.randn(2, 33, 16)
    assert_close(layer(x), define(layer, x))


def test_dropout_acts_in_training_only():
    layer, x = Attention(16, num_heads=2, dropout=0.5), torch.randn(2, 33, 16)
    assert not torch.equal(layer(x), layer(x))
    assert_close(layer.eval()(x), define(layer, x))


@sides
def test_holes_in_the_mask_are_like_absent_samples(bidirectional):
    layer, x = Attention(16, num_heads=2, bidirectional=bidirectional), torch.randn(1, 9, 16)
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0, 1]])
    keep = mask[0].bool()
    assert_close(layer(x, mask=mask)[:, keep], layer(x[:, keep]).double(), torch.float32)


@sides
def test_a_row_of_padding_is_finite_and_leaves_gradients_finite(bidirectional):
    layer, x = Attention(16, num_heads=2, bidirectional=bidirectional), torch.randn(2, 9, 16, requires_grad=True)
    mask = torch.tensor([[1] * 9, [0] * 9])
    y = layer(x, mask=mask)
    assert y.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(y.sum(), [x, *layer.parameters()]))


@pytest.mark.parametrize(("channels", "heads"), [(16, 3), (6, 2), (16, 0)])
def test_heads_must_split_the_channels(channels, heads):
    with pytest.raises(ValueError, match="num_heads"):
        Attention(channels, num_heads=heads)
