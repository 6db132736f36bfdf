"""LightConv and DynamicConv against their definitions written as loops, fairseq's weights, and published counts."""

import pytest
import torch
from numerics import assert_close

from longconv.layers import DynamicConv, LightConv, load_fairseq_conv_state_dict
from longconv.layers.dynamic_conv import dynamic_conv
from longconv.models import LongConvConfig

D = 12
CLASSES = pytest.mark.parametrize("cls", [LightConv, DynamicConv])


def project(layer, x):
    u = x @ layer.in_proj.weight.double().T + layer.in_proj.bias.double()
    if layer.glu:
        a, b = u.chunk(2, -1)
        u = a * b.sigmoid()
    return u


def define(layer, x):
    """The layer as the paper's equations 3 and 5, one product at a time, for one sequence x (L, D) in float64."""
    u = project(layer, x)
    L, C, H, K = len(x), u.shape[1], layer.num_heads, layer.kernel_size
    ahead = 0 if layer.causal else K // 2
    y = torch.zeros(L, C, dtype=torch.float64)
    for t in range(L):
        if isinstance(layer, LightConv):
            w = layer.weight.double()
        else:
            w = (layer.weight_linear.weight.double() @ u[t]).view(H, K)
            if layer.weight_linear.bias is not None:
                w = w + layer.weight_linear.bias.double().view(H, K)
        inside = torch.tensor([0 <= t + ahead - s < L for s in range(K)])
        if getattr(layer, "renorm_padding", False):
            w = w.masked_fill(~inside, -torch.inf)
        if layer.weight_softmax:
            w = w.exp() / w.exp().sum(1, keepdim=True)
        for c in range(C):
            for s in range(K):
                if inside[s]:
                    y[t, c] += w[c // (C // H), s] * u[t + ahead - s, c]
    if layer.conv_bias is not None:
        y = y + layer.conv_bias.double()
    return y @ layer.out_proj.weight.double().T + layer.out_proj.bias.double()


def randomised(layer):
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return layer


OPTIONS = [
    {},
    {"num_heads": 12, "conv_bias": True},
    {"num_heads": 1, "glu": False, "conv_channels": 5},
    {"num_heads": 2, "kernel_size": 1},
    {"num_heads": 2, "kernel_size": 4, "conv_channels": 8, "weight_softmax": False},
    {"num_heads": 4, "kernel_size": 30},
]


@torch.no_grad()
@CLASSES
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_definition(cls, options, bidirectional):
    options = {"kernel_size": 5, "num_heads": 3, **options}
    layer, x = randomised(cls(D, bidirectional=bidirectional, **options)).double(), torch.randn(11, D).double()
    for L in (1, 2, 11):
        assert_close(layer(x[None, :L])[0], define(layer, x[:L]), name=f"L = {L}")


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("kernel_size", [1, 4, 5, 30])
def test_dynamic_options_equal_definition(kernel_size, bidirectional):
    options = {"kernel_size": kernel_size, "num_heads": 3, "bidirectional": bidirectional, "bias": True}
    x = torch.randn(11, D).double()
    plain, renormed = (
        randomised(DynamicConv(D, renorm_padding=renorm, **options)).double() for renorm in (False, True)
    )
    renormed.load_state_dict(plain.state_dict())
    for layer in (plain, renormed):
        assert_close(layer(x[None])[0], define(layer, x))
    if kernel_size > 1:
        assert not torch.allclose(plain(x[None])[:, 0], renormed(x[None])[:, 0])


@torch.no_grad()
@CLASSES
def test_kernel_sizes_longer_than_the_sequence_stream(cls):
    layer, x = randomised(cls(D, kernel_size=30, num_heads=3)), torch.randn(2, 9, D)
    first, state = layer(x[:, :4], return_state=True)
    second, _ = layer(x[:, 4:], state=state, return_state=True)
    assert_close(torch.cat([first, second], 1), layer(x).double(), torch.float32)


@torch.no_grad()
@CLASSES
@pytest.mark.parametrize("L", [1, 6, 40])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
def test_receptive_field_by_gradient(cls, bidirectional, L):
    layer = cls(D, kernel_size=6, num_heads=3, bidirectional=bidirectional).double()
    assert (layer.receptive_field, layer.lookahead) == (6, 3 if bidirectional else 0)
    x = torch.randn(1, L, D, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        for t in range(L):
            (gradient,) = torch.autograd.grad(layer(x)[0, t].square().sum(), x)
            reached = gradient[0].any(1).nonzero().flatten().tolist()
            assert reached == list(range(max(0, t + layer.lookahead - 5), min(L, t + layer.lookahead + 1)))


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("K", [1, 4, 7])
@pytest.mark.parametrize("L", [1, 3, 12])
def test_light_conv_is_the_convolution_with_its_kernel(bidirectional, K, L):
    layer = randomised(LightConv(D, kernel_size=K, num_heads=3, bidirectional=bidirectional, conv_bias=True)).double()
    x, k = torch.randn(2, L, D).double(), layer.kernel(L)
    u, y = project(layer, x), torch.zeros(2, L, D).double()
    zero = 0 if layer.causal else L - 1
    assert k.shape == (D, L if layer.causal else 2 * L - 1)
    for t in range(L):
        for r in range(L):
            if 0 <= zero + t - r < k.shape[1]:
                y[:, t] += k[:, zero + t - r] * u[:, r]
    expected = (y + layer.conv_bias) @ layer.out_proj.weight.T + layer.out_proj.bias
    assert_close(layer(x), expected)
    with pytest.raises(ValueError, match="not a fixed convolution"):
        DynamicConv(D, num_heads=3).kernel(L)


def test_published_counts():
    """Section 3: of d = 1024 channels and 7 taps, 7,340,032 weights dense, 7,168 depthwise, 112 with 16 heads."""
    layer = LightConv(1024, kernel_size=7, num_heads=16)
    assert layer.weight.numel() == 112
    assert LightConv(1024, kernel_size=7, num_heads=1024).weight.numel() == 7168
    assert 1024 * LightConv(1024, kernel_size=7, num_heads=1024).weight.numel() == 7_340_032
    # The projections of a fairseq layer: 2 d^2 + 2 d into the GLU, d^2 + d out of it.
    assert sum(p.numel() for p in layer.parameters()) == 112 + 3 * 1024**2 + 3 * 1024
    dynamic = DynamicConv(1024, kernel_size=7, num_heads=16)
    assert dynamic.weight_linear.weight.numel() == 112 * 1024
    assert sum(p.numel() for p in dynamic.parameters()) == 112 * 1024 + 3 * 1024**2 + 3 * 1024


@CLASSES
def test_published_initialisation(cls):
    layer = cls(256, kernel_size=31, num_heads=16, conv_bias=True)
    bounds = {"in_proj.weight": (6 / (256 + 512)) ** 0.5, "out_proj.weight": (6 / 512) ** 0.5}
    if cls is LightConv:
        bounds["weight"] = (6 / (31 + 16 * 31)) ** 0.5  # a convolution (H, 1, K): fan-in K, fan-out H K
    else:
        bounds["weight_linear.weight"] = 256**-0.5
    for name, parameter in layer.named_parameters():
        if name in bounds:
            assert parameter.abs().max() <= bounds[name]
            assert abs(parameter.std() * 3**0.5 / bounds[name] - 1) < 0.1, name
        else:
            assert not parameter.any(), name


@CLASSES
def test_dropped_taps_in_training_only(cls):
    layer, x = cls(D, kernel_size=5, num_heads=3, weight_dropout=0.5), torch.randn(2, 9, D)
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), layer(x))
    torch.manual_seed(0)
    means = torch.stack([layer.train()(x) for _ in range(2000)]).mean(0)  # DropConnect scales by 1 / (1 - p)
    assert torch.linalg.vector_norm(means - layer.eval()(x)) < 0.1 * torch.linalg.vector_norm(layer(x))


