"""TCNCA against its definition in float64, its receptive fields, and where it is MEGA."""

import math

import pytest
import torch
from numerics import assert_close

from longconv.layers import TCNCA

D, Z, H = 5, 4, 7
silu = torch.nn.functional.silu


def make(**options):
    layer = TCNCA(D, 60, **{"zdim": Z, "hdim": H, "rel_pos_bias": "simple", **options}).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


def define(layer, x, dilations, chunk_size):
    """The layer for one sequence x (L, D): convolutions as sums over taps, attention as sums over a chunk."""
    L, K, C = len(x), layer.kernel_size, chunk_size or len(x)
    w = {name: parameter.detach() for name, parameter in layer.named_parameters()}
    a = x
    for i, d in enumerate(dilations):
        ahead = 0 if layer.causal else math.ceil((K - 1) * d / 2)
        y = w["bias"][i].expand(L, D).clone()
        for t in range(L):
            for s in range(K):
                if 0 <= t + ahead - s * d < L:
                    y[t] += w["weight"][i, :, s] * a[t + ahead - s * d]
        a = a + y * y.sigmoid()
    mx = a * a.sigmoid()
    base = mx @ w["mx_proj.weight"].T + w["mx_proj.bias"]
    u, z, r, hx = base[:, :D].sigmoid(), silu(base[:, D : D + Z]), silu(base[:, D + Z : D + Z + H]), base[:, -D:]
    q, k = (z * w["qk_weight"][i] + w["qk_bias"][i] for i in range(2))
    v = silu(x @ w["v_proj.weight"].T + w["v_proj.bias"])
    o = torch.zeros(L, H, dtype=torch.float64)
    for i in range(L):
        keys = torch.arange(i // C * C, i + 1 if layer.causal else min((i // C + 1) * C, L))
        weights = w["attention.bias.weight"]
        scores = k[keys] @ q[i] / Z**0.5 + weights[(len(weights) - 1) // 2 + keys - i]
        o[i] = scores.softmax(0) @ v[keys]
    return u * (silu(hx + (r * o) @ w["h_proj.weight"].T + w["h_proj.bias"]) - x)


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("chunk_size", [None, 1, 5])
@pytest.mark.parametrize(
    ("options", "dilations"),
    [
        ({}, [1, 8, 64, 512]),
        ({"num_layers": 3, "kernel_size": 3, "dilation_factor": 2}, [1, 2, 4]),
        ({"num_layers": 2, "kernel_size": 4, "dilation_factor": 1}, [1, 1]),
        ({"num_layers": 1, "kernel_size": 1}, [1]),
    ],
    ids=str,
)
def test_equals_definition(options, dilations, chunk_size, bidirectional):
    """At lengths that the chunks divide and at others."""
    layer = make(chunk_size=chunk_size, bidirectional=bidirectional, **options)
    for L in (1, 10, 13):
        x = torch.randn(L, D, dtype=torch.float64)
        assert_close(layer(x[None])[0], define(layer, x, dilations, chunk_size), name=f"L = {L}")


@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize(("n", "K", "f"), [(2, 3, 3), (3, 2, 2), (2, 4, 1), (3, 1, 2), (1, 6, 2)])
def test_receptive_field_of_the_convolutions(n, K, f, bidirectional):
    """1 + (K-1) (f^n - 1) / (f - 1), which is K^n for f = K; without attention (its output is multiplied by zero)."""
    layer = make(num_layers=n, kernel_size=K, dilation_factor=f, bidirectional=bidirectional)
    torch.nn.init.zeros_(layer.h_proj.weight)
    field = 1 + (K - 1) * (n if f == 1 else (f**n - 1) // (f - 1))
    assert layer.summary_field == field
    assert f != K or field == K**n
    ahead = sum(math.ceil((K - 1) * f**i / 2) for i in range(n)) if bidirectional else 0
    x = torch.randn(1, 40, D, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[0, 20].square().sum(), x)
    reached = gradient[0].any(1).nonzero().flatten()
    assert (reached[0] - 20, reached[-1] - 20) == (ahead - field + 1, ahead)
    if f <= K:
        assert len(reached) == field
    assert layer.receptive_field is None  # attention over the whole sequence
    assert layer.lookahead == (None if bidirectional else 0)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
def test_receptive_field_with_chunks(bidirectional):
    layer = make(num_layers=2, kernel_size=4, dilation_factor=2, chunk_size=4, bidirectional=bidirectional)
    assert layer.receptive_field == 4 + 3 * 3
    x = torch.randn(1, 40, D, dtype=torch.float64, requires_grad=True)
    fields, aheads = [], []
    for t in range(16, 24):
        reached = torch.autograd.grad(layer(x)[0, t].square().sum(), x)[0][0].any(1).nonzero().flatten()
        fields.append(reached[-1] - reached[0] + 1)
        aheads.append(reached[-1] - t)
    assert max(fields) == layer.receptive_field
    assert max(aheads) == layer.lookahead == (3 + 2 + 3 if bidirectional else 0)


@torch.no_grad()
def test_streams_with_default_sizes():
    """A state of 4,095 samples a channel, longer than the sequence."""
    layer, x = TCNCA(16, chunk_size=32), torch.randn(2, 90, 16)
    whole, (first, state) = layer(x), layer(x[:, :37], return_state=True)
    assert sum(state.summary.window(i).shape[-1] for i in range(4)) == layer.summary_field - 1 == 4095
    outputs = [first]
    for t in range(37, 50):
        y, state = layer.step(x[:, t], state)
        outputs.append(y[:, None])
    outputs.append(layer(x[:, 50:], state=state))
    assert_close(torch.cat(outputs, 1), whole.double(), torch.float32)


def test_initialisation_and_count():
    """K taps and a bias for each channel and layer in place of MEGA's 4 N + 1; the rest is MEGA's."""
    layer = TCNCA(256, chunk_size=64, norm="layernorm")
    Z, H = 64, 512
    shared = 512 + 257 * H + 257 * (Z + H + 512) + (H + 1) * 256 + 4 * Z + 2 * Z
    assert sum(p.numel() for p in layer.parameters()) == shared + 4 * 256 * (8 + 1)
    bound = 8**-0.5
    for parameter in (layer.weight, layer.bias):
        assert parameter.abs().max() <= bound
        assert abs(parameter.std() * 3**0.5 / bound - 1) < 0.1
    assert abs(layer.mx_proj.weight.std() / 0.02 - 1) < 0.1
    assert not layer.mx_proj.bias.any()


def test_errors_name_the_cause():
    for name in ("num_layers", "kernel_size", "dilation_factor"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            TCNCA(D, zdim=Z, **{name: 0})
    with pytest.raises(ValueError, match="not a fixed convolution"):
        make().kernel(4)
