"""MEGA against its definition, one product at a time in float64, and the weights of both published codes."""

import math

import pytest
import torch
from numerics import assert_close

from longconv.filters import ModalFilter
from longconv.layers import Mega, load_mega_state_dict
from longconv.layers.chunked_attention import ChunkedAttention
from longconv.layers.micro_tcn_stack import BatchNorm

D, Z, H, N, M = 6, 4, 10, 3, 30


def authors_names(layer, max_positions=M):
    """The tensors of a layer under the names and in the shapes of facebookresearch/mega, numbers at random."""
    sides = 1 if layer.causal else 2
    C = layer.attention.chunk_size
    shapes = {
        "move.delta": (sides * D, N, 1),
        "move.alpha": (sides * D, N, 1),
        "move.beta": (sides * D, N, 1),
        "move.gamma": (sides * D, N),
        "move.omega": (D,),
        "v_proj.weight": (H, D),
        "v_proj.bias": (H,),
        "mx_proj.weight": (Z + H + 2 * D, D),
        "mx_proj.bias": (Z + H + 2 * D,),
        "h_proj.weight": (D, H),
        "h_proj.bias": (D,),
        "gamma": (2, Z),
        "beta": (2, Z),
    }
    if hasattr(layer.attention.bias, "alpha"):
        shapes |= {"rel_pos_bias.alpha": (1, Z), "rel_pos_bias.beta": (1, Z), "rel_pos_bias._float_tensor": (1,)}
    else:
        shapes |= {"rel_pos_bias.rel_pos_bias": (2 * (C or max_positions) - 1,)}
    if isinstance(layer.norm, torch.nn.LayerNorm):
        shapes |= {"norm.norm.weight": (D,), "norm.norm.bias": (D,)}
    elif isinstance(layer.norm, BatchNorm):
        tensors = torch.nn.BatchNorm1d(D).double().state_dict()
        shapes |= {f"norm.norm.{name}": tensor.shape for name, tensor in tensors.items()}
    elif isinstance(layer.norm, torch.nn.RMSNorm):
        shapes |= {"norm.norm.weight": (D,)}
    elif layer.norm is not None:
        shapes |= {"norm.norm.scalar": (1,)}
    w = {name: 0.7 * torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    if "norm.norm.running_var" in w:
        w["norm.norm.running_var"] += 3.0
    return w


def normalise(w, x):
    if "norm.norm.running_var" in w:
        scaled = (x - w["norm.norm.running_mean"]) / (w["norm.norm.running_var"] + 1e-5).sqrt()
        return scaled * w["norm.norm.weight"] + w["norm.norm.bias"]
    if "norm.norm.bias" in w:
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.square().mean(-1, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * w["norm.norm.weight"] + w["norm.norm.bias"]
    scale = w.get("norm.norm.weight", w.get("norm.norm.scalar"))
    return x if scale is None else x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * scale


def moving_average(w, x, rows, truncation):
    """Of x (L, D): h_t = q h_{t-1} + p beta x_t, y_t = sum_n gamma h_t / sqrt(N); what is older is taken out again."""
    p = w["move.delta"][rows, :, 0].sigmoid()
    q = 1 - p * w["move.alpha"][rows, :, 0].sigmoid()
    y = torch.zeros_like(x)
    for t in range(len(x)):
        h = torch.zeros(D, N, dtype=torch.float64)
        for s in range(0 if truncation is None else max(0, t - truncation + 1), t + 1):
            h = q * h + p * w["move.beta"][rows, :, 0] * x[s, :, None]
        y[t] = (w["move.gamma"][rows] * h).sum(1) / math.sqrt(N)
    return y


def turn(v, position):
    """A vector of pairs (v_i, v_{i + Z/2}), turned by position * 10000^(-i / (Z/2))."""
    angle = position * 10000.0 ** (-torch.arange(Z // 2, dtype=torch.float64) / (Z // 2))
    a, b = v[0].chunk(2)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])


def define(w, x, chunk_size, activation, causal, truncation=None):
    """The published layer, x (L, D) -> its output, residual included."""
    L, C = len(x), chunk_size or len(x)
    inner = normalise(w, x)
    average = moving_average(w, inner, slice(0, D), truncation)
    if not causal:
        average = average + moving_average(w, inner.flip(0), slice(D, 2 * D), truncation).flip(0)
    silu = torch.nn.functional.silu
    mx = silu(average + inner * w["move.omega"])
    base = mx @ w["mx_proj.weight"].T + w["mx_proj.bias"]
    u, z, r, hx = base[:, :D].sigmoid(), silu(base[:, D : D + Z]), silu(base[:, D + Z : D + Z + H]), base[:, -D:]
    q, k = (z * w["gamma"][i] + w["beta"][i] for i in range(2))
    v = silu(inner @ w["v_proj.weight"].T + w["v_proj.bias"])
    o = torch.zeros(L, H, dtype=torch.float64)
    for i in range(L):
        start = i // C * C
        keys = range(start, i + 1 if causal else min(start + C, L))
        scores = []
        for j in keys:
            if "rel_pos_bias.alpha" in w:
                bias = turn(w["rel_pos_bias.alpha"], i - start) @ turn(w["rel_pos_bias.beta"], j - start)
            else:
                weights = w["rel_pos_bias.rel_pos_bias"]
                bias = weights[(len(weights) - 1) // 2 + j - i]
            scores.append(q[i] @ k[j] / (math.sqrt(Z) if activation == "softmax" else len(keys)) + bias)
        s = torch.stack(scores)
        if activation == "softmax":
            s = s.exp() / s.exp().sum()
        elif activation == "laplace":
            s = 0.5 * (1 + torch.erf((s - math.sqrt(1 / 2)) / (math.sqrt(1 / (4 * math.pi)) * math.sqrt(2))))
        else:
            s = s.clamp(min=0) ** 2
        o[i] = s @ v[keys.start : keys.stop]
    h = silu(hx + (o * r) @ w["h_proj.weight"].T + w["h_proj.bias"])
    return x + u * (h - x)


def make(**options):
    return Mega(D, M, zdim=Z, hdim=H, ndim=N, **options).double()


OPTIONS = [
    {},
    {"rel_pos_bias": "simple"},
    {"chunk_size": 5, "norm": "layernorm"},
    {"chunk_size": 5, "rel_pos_bias": "simple", "attention_activation": "laplace", "norm": "scalenorm"},
    {"chunk_size": 1, "attention_activation": "relu2", "norm": "rmsnorm"},
    {"attention_activation": "laplace", "rel_pos_bias": "simple", "norm": "batchnorm"},
    {"chunk_size": 40, "attention_activation": "relu2"},
    {"chunk_size": 4, "truncation": 3},
    {"attention_activation": "laplace", "truncation": 1},
]


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_definition_with_the_authors_weights(options, bidirectional):
    """Also at lengths that are not a multiple of the chunk: the published layer is x + layer(x)."""
    layer = make(bidirectional=bidirectional, **options).eval()
    w = authors_names(layer)
    load_mega_state_dict(
        layer, {f"decoder.layers.1.mega_layer.{n}": t for n, t in w.items()}, "decoder.layers.1.mega_layer."
    )
    activation = options.get("attention_activation", "softmax")
    for L in (1, 4, 13):
        x = torch.randn(L, D, dtype=torch.float64)
        expected = define(w, x, options.get("chunk_size"), activation, not bidirectional, options.get("truncation"))
        assert_close(x + layer(x[None])[0], expected, name=f"L = {L}")


def test_batch_norm_of_real_samples():
    """In training: the statistics are those of the batch without its padding, and the running ones follow."""
    layer = make(norm="batchnorm", bidirectional=True)
    theirs = torch.nn.BatchNorm1d(D).double()
    x, mask = torch.randn(3, 13, D, dtype=torch.float64), torch.ones(3, 13, dtype=torch.bool)
    mask[1, 5:], mask[2, :8] = False, False
    normalised = torch.zeros_like(x)
    normalised[mask] = theirs(x[mask]).detach()
    plain = make(bidirectional=True)
    plain.load_state_dict({name: t for name, t in layer.state_dict().items() if not name.startswith("norm.")})
    # y = u (h - x): h and u are those of the normalised input, and x is as it came.
    u = plain.mx_proj(plain._summarise(normalised, mask, None, None, False)[0])[..., :D].sigmoid()
    expected = plain(normalised, mask=mask) + u * (normalised - x)
    assert_close(layer(x, mask=mask)[mask], expected[mask].detach())
    assert_close(layer.norm.running_mean, theirs.running_mean)
    assert_close(layer.norm.running_var, theirs.running_var)
    assert layer.norm.num_batches_tracked == 1


TRANSFORMERS = {
    "move.delta": "ema_gate.damping_factor",
    "move.alpha": "ema_gate.decay_factor",
    "move.beta": "ema_gate.ema_expansion_matrix",
    "move.gamma": "ema_gate.kernel_projection_matrix",
    "move.omega": "ema_gate.residual_weight",
    "gamma": "qk_weight",
    "beta": "qk_bias",
    "rel_pos_bias.beta": "rel_pos_bias.b_param",
}


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("positions", ["simple", "rotary"])
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_weights_of_transformers(chunk_size, positions, bidirectional):
    layer = make(chunk_size=chunk_size, rel_pos_bias=positions, norm="scalenorm", bidirectional=bidirectional)
    w = authors_names(layer)
    named = {TRANSFORMERS.get(name, name): tensor for name, tensor in w.items()}
    if positions == "simple":  # theirs has a weight for all positions, of which chunks use the first
        named["rel_pos_bias.rel_pos_bias"] = torch.cat([w["rel_pos_bias.rel_pos_bias"], torch.randn(2 * M)])
        if chunk_size is None:
            named["rel_pos_bias.rel_pos_bias"] = w["rel_pos_bias.rel_pos_bias"]
    load_mega_state_dict(layer, named)
    x = torch.randn(12, D, dtype=torch.float64)
    expected = define(w, x, chunk_size, "softmax", not bidirectional)
    assert_close(x + layer(x[None])[0], expected)


def test_errors_of_the_converter():
    layer = make(chunk_size=5, norm="layernorm")
    w = authors_names(layer)
    for change, message in (
        ({"move.alpha": None}, "no move.alpha"),
        ({"move.delta": torch.zeros(2 * D, N, 1)}, r"move.delta has shape \(12, 3, 1\), expected \(6, 3, 1\)"),
        ({"mx_proj.weight": torch.zeros(D, D)}, "mx_proj.weight"),
        ({"norm.norm.running_mean": torch.zeros(D)}, "norm.norm.running_mean"),
        ({"rel_pos_bias.rel_pos_bias": torch.zeros(9)}, "rel_pos_bias.rel_pos_bias"),
    ):
        wrong = {name: tensor for name, tensor in (w | change).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            load_mega_state_dict(layer, wrong)
    with pytest.raises(ValueError, match="ModalFilter, not a DampedEMA"):
        load_mega_state_dict(make(filter={"name": "modal", "order": 2}), w)
    without = make(chunk_size=5)  # its norm is somebody else's
    load_mega_state_dict(without, w)


def test_a_norm_inside_or_outside():
    """`norm` is inside the gated residual: u takes away of x, not of norm(x)."""
    inside, x = make(norm="rmsnorm"), torch.randn(2, 9, D, dtype=torch.float64)
    outside = make()
    outside.load_state_dict({name: t for name, t in inside.state_dict().items() if not name.startswith("norm.")})
    normed = inside.norm(x)
    u = (outside._summarise(normed, None, None, None, False)[0] @ inside.mx_proj.weight[:D].T).sigmoid()
    assert_close(inside(x), outside(normed) + u * (normed - x))


def test_published_count():
    """That of facebookresearch/mega's MovingAverageGatedAttention(512, 128, 1024, 16, chunk_size=2048)."""
    layer = Mega(512, chunk_size=2048, zdim=128, hdim=1024, ndim=16, rel_pos_bias="simple", norm="layernorm")
    assert sum(p.numel() for p in layer.parameters()) == 2_205_311
    assert (layer.zdim, layer.hdim) == (Mega(512).zdim, Mega(512).hdim)
    assert layer.long_filters[0](1).numel() == 512


def test_published_initialisation():
    layer = Mega(256, 1024, rel_pos_bias="simple", norm="scalenorm", bidirectional=True)
    expected = {"omega": 1.0, "delta": 0.2, "alpha": 0.2, "gamma": 1.0}
    for name, parameter in layer.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if name == "norm.weight":
            assert parameter.item() == 1
        elif last == "beta":
            signs = 1 - 2 * (torch.arange(16) % 2)
            assert abs((parameter - signs).std() / 0.02 - 1) < 0.1
        elif last in ("bias", "qk_bias") and "attention" not in name:
            assert not parameter.any(), name
        else:
            assert abs(parameter.std() / expected.get(last, 0.02) - 1) < 0.2, name
            assert abs(parameter.mean()) < 0.2 * parameter.std(), name


def randomised(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
def test_receptive_field_by_gradient(bidirectional):
    """Everything from what the chunk's first sample sees to what its last one sees, or the sample itself if causal."""
    C, T = 4, 3
    layer = randomised(make(chunk_size=C, truncation=T, bidirectional=bidirectional))
    assert layer.receptive_field == (C + 2 * (T - 1) if bidirectional else C + T - 1)
    assert layer.lookahead == (C - 1 + T - 1 if bidirectional else 0)
    x = torch.randn(1, 20, D, dtype=torch.float64, requires_grad=True)
    fields, aheads = [], []
    for t in range(6, 14):
        gradient = torch.autograd.grad(layer(x)[0, t].square().sum(), x)[0][0].abs().sum(1)
        reached = (gradient > 1e-13 * gradient.max()).nonzero().flatten()
        fields.append(reached[-1] - reached[0] + 1)
        aheads.append(reached[-1] - t)
    assert max(fields) == layer.receptive_field
    assert max(aheads) == layer.lookahead
    assert make(chunk_size=C).receptive_field is None
    assert make(truncation=T).receptive_field is None
    assert make(truncation=T, bidirectional=True).lookahead is None


def test_only_the_moving_average_reaches_beyond_a_chunk():
    layer = randomised(make(chunk_size=4))
    x = torch.randn(1, 12, D, dtype=torch.float64)
    other = x.clone()
    other[:, :4] = torch.randn(1, 4, D)
    assert not torch.allclose(layer(other)[:, 4:], layer(x)[:, 4:])
    for filter in layer.long_filters:
        torch.nn.init.zeros_(filter.gamma)
    assert torch.allclose(layer(other)[:, 4:], layer(x)[:, 4:], rtol=1e-12)


def test_the_state_holds_one_chunk():
    layer, x = make(chunk_size=4), torch.randn(2, 19, D, dtype=torch.float64)
    with torch.no_grad():
        _, state = layer(x, return_state=True)
        for t in range(11):
            assert state.attention.keys.length == state.attention.values.length == (19 + t) % 4
            _, state = layer.step(x[:, t], state)
        mask = torch.ones(2, 19, dtype=torch.bool)
        mask[1, :6] = False
        _, state = layer(x, mask=mask, return_state=True)
        assert state.attention.filled.tolist() == [3, 1]
        assert state.attention.keys.length == 3


def test_attention_in_chunks_makes_no_square_matrix():
    sizes = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    L, C = 1000, 16
    options = {"activation": "softmax", "positions": "rotary", "causal": True, "dropout": 0.0}
    q, k, v, mask = torch.randn(1, L, 2), torch.randn(1, L, 2), torch.randn(1, L, 3), torch.ones(1, L).bool()
    mask[:, :7] = False
    for kind in (None, mask):
        with Count():
            ChunkedAttention(2, C, None, **options)(q, k, v, mask=kind)
    assert max(sizes) <= 2 * C * L


@torch.no_grad()
def test_holes_in_the_mask_are_absent_to_the_attention():
    options = {"activation": "laplace", "positions": "rotary", "causal": True, "dropout": 0.0}
    attention = randomised(ChunkedAttention(Z, 3, None, **options).double())
    q, k, v = (torch.randn(1, 9, n, dtype=torch.float64) for n in (Z, Z, H))
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 0, 1]]).bool()
    expected, _ = attention(*(t[mask][None] for t in (q, k, v)))
    whole, _ = attention(q, k, v, mask=mask)
    assert_close(whole[mask][None], expected)
    first, state = attention(q[:, :4], k[:, :4], v[:, :4], mask=mask[:, :4])
    second, _ = attention(q[:, 4:], k[:, 4:], v[:, 4:], mask=mask[:, 4:], state=state)
    assert_close(torch.cat([first, second], 1)[mask][None], expected)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout", "hidden_dropout"])
def test_dropout_acts_in_training_only(name):
    layer, x = randomised(make(**{name: 0.5})), torch.randn(2, 9, D, dtype=torch.float64)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))


