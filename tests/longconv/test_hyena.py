"""The Hyena layer against its definition in float64, as a recurrence, and with weights of the authors' code."""

import math

import pytest
import torch
from numerics import assert_close
from torch import nn

from longconv.filters import ModalFilter
from longconv.layers import Hyena, load_safari_state_dict, long_conv


def define(layer, x):
    """The recurrence from the paper, with every convolution as a sum over lags, in float64."""
    p = {name: t.detach().double() for name, t in layer.named_parameters()}
    _, L, D = x.shape
    K = layer.short_weight.shape[1]
    centre = 0 if layer.causal else K // 2
    u = x.double() @ p["in_proj.weight"].T + p["in_proj.bias"]
    short = torch.zeros_like(u)
    for t in range(L):
        for s in range(K):
            if 0 <= t + centre - s < L:
                short[:, t] += p["short_weight"][:, s] * u[:, t + centre - s]
        short[:, t] += p["short_bias"]
    branches = short.split(D, dim=-1)
    v = branches[-1]
    for stage in range(layer.order - 1):
        v = branches[layer.order - 1 - stage] * v
        h, y = layer.long_filters[stage](L).detach().double(), torch.zeros_like(v)
        for t in range(L):
            for s in range(t + 1):
                y[:, t] += h[:, s] * v[:, t - s]
        if not layer.causal:
            ahead = layer.long_filters[layer.order - 1 + stage](L).detach().double()
            for t in range(L):
                for s in range(t + 1, L):
                    y[:, t] += ahead[:, s - t - 1] * v[:, s]
        v = y + p["skip"][stage] * v
    return (branches[0] * v) @ p["out_proj.weight"].T + p["out_proj.bias"]


