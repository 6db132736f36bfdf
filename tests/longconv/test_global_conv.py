"""The layer around one long filter against its definition in float64, on either side of time."""

import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close
from torch import nn

from longconv.filters import Filter
from longconv.layers import S4D, GlobalConv, SGConv, SMPConv

D, L = 6, 19
FILTER = {"name": "hyena", "order": 8}


def define(layer, x):
    """Sums over lags, in float64."""
    h = layer.long_filters[0](L).detach().double()
    back = None if layer.causal else layer.long_filters[1](L).detach().double()
    z = torch.zeros(x.shape[0], L, D, dtype=torch.float64)
    x = x.double()
    K = 0 if layer.short_weight is None else layer.short_weight.shape[1]
    ahead = 0 if layer.causal else K // 2
    for t in range(L):
        for s in range(L):
            if s <= t:
                z[:, t] += h[:, t - s] * x[:, s]
            elif back is not None:
                z[:, t] += back[:, s - t - 1] * x[:, s]
            if 0 <= t + ahead - s < K:
                z[:, t] += layer.short_weight[:, t + ahead - s].detach().double() * x[:, s]
        if layer.skip is not None:
            z[:, t] += layer.skip.detach().double() * x[:, t]
        if layer.bias is not None:
            z[:, t] += layer.bias.detach().double()
    z = {"gelu": F.gelu, "silu": F.silu, "relu": F.relu, "none": lambda z: z}[layer.activation](z)
    if layer.out_proj is None:
        return z
    z = z @ layer.out_proj.weight.detach().double().T + layer.out_proj.bias.detach().double()
    if layer.output == "linear":
        return z
    return z[..., :D] * torch.sigmoid(z[..., D:])


@pytest.mark.parametrize("short_kernel", [0, 4, 5])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "two-sided"])
@pytest.mark.parametrize(
    ("activation", "output", "skip", "bias"),
    [("gelu", "glu", True, False), ("silu", "linear", False, True), ("relu", "none", True, True)],
)
def test_equals_definition(activation, output, skip, bias, bidirectional, short_kernel):
    layer = GlobalConv(
        D,
        30,
        filter=FILTER,
        bidirectional=bidirectional,
        skip=skip,
        bias=bias,
        short_kernel=short_kernel,
        activation=activation,
        output=output,
    )
    if bias:
        nn.init.normal_(layer.bias)
    x = torch.randn(2, L, D)
    assert_close(layer(x), define(layer, x))


@pytest.mark.parametrize("short_kernel", [0, 4, 5])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "two-sided"])
def test_equals_the_convolution_with_its_kernel(bidirectional, short_kernel):
    options = {"filter": FILTER, "bidirectional": bidirectional, "short_kernel": short_kernel}
    layer = GlobalConv(D, 30, activation="none", output="none", **options).double()
    for length in (1, 2, L):
        kernel, x = layer.kernel(length), torch.randn(2, length, D, dtype=torch.float64)
        assert kernel.shape == (D, 2 * length - 1 if bidirectional else length)
        y = torch.zeros_like(x)
        for t in range(length):
            for s in range(length):
                if bidirectional or s <= t:
                    y[:, t] += kernel[:, t - s + (length - 1 if bidirectional else 0)] * x[:, s]
        assert_close(layer(x), y)


class Taps(Filter):
    """A filter of K taps, as one of finite support is."""

    def __init__(self, taps):
        super().__init__()
        self.channels, self.max_length = taps.shape[0], None
        self.taps = nn.Parameter(taps)

    @property
    def support(self):
        return self.taps.shape[1]

    def forward(self, L):
        assert self.support >= L, "asked for more taps than there are"
        return self.taps[:, :L]


@pytest.mark.parametrize("short_kernel", [0, 5])
@pytest.mark.parametrize("K", [1, 3, 7])
def test_filters_of_few_taps_stream_without_limit_in_little_memory(K, short_kernel):
    layer = GlobalConv(D, filter={"name": "modal", "order": 1}, short_kernel=short_kernel)
    layer.long_filters[0] = Taps(torch.randn(D, K))
    assert layer.receptive_field == max(K, short_kernel)
    x = torch.randn(2, 300, D)
    whole = layer(x).double()
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            y, state = layer(x[:, :100], return_state=True)
            outputs = [y]
            for t in range(100, 200):
                y, state = layer.step(x[:, t], state)
                outputs.append(y[:, None])
            y, state = layer(x[:, 200:], state=state, return_state=True)
            assert_close(torch.cat([*outputs, y], 1), whole, torch.float32)
            if grad:
                assert state.long.past.view.shape == (2, D, K - 1)
            else:
                assert state.long.past.inputs.shape == (2, D, K - 1)
            assert state.long.length == 300


