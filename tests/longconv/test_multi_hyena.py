"""MultiHyena against its definition in float64; with one channel a head it is Hyena."""

import pytest
import torch
from numerics import assert_close

from longconv.layers import Hyena, MultiHyena

FILTER = {"name": "hyena", "emb_dim": 5, "order": 8, "w": 3.0}


def define(layer, x):
    """The matrices z_t = k_t v_t^T of every head, convolved by sums over lags, in float64."""
    p = {name: t.detach().double() for name, t in layer.named_parameters()}
    B, L, D = x.shape
    M, N = layer.num_heads, D // layer.num_heads
    u = x.double() @ p["in_proj.weight"].T + p["in_proj.bias"]
    short = torch.zeros_like(u) + p["short_bias"]
    K = layer.short_weight.shape[1]
    centre = 0 if layer.causal else K // 2
    for t in range(L):
        for s in range(K):
            if 0 <= t + centre - s < L:
                short[:, t] += p["short_weight"][:, s] * u[:, t + centre - s]
    q, k, v = (branch.reshape(B, L, M, N) for branch in short.split(D, dim=-1))
    h = layer.long_filters[0](L).detach().double()
    y = torch.zeros(B, L, M, N, dtype=torch.float64)
    for b in range(B):
        for m in range(M):
            z = [torch.outer(k[b, t, m], v[b, t, m]) for t in range(L)]
            for t in range(L):
                mixed = p["skip"][m] * z[t]
                for s in range(t + 1):
                    mixed = mixed + h[m, s] * z[t - s]
                for s in range(t + 1, 0 if layer.causal else L):
                    mixed = mixed + layer.long_filters[1](L).detach().double()[m, s - t - 1] * z[s]
                y[b, t, m] = mixed.T @ q[b, t, m]
    return y.reshape(B, L, D) @ p["out_proj.weight"].T + p["out_proj.bias"]


@pytest.mark.parametrize("filter", [FILTER, {"name": "modal", "order": 3}], ids=["hyena", "modal"])
@pytest.mark.parametrize("num_heads", [1, 2, 3, 6])
def test_equals_definition(num_heads, filter):
    layer, x = MultiHyena(6, 30, num_heads=num_heads, filter=filter), torch.randn(2, 17, 6)
    assert layer.long_filters[0](5).shape == (num_heads, 5)
    assert_close(layer(x), define(layer, x))


@pytest.mark.parametrize("short_kernel", [1, 4])
def test_two_sided_equals_definition(short_kernel):
    layer = MultiHyena(6, 12, num_heads=3, filter=FILTER, short_kernel=short_kernel, bidirectional=True)
    x = torch.randn(2, 12, 6)
    assert_close(layer(x), define(layer, x))


def test_one_channel_a_head_is_hyena():
    ours, hyena = MultiHyena(6, 30, num_heads=6, filter=FILTER), Hyena(6, 30, filter=FILTER)
    tensors = hyena.state_dict()
    ours.load_state_dict({**tensors, "skip": tensors["skip"][0]})
    x = torch.randn(2, 17, 6)
    assert_close(ours(x), hyena(x).double(), torch.float32)


def test_fewer_parameters_than_hyena():
    """Only the last layer of the filter's network and the skip depend on the number of filters."""

    def count(layer):
        return sum(p.numel() for p in layer.parameters())

    assert count(Hyena(64, 30)) - count(MultiHyena(64, 30, num_heads=8)) == (64 - 8) * 64 + (64 - 8)


def test_modal_layer_has_a_state_of_constant_size():
    layer = MultiHyena(6, num_heads=2, filter={"name": "modal", "order": 3})
    assert layer.is_recurrent
    assert not MultiHyena(6, 8, num_heads=2).is_recurrent
    with torch.no_grad():
        state = layer.init_state(4)
        _, far = layer(torch.randn(4, 500, 6), return_state=True)
    assert state.long.state.shape == far.long.state.shape == (4 * 9, 2, 3)
    assert state.short.shape == (4, 18, 2)


def test_options_are_checked():
    for options, message in [
        ({"num_heads": 4}, "num_heads must divide channels = 6, got 4"),
        ({"num_heads": 0}, "num_heads"),
        ({"num_heads": 2, "short_kernel": 0}, "short_kernel"),
    ]:
        with pytest.raises(ValueError, match=message):
            MultiHyena(6, 30, **options)
    with pytest.raises(ValueError, match="needs max_length"):
        MultiHyena(6, num_heads=2)


def test_initialisation():
    layer = MultiHyena(512, 16, num_heads=256, short_kernel=4)
    for tensor in (layer.short_weight, layer.short_bias):
        assert 0.98 * 4**-0.5 < tensor.abs().max() <= 4**-0.5
        assert abs(tensor.std() * 12**0.5 / (2 * 4**-0.5) - 1) < 0.05
    assert abs(layer.skip.mean()) < 4 / 16
    assert abs(layer.skip.std() - 1) < 0.2