@pytest.mark.parametrize("filter", ["hyena", {"name": "modal", "order": 3}], ids=["hyena", "modal"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_equals_definition(order, filter):
    layer, x = Hyena(6, 30, order=order, filter=filter), torch.randn(2, 17, 6)
    assert_close(layer(x), define(layer, x))


@pytest.mark.parametrize("short_kernel", [1, 3, 4])
@pytest.mark.parametrize("order", [2, 3])
def test_two_sided_equals_definition(order, short_kernel):
    layer = Hyena(6, 30, order=order, short_kernel=short_kernel, bidirectional=True)
    assert len(layer.long_filters) == 2 * (order - 1)
    assert not layer.is_recurrent
    x = torch.randn(2, 17, 6)
    assert_close(layer(x), define(layer, x))


def test_one_convolution_for_both_sides(monkeypatch):
    calls = []
    monkeypatch.setattr(long_conv, "fft_conv", lambda u, k, **options: calls.append(options) or u)
    Hyena(6, 30, order=3, bidirectional=True)(torch.randn(2, 17, 6))
    assert [options["k_reverse"].shape for options in calls] == [(6, 17), (6, 17)]


def test_dropout_acts_in_training_only():
    layer, x = Hyena(6, 30, dropout=0.5), torch.randn(2, 17, 6)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert_close(layer(x), define(layer, x))


def test_modal_layer_has_no_limit_and_a_state_of_constant_size():
    layer = Hyena(6, filter={"name": "modal", "order": 3})
    assert layer.is_recurrent
    assert not Hyena(6, 8).is_recurrent
    with torch.no_grad():
        state = layer.init_state(2)
        assert state.long[0].modes is not None
        _, far = layer(torch.randn(2, 500, 6), return_state=True)
        _, further = layer.step(torch.randn(2, 6), far)
    assert [s.state.shape for s in (state.long[0], far.long[0], further.long[0])] == [(2, 6, 3)] * 3
    assert further.long[0].modes is far.long[0].modes  # evaluated once, not once a token


def test_steps_evaluate_the_implicit_filter_once():
    layer, calls = Hyena(6, 30), []
    layer.long_filters[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        _, state = layer(torch.randn(2, 10, 6), return_state=True)
        for _ in range(20):
            _, state = layer.step(torch.randn(2, 6), state)
    assert len(calls) == 1


def test_packed_sequences_share_one_evaluation_of_the_filter():
    layer, lengths = Hyena(6, 30), []
    layer.long_filters[0].register_forward_hook(lambda _, arguments, taps: lengths.append(taps.shape[1]))
    layer(torch.randn(1, 25, 6), cu_seqlens=torch.tensor([0, 3, 3, 14, 25]))
    assert lengths == [11]


def test_filters_can_be_replaced():
    layer, x = Hyena(6, 30), torch.randn(2, 17, 6)
    layer.long_filters[0] = ModalFilter(6, 4)
    y = layer(x)
    assert_close(y, define(layer, x))
    state = layer.init_state(2)
    for t in range(17):
        y_t, state = layer.step(x[:, t], state)
        assert_close(y_t, y[:, t].double(), torch.float32)


def test_options_are_checked():
    for options, message in [({"order": 1}, "order"), ({"short_kernel": 0}, "short_kernel"), ({}, "needs max_length")]:
        with pytest.raises(ValueError, match=message):
            Hyena(6, None if not options else 30, **options)


class SafariLike(nn.Module):
    """A miniature of the published operator: its parameter names, shapes and conventions, nothing of its code."""

    def __init__(self, d, m, order, width, emb, inner, w):
        super().__init__()
        self.d, self.order = d, order
        channels = d * (order - 1)
        self.in_proj, self.out_proj = nn.Linear(d, d * (order + 1)), nn.Linear(d, d)
        wide = d * (order + 1)
        self.short_filter = nn.Conv1d(wide, wide, 3, padding=2, groups=wide)
        f = self.filter_fn = nn.Module()
        f.bias = nn.Parameter(torch.randn(channels))
        f.pos_emb, f.modulation, sine = nn.Module(), nn.Module(), nn.Module()
        bands = (emb - 1) // 2
        t = torch.linspace(0, 1, m)[None, :, None]
        phase = torch.linspace(1e-4, bands - 1, bands) * 2 * math.pi * torch.arange(m)[None, :, None] / m
        z = torch.exp(-1j * phase)
        f.pos_emb.register_parameter("z", nn.Parameter(torch.cat([t, z.real, z.imag], -1)))
        f.pos_emb.register_buffer("t", t)
        f.modulation.register_buffer(
            "deltas", torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, channels)[None, None]
        )
        sine.freq = nn.Parameter(w * torch.rand(1, width))
        sine.forward = lambda x: torch.sin(sine.freq * x)
        layers = [nn.Linear(emb, width), sine]
        for _ in range(inner):
            layers += [nn.Linear(width, width), sine]
        f.implicit_filter = nn.Sequential(*layers, nn.Linear(width, channels, bias=False))

    def forward(self, x):
        L, f = x.shape[1], self.filter_fn
        u = self.short_filter(self.in_proj(x).mT)[..., :L]
        *gates, v = u.split(self.d, dim=1)
        h = f.implicit_filter(f.pos_emb.z[:, :L]) * torch.exp(-f.pos_emb.t[:, :L] * f.modulation.deltas.abs())
        h = h[0].T.reshape(self.d, self.order - 1, L)  # channel d * (order - 1) + o
        bias = f.bias.view(self.d, self.order - 1)
        for o, gate in enumerate(reversed(gates[1:])):
            v = v * gate
            y = torch.fft.irfft(torch.fft.rfft(v, 2 * L) * torch.fft.rfft(h[:, o], 2 * L), 2 * L)[..., :L]
            v = y + bias[:, o, None] * v
        return self.out_proj((v * gates[0]).mT)


@pytest.mark.parametrize(("order", "emb", "inner"), [(2, 3, 2), (2, 9, 1), (3, 5, 2), (4, 3, 0)])
def test_published_weights_give_the_same_numbers(order, emb, inner):
    theirs = SafariLike(8, 40, order, 16, emb, inner, w=5.0)
    ours = Hyena(8, 40, order=order, filter={"name": "hyena", "emb_dim": emb, "order": 16, "inner_layers": inner})
    tensors = {f"layers.0.mixer.{name}": tensor for name, tensor in theirs.state_dict().items()}
    load_safari_state_dict(ours, tensors, prefix="layers.0.mixer.")
    for L in (40, 23):
        x = torch.randn(2, L, 8)
        assert_close(ours(x), theirs(x).double(), torch.float32)


def test_published_defaults_are_ours():
    theirs, ours = SafariLike(8, 40, 2, 64, 5, 2, w=1.0), Hyena(8, 40, filter={"name": "hyena", "emb_dim": 5})
    f = ours.long_filters[0]
    assert_close(f.z, theirs.filter_fn.pos_emb.z[0].double(), torch.float32)
    assert_close(f.deltas, theirs.filter_fn.modulation.deltas[0, 0].double(), torch.float32)


def test_conversion_errors():
    theirs = SafariLike(8, 40, 2, 16, 3, 2, w=1.0).state_dict()
    with pytest.raises(ValueError, match=r"filter_fn.pos_emb.z gives shape \(40, 3\), the layer has \(39, 3\)"):
        load_safari_state_dict(Hyena(8, 39, filter={"name": "hyena", "order": 16}), theirs)
    with pytest.raises(ValueError, match="not a HyenaFilter"):
        load_safari_state_dict(Hyena(8, 40, filter={"name": "modal", "order": 2}), theirs)
    with pytest.raises(ValueError, match="the layer must be causal, as the published one is"):
        load_safari_state_dict(Hyena(8, 40, bidirectional=True), theirs)
    del theirs["in_proj.bias"]
    with pytest.raises(ValueError, match=r"has no in_proj\.bias"):
        load_safari_state_dict(Hyena(8, 40), theirs)


def test_initialisation():
    """As the authors' code: `Conv1d`'s uniform for the short taps and their bias, N(0, 1) for the skips."""
    layer = Hyena(512, 16, order=3, short_kernel=4)
    for tensor in (layer.short_weight, layer.short_bias):
        assert 0.98 * 4**-0.5 < tensor.abs().max() <= 4**-0.5
        assert abs(tensor.mean()) < 4 * tensor.std() / tensor.numel() ** 0.5
        assert abs(tensor.std() * 12**0.5 / (2 * 4**-0.5) - 1) < 0.05
    assert layer.skip.shape == (2, 512)
    assert abs(layer.skip.mean()) < 4 / 1024**0.5
    assert abs(layer.skip.std() - 1) < 0.1
    assert 2.5 < layer.skip.abs().max() < 5.5
    for linear in (layer.in_proj, layer.out_proj):
        assert 0.98 * 512**-0.5 < linear.weight.abs().max() <= 512**-0.5