def test_two_sided_fields():
    layer = GlobalConv(D, filter={"name": "modal", "order": 1}, bidirectional=True, short_kernel=4)
    assert (layer.receptive_field, layer.lookahead) == (None, None)
    for forward, backward, field, ahead in [(5, 3, 8, 3), (1, 1, 4, 2), (2, 1, 4, 2), (2, 9, 11, 9)]:
        layer.long_filters[0], layer.long_filters[1] = Taps(torch.randn(D, forward)), Taps(torch.randn(D, backward))
        assert (layer.receptive_field, layer.lookahead) == (field, ahead)
        x = torch.randn(1, 40, D, requires_grad=True)
        reached = torch.autograd.grad(layer(x)[0, 20].sum(), x)[0][0].abs().sum(1) > 1e-5
        assert reached.nonzero().flatten().tolist() == list(range(20 + ahead - field + 1, 20 + ahead + 1))


def test_dropout_of_channels_is_the_same_at_all_times():
    for tie in (False, True):
        layer = GlobalConv(D, 30, filter=FILTER, activation="none", output="none", dropout=0.5, tie_dropout=tie)
        x = torch.randn(50, L, D)
        expected, y = layer.eval()(x), layer.train()(x)
        kept = y != 0
        assert_close(y[kept], 2 * expected[kept].double(), torch.float32)
        assert 0.35 < kept.float().mean() < 0.65
        assert bool((kept == kept[:, :1]).all()) == tie


def test_options_are_checked():
    for options, message in [
        ({"activation": "tanh"}, "activation must be one of gelu, silu, relu, none, got 'tanh'"),
        ({"output": "mlp"}, "output must be one of linear, glu, none, got 'mlp'"),
        ({"short_kernel": -1}, "short_kernel must be at least 0, got -1"),
        ({"filter": "fourier"}, "unknown filter 'fourier'"),
    ]:
        with pytest.raises(ValueError, match=message):
            GlobalConv(D, 30, **{"filter": FILTER, **options})


def test_initialisation():
    layer = GlobalConv(400, 8, filter=FILTER, short_kernel=5, bias=True)
    assert 0.85 < layer.skip.std() < 1.15
    assert not layer.bias.any()
    assert 0.018 < layer.short_weight.std() < 0.022
    assert layer.out_proj.weight.abs().max() <= 400**-0.5
    assert abs(layer.out_proj.weight.std() * 1200**0.5 - 1) < 0.01


# The papers' layers

PAPERS = {
    "sgconv": (SGConv, {"filter": {"name": "sgconv", "kernel_dim": 4}}, F.gelu),
    "sgconv-glu": (SGConv, {"filter": {"name": "sgconv", "kernel_dim": 4}, "output": "glu"}, F.gelu),
    "sgconv-two-sided": (SGConv, {"filter": {"name": "sgconv", "kernel_dim": 4}, "bidirectional": True}, F.gelu),
    "s4d": (S4D, {"filter": {"name": "s4d", "state_size": 8}}, F.gelu),
    "s4d-two-sided": (S4D, {"filter": {"name": "s4d", "state_size": 8}, "bidirectional": True}, F.gelu),
    "smpconv": (SMPConv, {"filter": {"name": "smpconv", "points": 5, "radius": 0.3}}, F.relu),
    "smpconv-two-sided": (SMPConv, {"filter": {"name": "smpconv", "radius": 0.3}, "bidirectional": True}, F.relu),
}


@pytest.mark.parametrize("case", PAPERS)
def test_layers_of_papers_are_their_kernel_and_what_is_behind_it(case):
    kind, options, activation = PAPERS[case]
    layer = kind(D, 30, **options).double().eval()
    kernel, x = layer.kernel(L), torch.randn(2, L, D, dtype=torch.float64)
    z = torch.zeros_like(x)
    for t in range(L):
        for s in range(L):
            if s <= t or not layer.causal:
                z[:, t] += kernel[:, t - s + (0 if layer.causal else L - 1)] * x[:, s]
    z = activation(z if layer.bias is None else z + layer.bias)
    z = z @ layer.out_proj.weight.T + layer.out_proj.bias
    assert_close(layer(x), z if layer.output == "linear" else z[..., :D] * torch.sigmoid(z[..., D:]))


