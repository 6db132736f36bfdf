"""MultiresLayer against its definition, dense kernel, published sizes, initialisation and weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close

from longconv.functional import fft_conv
from longconv.layers import MultiresLayer, load_multires_state_dict


def nodes(layer):
    """(column of w, level, offset) of every coefficient: b_{level} at t - offset, level J + 1 for a_J."""
    J, K, room = layer.depth, layer.kernel_size, layer.w.shape[1] - 1
    kept = [(0, J + 1, 0)]
    width = 1
    for level in range(J, 0, -1):
        for i in range(1 if layer.tree_select == "fading" else width):
            if len(kept) < room:
                kept.append((len(kept), level, i * 2**level))
        width = 2 * (width - 1) + K
    return kept


def definition(layer, x):
    """One sequence x (L, D), sample by sample; before the first sample everything is zero."""
    L, J, K = x.shape[0], layer.depth, layer.kernel_size

    def conv(h, a, dilation):
        return [sum(h[:, s] * a[t - s * dilation] for s in range(K) if t >= s * dilation) for t in range(L)]

    a, details = list(x), {}
    for j in range(J):
        details[j + 1] = conv(layer.h1, a, 2**j)
        a = conv(layer.h0, a, 2**j)
    details[J + 1] = a
    z = [layer.w[:, -1] * x[t] for t in range(L)]
    for column, level, offset in nodes(layer):
        for t in range(offset, L):
            z[t] = z[t] + layer.w[:, column] * details[level][t - offset]
    return torch.stack(z)


OPTIONS = {
    "fading": {"kernel_size": 2, "depth": 4},
    "fading-4": {"kernel_size": 4, "depth": 3},
    "uniform": {"kernel_size": 2, "depth": 4, "tree_select": "uniform", "memory_size": 7},
    "uniform-3": {"kernel_size": 3, "depth": 3, "tree_select": "uniform", "memory_size": 9},
    "uniform-all": {"kernel_size": 2, "depth": 2, "tree_select": "uniform", "memory_size": 30},
    "one": {"kernel_size": 2, "depth": 3, "tree_select": "uniform", "memory_size": 1},
    "flat": {"kernel_size": 3, "depth": 0},
}
options = pytest.mark.parametrize("name", OPTIONS)


@options
def test_it_is_what_the_paper_defines(name):
    layer = MultiresLayer(3, **OPTIONS[name], activation="none").double()
    x = torch.randn(2, 21, 3, dtype=torch.float64)
    z = torch.stack([definition(layer, row) for row in x]).detach()
    assert_close(layer(x), z)
    gelu = MultiresLayer(3, **OPTIONS[name], output="glu").double()
    gelu.load_state_dict({**gelu.state_dict(), **layer.state_dict()})
    inner = 0.5 * z * (1 + torch.erf(z / math.sqrt(2)))
    a, b = (inner @ gelu.out_proj.weight.T + gelu.out_proj.bias).split(3, dim=-1)
    assert_close(gelu(x), (a / (1 + torch.exp(-b))).detach())


@options
@pytest.mark.parametrize("L", [1, 2, 19, 64])
def test_it_equals_the_convolution_with_its_kernel(name, L):
    layer = MultiresLayer(3, **OPTIONS[name], activation="none").double()
    x = torch.randn(2, L, 3, dtype=torch.float64)
    assert_close(layer(x), fft_conv(x.mT, layer.kernel(L)).mT.detach())


@options
def test_two_sided_is_the_transform_both_ways_with_x_once(name):
    layer = MultiresLayer(3, **OPTIONS[name], activation="none", bidirectional=True).double()
    behind, ahead = (MultiresLayer(3, **OPTIONS[name], activation="none").double() for _ in range(2))
    with torch.no_grad():
        for one, tensors in (
            (behind, (layer.h0, layer.h1, layer.w)),
            (ahead, (layer.h0_reverse, layer.h1_reverse, F.pad(layer.w_reverse, (0, 1)))),
        ):
            for parameter, tensor in zip((one.h0, one.h1, one.w), tensors, strict=True):
                parameter.copy_(tensor)
    x = torch.randn(2, 21, 3, dtype=torch.float64)
    z = torch.stack([definition(behind, row) + definition(ahead, row.flip(0)).flip(0) for row in x]).detach()
    assert_close(layer(x), z)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["causal", "two-sided"])
@options
def test_receptive_field_is_exact(name, bidirectional):
    layer = MultiresLayer(3, **OPTIONS[name], activation="none", bidirectional=bidirectional).double()
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.0)
    reach = (layer.kernel_size - 1) * (2**layer.depth - 1)
    ahead = reach if bidirectional else 0
    assert (layer.receptive_field, layer.lookahead) == (1 + reach + ahead, ahead)
    x = torch.randn(1, 2 * reach + 10, 3, dtype=torch.float64, requires_grad=True)
    at = reach + 4
    gradient = torch.autograd.grad(layer(x)[0, at].sum(), x)[0][0].abs().sum(1)
    assert gradient[at] > 0
    assert gradient[at - reach] > 0
    assert gradient[at + ahead] > 0
    gradient[at - reach : at + ahead + 1] = 0
    assert not gradient.any()


@pytest.mark.parametrize("L", [1, 2, 3, 31, 32, 33, 784, 1000, 1024, 2048])
@pytest.mark.parametrize("K", [2, 3, 4])
def test_depth_lets_the_first_sample_reach_the_last(K, L):
    """The paper's J = ceil(log2((L-1)/(K-1) + 1)): enough, and one level less is not."""
    layer = MultiresLayer(1, L, kernel_size=K)
    assert layer.depth == math.ceil(math.log2((L - 1) / (K - 1) + 1))
    assert layer.receptive_field >= L
    assert layer.depth == 0 or 1 + (K - 1) * (2 ** (layer.depth - 1) - 1) < L
    assert layer.w.shape == (1, layer.depth + 2)


