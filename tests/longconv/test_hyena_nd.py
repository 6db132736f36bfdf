"""Hyena N-D against its definition in float64: sums over the lags of an image, in one quadrant or all."""

import itertools
import math

import pytest
import torch
from numerics import assert_close

from longconv.filters.hyena_nd import HyenaFilterND
from longconv.layers import Hyena, HyenaND

D, H, W = 4, 5, 7
FILTER = {"kind": "implicit", "emb_dim": 5, "order": 8, "w": 2.0}


def convolve(u, k, origin):
    """u (B, D, H, W), k (D, KH, KW), tap (i, j) at lag (i, j) - origin."""
    y = torch.zeros_like(u)
    h, w = u.shape[2:]
    for t, s in itertools.product(range(h), range(w)):
        for i, j in itertools.product(range(k.shape[1]), range(k.shape[2])):
            a, b = t - (i - origin[0]), s - (j - origin[1])
            if 0 <= a < h and 0 <= b < w:
                y[:, :, t, s] += k[:, i, j] * u[:, :, a, b]
    return y


def define(layer, x):
    p = {name: t.detach().double() for name, t in layer.named_parameters()}
    u = x.double() @ p["in_proj.weight"].T + p["in_proj.bias"]
    u = u.mT.reshape(x.shape[0], -1, H, W)
    half = layer.short_weight.shape[-1] // 2
    ahead = [half if layer.short_center or both else 0 for both in layer.bidirectional]
    short = convolve(u, p["short_weight"], ahead) + p["short_bias"][:, None, None]
    branches = short.split(D, dim=1)
    v = branches[-1]
    for stage in range(layer.order - 1):
        v = branches[layer.order - 1 - stage] * v
        filter = layer.nd_filters[stage]
        v = convolve(v, filter().detach().double(), filter.origin) + p["skip"][stage][:, None, None] * v
    v = (branches[0] * v).flatten(2).mT
    return v @ p["out_proj.weight"].T + p["out_proj.bias"]


@pytest.mark.parametrize("kind", ["implicit", "product"])
@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("center", [True, False], ids=["short-centred", "short-as-long"])
@pytest.mark.parametrize("both", [False, True, (False, True), (True, False)], ids=str)
def test_equals_definition(both, center, order, kind):
    layer = HyenaND(
        D, shape=(H, W), order=order, bidirectional=both, filter={**FILTER, "kind": kind}, short_center=center
    )
    x = torch.randn(2, H * W, D)
    assert_close(layer(x), define(layer, x))


def test_filters_of_the_positions():
    """The formulas of the class, tap by tap, in float64."""
    for kind, both in itertools.product(("implicit", "product"), itertools.product((False, True), repeat=2)):
        f = HyenaFilterND(D, (H, W), both, **{**FILTER, "kind": kind}, shift=0.1)
        k, (oh, ow) = f(), f.origin
        assert k.shape == (D, 2 * H - 1 if both[0] else H, 2 * W - 1 if both[1] else W)
        deltas = torch.linspace(math.log(0.01) / 1.5, math.log(0.01) / 0.3, D, dtype=torch.float64).abs()

        def features(t, n):
            angles = [2 * math.pi * frequency * t / n for frequency in (1e-4, 1.0)]
            return [t / (n - 1), *map(math.cos, angles), *(-math.sin(angle) for angle in angles)]

        def network(mlp, z):
            x = torch.tensor(z, dtype=torch.float64)
            for layer in mlp.layers[:-1]:
                x = torch.sin(mlp.freq.double() * (layer.weight.double() @ x + layer.bias.double()))
            return mlp.layers[-1].weight.double() @ x

        expected = torch.empty(k.shape, dtype=torch.float64)
        for i, j in itertools.product(range(k.shape[1]), range(k.shape[2])):
            a, b = i - oh, j - ow
            first, second = torch.exp(-abs(a) / (H - 1) * deltas), torch.exp(-abs(b) / (W - 1) * deltas)
            if kind == "implicit":
                expected[:, i, j] = network(f.mlp[0], features(a, H) + features(b, W)) * (first * second + 0.1)
            else:
                one, two = network(f.mlp[0], features(a, H)), network(f.mlp[1], features(b, W))
                expected[:, i, j] = one * (first + 0.1) * two * (second + 0.1)
        assert_close(k, expected)


def test_one_causal_axis_is_hyena():
    options = {"emb_dim": 5, "order": 8, "w": 2.0}
    ours = HyenaND(D, shape=(19,), filter={"kind": "implicit", **options}, short_center=False)
    hyena = Hyena(D, 19, filter={"name": "hyena", **options})
    with torch.no_grad():
        for name in ("in_proj.weight", "in_proj.bias", "short_weight", "short_bias", "skip"):
            ours.get_parameter(name).copy_(hyena.get_parameter(name))
        ours.out_proj.load_state_dict(hyena.out_proj.state_dict())
        theirs, f = hyena.long_filters[0], ours.nd_filters[0]
        f.mlp[0].freq.copy_(theirs.freq)
        for a, b in zip(f.mlp[0].layers, theirs.mlp, strict=True):
            a.load_state_dict(b.state_dict())
        assert_close(f.z[0], theirs.z.double())
    x = torch.randn(2, 19, D)
    assert_close(ours(x), hyena(x).double(), torch.float32)