def test_parameters_of_papers_layers():
    """As the authors' modules count them."""
    H, N, d, taps = 64, 64, 64, 1024

    def count(layer):
        return sum(p.numel() for p in layer.parameters())

    assert count(S4D(H)) == H + (H + 2 * H * N // 2 + 2 * H * N // 2) + 2 * H * H + 2 * H
    # Both directions have one A and dt, and with n_ssm = 1 so have all channels; but not the authors' trained B.
    both = S4D(H, bidirectional=True, filter={"name": "s4d", "n_ssm": 1})
    assert count(both) == H + (H + 2 * N // 2 + 2 * (2 * H * N // 2)) + 2 * H * H + 2 * H
    scales = 1 + 4  # 1024 = 64 2^4
    assert count(SGConv(H, taps)) == H + scales * H * d + H * H + H
    assert count(SGConv(H, taps, bidirectional=True, output="glu")) == H + 2 * scales * H * d + 2 * (H * H + H)
    assert count(SMPConv(H, taps)) == 30 * H * 3 + 5 * H + H + H * H + H


def test_s4d_of_two_sides_has_one_system_and_two_readouts():
    layer = S4D(D, bidirectional=True, filter={"name": "s4d", "state_size": 4, "n_ssm": 2}).double()
    copy = deepcopy(layer)
    for each in (layer, copy):
        behind, ahead = each.long_filters
        assert ahead.system is behind
        A = -behind.log_A_real.exp() + 1j * behind.A_imag
        A, dt = torch.cat([A, A, A]), behind.log_dt.exp()[:, None]
        for filter in (behind, ahead):
            C = torch.view_as_complex(filter.C) * ((dt * A).exp() - 1) / A
            taps = 2 * (C[..., None] * (dt * A)[..., None].mul(torch.arange(L)).exp()).sum(1).real
            assert_close(filter(L), taps.detach())
    assert copy.long_filters[0] is not layer.long_filters[0]
    assert [name for name, _ in layer.long_filters[1].named_parameters()] == ["C"]
    assert layer.long_filters[0].log_dt._optim == {"lr": 1e-3, "weight_decay": 0.0}
    own = S4D(D, filter={"name": "s4d", "lr_dt": None}).long_filters[0]
    assert own.log_dt._optim == {"weight_decay": 0.0}
    assert own.log_A_real._optim == {"lr": 1e-3, "weight_decay": 0.0}
    for n_ssm in (0, 4):
        with pytest.raises(ValueError, match=f"n_ssm must divide channels = 6, got {n_ssm}"):
            S4D(D, filter={"name": "s4d", "n_ssm": n_ssm})
    other = S4D(D, bidirectional=True, filter={"name": "modal", "order": 2})
    assert len(list(other.long_filters[1].parameters())) > 1


#: The SGConv authors' `configs/experiment/lra`: length, width, options, and the scales that their formula gives.
LRA = {
    "listops": (2048, 128, {"kernel_dim": 1}, 12),
    "imdb": (4096, 256, {"kernel_dim": 2}, 12),
    "aan": (4000, 256, {"kernel_dim": 1}, 13),
    "cifar": (1024, 512, {"kernel_dim": 32, "decay": "fixed", "decay_min": 1, "decay_max": 1}, 6),
    "pathfinder": (1024, 256, {"kernel_dim": 32}, 6),
    "pathx": (16384, 256, {"kernel_dim": 64, "init_scale": 1, "kernel_init": "cos", "decay_min": 1, "decay_max": 3}, 8),
}


@pytest.mark.parametrize("task", LRA)
def test_published_recipes_of_sgconv(task):
    """Sizes, decay and parameters of the published layers, both directions."""
    length, H, options, scales = LRA[task]
    layer = SGConv(H, length, bidirectional=True, output="glu", filter={"name": "sgconv", **options})
    for filter in layer.long_filters:
        assert (filter.num_scales, filter.support) == (scales, length)
        assert filter.num_scales == 1 + math.ceil(math.log2(length / filter.kernel_dim)) - filter.init_scale
        if task == "cifar":
            assert not filter.decay.requires_grad
            assert (filter.decay == 1).all()
        elif task == "pathx":
            assert torch.equal(filter.multiplier, torch.linspace(1, 3, H))
        else:
            assert (filter.multiplier == 2).all()
        assert filter.kernels._optim == {"lr": 1e-3}
    trained = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert trained == H + 2 * scales * H * options["kernel_dim"] + 2 * (H * H + H)


def test_cosines_of_sgconv_are_the_same_both_ways():
    """In the authors' code they are drawn once and expanded over the directions; random ones are not."""
    for kernel_init, same in (("cos", True), ("randn", False)):
        layer = SGConv(D, 30, bidirectional=True, filter={"name": "sgconv", "kernel_init": kernel_init})
        behind, ahead = layer.long_filters
        assert torch.equal(behind.kernels, ahead.kernels) == same
        assert behind.kernels is not ahead.kernels


def test_marks_and_dropout_of_papers_layers():
    layer = SGConv(D, 30, dropout=0.5)
    assert layer.out_proj.bias._optim == {"weight_decay": 0.0}
    assert not hasattr(layer.skip, "_optim")
    assert layer.tie_dropout
    assert S4D(D, dropout=0.5).tie_dropout
    assert S4D(D).is_recurrent
    assert not SGConv(D, 30).is_recurrent