def test_feature_dropout_drops_whole_channels():
    drop = make(dropout=0.5, feature_dropout=True).dropout
    for row in drop(torch.ones(4, 7, D)):
        for channel in row.unbind(1):
            assert channel.unique().tolist() in ([0.0], [2.0])


def test_another_filter_in_place_of_the_moving_average():
    layer = make(filter={"name": "hyena", "max_length": M}, chunk_size=5)
    x = torch.randn(2, 11, D, dtype=torch.float64)
    y, state = layer(x[:, :6], return_state=True)
    assert_close(torch.cat([y, layer(x[:, 6:], state=state)], 1), layer(x))
    # As distillation does with a truncated moving average: the filter that approximates it has no end.
    layer = make(filter={"name": "modal", "order": 2}, chunk_size=5, truncation=3)
    assert isinstance(layer.long_filters[0], ModalFilter)
    assert layer.receptive_field is None


def test_errors_name_the_cause():
    for options, message in (
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"truncation": 0}, "truncation must be at least 1"),
        ({"zdim": 0}, "zdim must be at least 1"),
        ({"hdim": 0}, "hdim must be at least 1"),
        ({"zdim": 3}, "rotary.*even zdim, got 3"),
        ({"norm": "rms"}, "norm must be one of layernorm, rmsnorm, scalenorm, batchnorm or None, got 'rms'"),
        ({"attention_activation": "relu"}, "attention_activation must be one of softmax, laplace, relu2"),
        ({"rel_pos_bias": "alibi"}, "rel_pos_bias must be"),
        ({"rel_pos_bias": "simple"}, "'simple' needs chunk_size or max_length"),
        ({"ndim": 0}, "order must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Mega(8, **options)
    with pytest.raises(ValueError, match="not a fixed convolution"):
        make().kernel(4)