def test_light_conv_drops_a_tap_in_a_whole_head():
    layer = LightConv(D, kernel_size=1, num_heads=3, weight_dropout=0.5, glu=False)
    layer.in_proj.weight.data.copy_(torch.eye(D))
    layer.out_proj.weight.data.copy_(torch.eye(D))
    y = layer(torch.ones(2, 9, D)).unflatten(-1, (3, 4))
    for head in y.unbind(2):
        assert (head == head[0, 0, 0]).all()
        assert head[0, 0, 0] in (0, 2)


def test_dynamic_conv_makes_no_square_matrix():
    """The product of blocks takes about as much room as twice the taps, whatever the length."""
    sizes = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    L, H, K = 2048, 2, 16
    with Count():
        dynamic_conv(torch.randn(1, 4, L + K - 1), torch.randn(1, L, H, K))
    assert max(sizes) <= 3 * H * K * L


@torch.no_grad()
@CLASSES
def test_holes_are_like_zeros_and_packed_rows_are_apart(cls):
    for bidirectional in (False, True):
        layer = randomised(cls(D, kernel_size=6, num_heads=3, bidirectional=bidirectional))
        x, lengths = torch.randn(1, 20, D), [3, 0, 1, 16]
        ends = torch.tensor([0, *lengths]).cumsum(0)
        expected = torch.cat([layer(piece) for piece in x.split(lengths, 1) if piece.shape[1]], 1)
        assert_close(layer(x, cu_seqlens=ends), expected.double(), torch.float32)