@pytest.mark.parametrize(("D", "K", "L", "blocks"), [(256, 2, 1024, 10), (128, 4, 2048, 10)], ids=["sCIFAR", "ListOps"])
def test_published_number_of_parameters(D, K, L, blocks):
    """The authors' blocks (layer, 1x1 convolution with GLU, norm), counted tensor by tensor."""
    J = math.ceil(math.log2((L - 1) / (K - 1) + 1))
    theirs = D * K + D * K + D * (J + 2) + sum(p.numel() for p in torch.nn.Conv1d(D, 2 * D, 1).parameters())
    ours = MultiresLayer(D, L, kernel_size=K, output="glu")
    assert sum(p.numel() for p in ours.parameters()) == theirs
    if D == 256:  # with norms, encoder and head: the 1.4M of their sCIFAR model
        assert round((blocks * (theirs + 2 * D) + 3 * D + D + 10 * D + 10) / 1e6, 1) == 1.4


@torch.no_grad()
def test_initialisation():
    for tree in ({"depth": 9}, {"depth": 3, "tree_select": "uniform", "memory_size": 13}):
        m = 10 if len(tree) == 1 else 13
        layer = MultiresLayer(4000, kernel_size=5, **tree, output="glu")
        bounds = (
            (layer.h0, 5**-0.5),
            (layer.h1, 5**-0.5),
            (layer.w, (m + 1) ** -0.5),
            (layer.out_proj.weight, 4000**-0.5),
        )
        for tensor, bound in bounds:
            assert tensor.abs().max() <= bound
            assert tensor.std() == pytest.approx(bound / 3**0.5, rel=0.02)
        assert layer.w[:, -1].abs().max() <= (m + 1) ** -0.5
    layer = MultiresLayer(4000, depth=9, kernel_size=5, bidirectional=True)
    for tensor, bound in (
        (layer.h0_reverse, 5**-0.5),
        (layer.h1_reverse, 5**-0.5),
        (layer.w, 21**-0.5),  # 10 coefficients each way, and x
        (layer.w_reverse, 21**-0.5),
    ):
        assert tensor.abs().max() <= bound
        assert tensor.std() == pytest.approx(bound / 3**0.5, rel=0.02)
    layer = MultiresLayer(4000, depth=9, indep_res_init=True)
    assert layer.w[:, -1].std() == pytest.approx(3**-0.5, rel=0.05)
    assert layer.w[:, -1].abs().max() > 0.95
    assert layer.w[:, :-1].std() == pytest.approx((3 * 11) ** -0.5, rel=0.02)


def test_dropout_drops_channels_of_sequences_at_all_times():
    layer = MultiresLayer(500, depth=3, dropout=0.3)
    x = torch.randn(4, 20, 500)
    y, full = layer(x), layer.eval()(x)
    dropped = (y == 0).all(1)
    assert dropped.float().mean() == pytest.approx(0.3, abs=0.05)
    assert_close(y, (full * ~dropped[:, None] / 0.7).double(), torch.float32)
    layer = MultiresLayer(500, depth=3, dropout=1.0, output="glu")
    assert not layer(x).any()