@pytest.mark.parametrize("both", [False, True])
def test_one_axis_equals_an_image_of_one_row(both):
    row = HyenaND(D, shape=(1, 19), bidirectional=both, filter={**FILTER, "kind": "product"})
    line = HyenaND(D, shape=(19,), bidirectional=both, filter={**FILTER, "kind": "product"})
    with torch.no_grad():
        for name in ("in_proj.weight", "in_proj.bias", "short_bias", "skip"):
            line.get_parameter(name).copy_(row.get_parameter(name))
        line.short_weight.copy_(row.short_weight[:, 1])
        line.out_proj.load_state_dict(row.out_proj.state_dict())
        line.nd_filters[0].mlp[0].load_state_dict(row.nd_filters[0].mlp[1].state_dict())
        across = row.nd_filters[0]().detach()[:, 0]
        along = line.nd_filters[0]().detach()
        scale = across[:, :1] / along[:, :1]
        assert_close(along * scale, across.double())
        line.nd_filters[0].mlp[0].layers[-1].weight.mul_(scale)
    x = torch.randn(2, 19, D)
    assert_close(line(x), row(x).double(), torch.float32)


def test_which_pixels_a_pixel_sees():
    for both, center, rows, columns in [
        (False, False, range(3), range(5)),
        (False, True, range(4), range(6)),
        (True, True, range(H), range(W)),
        ((True, False), False, range(H), range(5)),
    ]:
        layer = HyenaND(D, shape=(H, W), bidirectional=both, filter=FILTER, short_center=center).double()
        x = torch.randn(1, H * W, D, dtype=torch.float64, requires_grad=True)
        gradient = torch.autograd.grad(layer(x)[0, 2 * W + 4].sum(), x)[0][0].abs().sum(1).view(H, W)
        seen = torch.zeros(H, W, dtype=torch.bool)
        seen[rows.start : rows.stop, columns.start : columns.stop] = True
        assert torch.equal(gradient > 1e-10 * gradient.max(), seen), (both, center)


@pytest.mark.parametrize("both", [False, (False, True), True], ids=str)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("shape", [(H, W), (1, W), (H, 1), (W,)])
def test_how_far_ahead_of_the_first_pixel(shape, center, both):
    if len(shape) == 1 and not isinstance(both, bool):
        both = both[:1]
    layer = HyenaND(D, shape=shape, bidirectional=both, filter=FILTER, short_center=center).double()
    x = torch.randn(1, math.prod(shape), D, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(layer(x)[0, 0].sum(), x)[0][0].abs().sum(1)
    last = int((gradient > 1e-10 * gradient.max()).nonzero().max())
    assert last == (len(x[0]) - 1 if layer.lookahead is None else layer.lookahead)


def test_packed_images_and_errors():
    layer, x = HyenaND(D, shape=(H, W), filter=FILTER), torch.randn(3, H * W, D)
    packed = layer(x.view(1, -1, D), cu_seqlens=torch.tensor([0, 35, 70, 105]))
    assert_close(packed.view(3, -1, D), layer(x).double(), torch.float32)
    with pytest.raises(ValueError, match=r"expected images of \(5, 7\), i.e. 35 samples, got \[35, 35, 30, 5\]"):
        layer(x.view(1, -1, D), cu_seqlens=torch.tensor([0, 35, 70, 100, 105]))
    with pytest.raises(ValueError, match=r"expected images of \(5, 7\)"):
        layer(x[:, :30])
    with pytest.raises(ValueError, match="no padding"):
        layer(x, mask=torch.ones(3, 35))
    with pytest.raises(ValueError, match="not causal"):
        layer(x, return_state=True)
    with pytest.raises(ValueError, match="not causal"):
        layer.init_state(2)
    assert HyenaND(D, 49).shape == (7, 7)
    for arguments, options, message in [
        ((D,), {}, "shape is needed"),
        ((D, 35), {}, "not the size of a square"),
        ((D, 30), {"shape": (5, 7)}, "more samples than max_length = 30"),
        ((D,), {"shape": (2, 2, 2)}, "shape must be"),
        ((D, 49), {"order": 1}, "order"),
        ((D, 49), {"short_kernel": 2}, "odd"),
        ((D, 49), {"bidirectional": (True,)}, "one for each of 2 axes"),
        ((D, 49), {"filter": "fourier"}, "kind must be one of implicit, product"),
    ]:
        with pytest.raises(ValueError, match=message):
            HyenaND(*arguments, **options)


def test_gradients_and_initialisation():
    layer = HyenaND(3, shape=(2, 3), filter=FILTER, bidirectional=True).double()
    x = torch.randn(1, 6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x), x)
    assert all(g.any() for g in torch.autograd.grad(layer(x).square().sum(), list(layer.parameters())))
    with torch.device("meta"):
        later = HyenaND(64, 49)
    later.to_empty(device="cpu")
    for module in reversed(list(later.modules())):
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    direct = HyenaND(64, 49)
    assert torch.equal(later.nd_filters[0].z[0], direct.nd_filters[0].z[0])
    assert torch.equal(later.nd_filters[0].deltas, direct.nd_filters[0].deltas)
    assert later.short_weight.abs().max() <= 1 / 3
    assert later.short_weight.std() > 0.17
    assert 0.8 < later.skip.std() < 1.2
    assert direct.nd_filters[0].z[0]._optim == {"lr": 1e-5, "weight_decay": 0.0}
    assert direct.bfloat16().nd_filters[0].deltas.dtype == torch.float32


def test_in_a_classifier(tmp_path):
    from longconv.models import LongConvConfig, LongConvForCausalLM, LongConvForSequenceClassification

    config = LongConvConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=2, mixers="hyena_nd", max_position_embeddings=16
    )
    with pytest.raises(ValueError, match=r"block 0 \('hyena_nd'.*not causal"):
        LongConvForCausalLM(config)
    model, ids = LongConvForSequenceClassification(config).eval(), torch.randint(5, (2, 16))
    model.save_pretrained(tmp_path)
    loaded = LongConvForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    half = LongConvForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.layers[0].mixer.nd_filters[0].z[0].dtype == torch.float32
    assert half(ids).logits.dtype == torch.bfloat16