def fairseq_names(layer, prefix):
    """A synthetic layer of a fairseq model: its names and shapes (`fairseq/models/lightconv.py`), numbers at random."""
    C, H, K = layer.conv_channels, layer.num_heads, layer.kernel_size
    shapes = {
        "linear1.weight": ((1 + layer.glu) * C, D),
        "linear1.bias": ((1 + layer.glu) * C,),
        "linear2.weight": (D, C),
        "linear2.bias": (D,),
        "conv_layer_norm.weight": (D,),
        "encoder_attn.k_proj.weight": (D, D),
        "fc1.weight": (4 * D, D),
    }
    if isinstance(layer, LightConv):
        shapes |= {"conv.weight": (H, 1, K), "conv.bias": (C,)}
    else:
        shapes |= {"conv.weight_linear.weight": (H * K, C), "conv.conv_bias": (C,)}
    return {prefix + name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def fairseq_forward(layer, tensors, x):
    """Their layer, as their unfolded form computes it: tap j multiplies the input j - padding_l steps ahead."""
    H, K = layer.num_heads, layer.kernel_size
    padding_l = K - 1 if layer.causal else K // 2
    u = x @ tensors["linear1.weight"].T + tensors["linear1.bias"]
    u = torch.nn.functional.glu(u)
    B, L, C = u.shape
    unfolded = torch.nn.functional.pad(u, (0, 0, padding_l, K - 1 - padding_l)).unfold(1, K, 1)  # (B, L, C, K)
    if isinstance(layer, LightConv):
        weight, bias = tensors["conv.weight"].view(1, 1, H, K), tensors["conv.bias"]
    else:
        weight, bias = (u @ tensors["conv.weight_linear.weight"].T).view(B, L, H, K), tensors["conv.conv_bias"]
    y = (unfolded.view(B, L, H, C // H, K) * weight.softmax(-1)[:, :, :, None]).sum(-1).view(B, L, C) + bias
    return y @ tensors["linear2.weight"].T + tensors["linear2.bias"]


@torch.no_grad()
@CLASSES
@pytest.mark.parametrize("bidirectional", [False, True], ids=["decoder", "encoder"])
def test_weights_of_fairseq(cls, bidirectional):
    options = {"kernel_size": 7, "num_heads": 4, "conv_channels": 8, "conv_bias": True, "bidirectional": bidirectional}
    layer, x = cls(D, **options).double(), torch.randn(2, 10, D, dtype=torch.float64)
    tensors = fairseq_names(layer, "")
    expected = fairseq_forward(layer, tensors, x)
    prefix = "decoder.layers.0."
    named = {prefix + name: tensor for name, tensor in tensors.items()}
    load_fairseq_conv_state_dict(layer, named, prefix)
    assert_close(layer(x), expected)
    if cls is LightConv:  # as the CUDA layer of fairseq has it
        flat = {**tensors, "conv.weight": tensors["conv.weight"][:, 0]}
        other = cls(D, **options).double()
        load_fairseq_conv_state_dict(other, flat)
        assert_close(other(x), expected)
    taps = prefix + ("conv.weight" if cls is LightConv else "conv.weight_linear.weight")
    for change, message in (
        ({taps: None}, f"no {taps}"),
        ({taps: named[taps][1:]}, "shape"),
        ({prefix + "linear1.bias": torch.zeros(3)}, "linear1.bias"),
        ({prefix + "conv.other": torch.zeros(3)}, "conv.other"),
    ):
        wrong = {name: tensor for name, tensor in (named | change).items() if tensor is not None}
        with pytest.raises(ValueError, match=message):
            load_fairseq_conv_state_dict(layer, wrong, prefix)


@CLASSES
def test_errors_name_the_cause(cls):
    with pytest.raises(ValueError, match="kernel_size must be at least 1, got 0"):
        cls(D, kernel_size=0)
    with pytest.raises(ValueError, match="num_heads must divide the convolution's 12 channels, got 8"):
        cls(D, num_heads=8)
    with pytest.raises(ValueError, match="num_heads"):
        cls(D, num_heads=0)
    with pytest.raises(ValueError, match="renorm_padding"):
        DynamicConv(D, num_heads=3, renorm_padding=True, weight_softmax=False)


def test_by_name_in_a_model():
    LongConvConfig(mixers="lightconv dynamicconv", mixer_options={"lightconv": {"num_heads": 4, "kernel_size": 7}})
    with pytest.raises(ValueError, match="no option renorm_padding"):
        LongConvConfig(mixers="lightconv", mixer_options={"lightconv": {"renorm_padding": True}})