def test_errors():
    for choices, message in (
        ({}, "depth must be given: max_length is None"),
        ({"max_length": 9, "kernel_size": 1}, "depth must be given: with one tap"),
        ({"depth": -1}, "depth must be at least 0"),
        ({"depth": 2, "kernel_size": 0}, "kernel_size"),
        ({"depth": 2, "tree_select": "all"}, "tree_select must be one of fading, uniform"),
        ({"depth": 2, "tree_select": "uniform"}, "memory_size"),
        ({"depth": 2, "memory_size": 3}, "memory_size"),
        ({"depth": 2, "tree_select": "uniform", "memory_size": 0}, "memory_size"),
        ({"depth": 2, "activation": "relu"}, "activation"),
        ({"depth": 2, "output": "linear"}, "output"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiresLayer(4, **choices)


def published(D, K, columns, i=0):
    """Names and shapes of one block of their `MultiresNet`."""
    shapes = {
        f"seq_layers.{i}.h0": (D, 1, K),
        f"seq_layers.{i}.h1": (D, 1, K),
        f"seq_layers.{i}.w": (D, columns),
        f"mixing_layers.{i}.0.weight": (2 * D, D, 1),
        f"mixing_layers.{i}.0.bias": (2 * D,),
        f"norms.{i}.weight": (D,),
    }
    return {name: torch.randn(shape, dtype=torch.float64) / shape[-1] ** 0.5 for name, shape in shapes.items()}


def test_published_weights():
    D, K, J, L = 4, 3, 3, 23
    state = published(D, K, J + 2, 7)
    layer = MultiresLayer(D, kernel_size=K, depth=J, output="glu").double()
    load_multires_state_dict(layer, state, "seq_layers.7.", mixing_prefix="mixing_layers.7.")
    x = torch.randn(2, L, D, dtype=torch.float64)
    a, w = x.mT, state["seq_layers.7.w"]
    z = w[:, -1:] * a
    for j in range(J):  # with their filters as they are, oldest tap first
        padded = F.pad(a, ((K - 1) * 2**j, 0))
        z = z + w[:, J - j, None] * F.conv1d(padded, state["seq_layers.7.h1"], dilation=2**j, groups=D)
        a = F.conv1d(padded, state["seq_layers.7.h0"], dilation=2**j, groups=D)
    z = z + w[:, :1] * a
    mixed = F.conv1d(F.gelu(z), state["mixing_layers.7.0.weight"], state["mixing_layers.7.0.bias"])
    assert_close(layer(x), F.glu(mixed, dim=-2).mT)
    alone = MultiresLayer(D, kernel_size=K, depth=J).double()
    load_multires_state_dict(alone, state, "seq_layers.7.")
    assert_close(alone(x), F.gelu(z).mT)


def test_published_weights_that_do_not_fit():
    state = published(4, 3, 5)
    layer = MultiresLayer(4, kernel_size=3, depth=3)
    with pytest.raises(ValueError, match=r"has no seq_layers.1.h0"):
        load_multires_state_dict(layer, state, "seq_layers.1.")
    with pytest.raises(ValueError, match=r"seq_layers.0.w gives shape \(4, 5\), the layer has \(4, 6\)"):
        load_multires_state_dict(MultiresLayer(4, kernel_size=3, depth=4), state, "seq_layers.0.")
    with pytest.raises(ValueError, match="the layer must be causal, as the published one is"):
        load_multires_state_dict(MultiresLayer(4, kernel_size=3, depth=3, bidirectional=True), state, "seq_layers.0.")
    with pytest.raises(ValueError, match="mixing_prefix"):
        load_multires_state_dict(layer, state, "seq_layers.0.", mixing_prefix="mixing_layers.0.")
    with pytest.raises(ValueError, match="mixing_prefix"):
        load_multires_state_dict(MultiresLayer(4, kernel_size=3, depth=3, output="glu"), state, "seq_layers.0.")
    with pytest.raises(ValueError, match=r"no place for seq_layers.0.extra"):
        load_multires_state_dict(layer, {**state, "seq_layers.0.extra": torch.zeros(1)}, "seq_layers.0.")
