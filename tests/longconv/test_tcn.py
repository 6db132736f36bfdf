"""TCN against its definition, lookahead and streaming with a delay, published sizes, initialisation, conversion."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close

from longconv.layers import TCN, load_tcn_state_dict


def conv(u, weight, bias, dilation, ahead=0):
    """sum_s weight[o, i, K-1-s] u[i, t + ahead - s d] + bias, term by term: u (C, L)."""
    O, _, K = weight.shape
    L = u.shape[1]
    y = torch.zeros(O, L, dtype=u.dtype) + bias[:, None]
    for t in range(L):
        for s in range(K):
            if 0 <= t + ahead - s * dilation < L:
                y[:, t] += weight[:, :, K - 1 - s] @ u[:, t + ahead - s * dilation]
    return y


def definition(layer, x, growth=2):
    """Bai et al., figure 1 (b), for one sequence x (L, D)."""
    u = x.T
    for i, block in enumerate(layer.blocks):
        v = u
        for c in (block.conv1, block.conv2):
            weight = torch.stack([g * w / w.norm() for g, w in zip(c.weight_g[:, 0, 0], c.weight_v, strict=True)])
            v = conv(v, weight, c.bias, growth**i).relu()
        skip = u if block.downsample is None else block.downsample.weight[:, :, 0] @ u + block.downsample.bias[:, None]
        u = (v + skip).relu()
    return u.T if layer.out_proj is None else u.T @ layer.out_proj.weight.T + layer.out_proj.bias


@pytest.mark.parametrize(
    "options",
    [{"num_blocks": 3}, {"kernel_size": 3, "hidden": [5, 7, 4]}, {"hidden": 6, "num_blocks": 2, "dilation_growth": 3}],
    ids=["default", "widths", "projected"],
)
def test_it_is_what_the_paper_defines(options):
    layer = TCN(4, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)  # weight_g is not the norm any more
    x = torch.randn(2, 19, 4, dtype=torch.float64)
    expected = torch.stack([definition(layer, row, options.get("dilation_growth", 2)) for row in x])
    assert_close(layer(x), expected)


@pytest.mark.parametrize(("n", "K"), [(1, 2), (4, 2), (8, 7), (3, 1)])
def test_published_receptive_field(n, K):
    assert TCN(2, num_blocks=n, kernel_size=K).receptive_field == 1 + 2 * (K - 1) * (2**n - 1)


def test_published_number_of_parameters():
    """Of the authors' blocks, counted with torch's own modules: 8 of 25 channels, 7 taps, on one input channel."""
    inputs, total = 1, 0
    for _ in range(8):
        for channels in (inputs, 25):
            total += sum(p.numel() for p in torch.nn.Conv1d(channels, 25, 7).parameters()) + 25  # 25 norms
        total += 25 * inputs + 25 if inputs == 1 else 0
        inputs = 25
    layer = TCN(25, hidden=[25] * 8, kernel_size=7)
    first = TCN(1, hidden=[25, 1], kernel_size=7).blocks[0]
    count = sum(p.numel() for p in first.parameters()) + sum(p.numel() for p in layer.blocks[1:].parameters())
    assert count == total
    # Table 1 of the paper: about 70k for sequential MNIST, with a decoder of 10 classes.
    assert 65_000 < count + 25 * 10 + 10 < 75_000


def test_depthwise_is_the_dense_one_with_diagonal_weights():
    layer = TCN(5, num_blocks=3, kernel_size=3, depthwise=True).double().eval()
    dense = TCN(5, num_blocks=3, kernel_size=3).double().eval()
    for name, parameter in dense.named_parameters():
        ours = layer.get_parameter(name)
        with torch.no_grad():
            parameter.copy_(torch.eye(5)[..., None] * ours if name.endswith("weight_v") else ours)
    x = torch.randn(2, 30, 5, dtype=torch.float64)
    assert_close(layer(x), dense(x).detach())
    assert sum(p.numel() for p in layer.parameters()) == 3 * 2 * (5 * 3 + 5 + 5)


# ---- looking ahead ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_blocks", [1, 2, 5])
@pytest.mark.parametrize("lookahead", [0, 1, 3, 4])
def test_lookahead_does_not_compound(num_blocks, lookahead):
    layer = TCN(6, num_blocks=num_blocks, kernel_size=3, lookahead=lookahead).double().eval()
    R = 1 + 4 * (2**num_blocks - 1)
    assert (layer.receptive_field, layer.lookahead, layer.causal) == (R, lookahead, lookahead == 0)
    x = torch.randn(1, R + 20, 6, dtype=torch.float64, requires_grad=True)
    at = R + 4
    gradient = torch.autograd.grad(layer(x)[0, at].sum(), x)[0][0].abs().sum(1)
    reached = gradient.nonzero().flatten()
    assert reached.min() == at + lookahead - R + 1
    assert reached.max() == at + lookahead


@pytest.mark.parametrize(("n", "K", "growth"), [(1, 2, 2), (3, 2, 2), (3, 3, 3), (4, 4, 2)])
def test_two_sided_blocks_are_centred(n, K, growth):
    """Away from the ends, where what is outside of the sequence does not matter: every block sees as far either way."""
    layer = TCN(4, num_blocks=n, kernel_size=K, dilation_growth=growth, bidirectional=True).double().eval()
    reach = (K - 1) * sum(growth**i for i in range(n))
    assert (layer.receptive_field, layer.lookahead, layer.causal) == (1 + 2 * reach, reach, False)
    L = 2 * (2 * reach) + 5
    x = torch.randn(L, 4, dtype=torch.float64)
    u = x.T
    for i, block in enumerate(layer.blocks):
        v, dilation = u, growth**i
        for c, ahead in ((block.conv1, K // 2), (block.conv2, (K - 1) - K // 2)):  # together (K - 1) dilation
            v = conv(v, c.taps(), c.bias, dilation, ahead * dilation).relu()
        u = (v + u).relu()
    assert_close(layer(x[None])[0, 2 * reach : -2 * reach], u.T[2 * reach : -2 * reach].detach())


def test_two_sided_sees_both_sides_at_every_scale():
    """With one block silent but for its skip, what is left is as wide behind as ahead."""
    for silent in range(3):
        layer = TCN(4, num_blocks=3, kernel_size=2, bidirectional=True).double().eval()
        for c in (layer.blocks[silent].conv1, layer.blocks[silent].conv2):
            torch.nn.init.zeros_(c.weight_g)
        for i, block in enumerate(layer.blocks):
            if i != silent:
                for parameter in block.parameters():
                    torch.nn.init.uniform_(parameter, 0.5, 1.0)
        x = torch.rand(1, 41, 4, dtype=torch.float64, requires_grad=True)
        reached = torch.autograd.grad(layer(x)[0, 20].sum(), x)[0][0].abs().sum(1).nonzero().flatten()
        assert (reached[0], reached[-1]) == (20 - (7 - 2**silent), 20 + (7 - 2**silent))


def test_two_sided_takes_no_lookahead():
    with pytest.raises(ValueError, match="lookahead is 7 with bidirectional, and must not be given; got 3"):
        TCN(4, num_blocks=3, kernel_size=2, bidirectional=True, lookahead=3)
    assert TCN(4, num_blocks=3, kernel_size=1, bidirectional=True).causal


@pytest.mark.parametrize(
    "options",
    [
        {"num_blocks": 4, "kernel_size": 5, "depthwise": True},
        {"hidden": [3, 5, 2], "kernel_size": 2, "dilation_growth": 4, "lookahead": 9},
        {"num_blocks": 3, "kernel_size": 1},
    ],
    ids=["depthwise", "widths", "one tap"],
)
def test_receptive_field_is_exact(options):
    """With positive weights and inputs every path is open, and every input in the field counts."""
    layer = TCN(4, **options).double().eval()
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, 0.5, 1.0)
    R, ahead = layer.receptive_field, layer.lookahead
    x = torch.rand(1, R + 20, 4, dtype=torch.float64, requires_grad=True)
    at = R + 5
    gradient = torch.autograd.grad(layer(x)[0, at].sum(), x)[0][0].abs().sum(1)
    inside = torch.zeros(R + 20, dtype=torch.bool)
    inside[[at + ahead - R + 1, at + ahead]] = True
    assert (gradient > 0)[inside].all()
    inside[at + ahead - R + 1 : at + ahead + 1] = True
    assert not gradient[~inside].any()


def test_a_block_that_looks_ahead_shifts_its_convolutions_against_its_skip():
    """Away from the ends, where zeros are appended to the input, not to each layer's."""
    layer = TCN(4, num_blocks=2, kernel_size=3, lookahead=6).double().eval()
    x = torch.randn(1, 60, 4, dtype=torch.float64)
    u = x[0].T
    for block, d, shifts in zip(layer.blocks, (1, 2), ((2, 2), (1, 1)), strict=True):  # 4 = the first block's reach
        v = u
        for c, ahead in zip((block.conv1, block.conv2), shifts, strict=True):
            v = conv(v, c.taps(), c.bias, d, ahead).relu()
        u = (v + u).relu()
    assert_close(layer(x)[0, 20:40], u.T[20:40].detach())


@pytest.mark.parametrize("lookahead", [0, 1, 5, 20])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("depthwise", [False, True])
def test_a_stream_is_late_by_the_lookahead_and_otherwise_the_whole(lookahead, grad, depthwise):
    layer = TCN(4, num_blocks=3, kernel_size=3, lookahead=lookahead, depthwise=depthwise).eval()
    x = torch.randn(3, 150, 4)
    with torch.set_grad_enabled(grad):
        expected = layer(x).double()
        for sizes in ([150], [1] * 150, [1, 2, 47, 50, 50], [70, 1, 1, 1, 77]):
            state, outputs = None, []
            for piece in x.split(sizes, dim=1):
                y, state = layer.stream(piece, state)
                assert y.shape == piece.shape
                outputs.append(y)
            outputs.append(layer.flush(state))
            assert outputs[-1].shape == (3, lookahead, 4)
            assert_close(torch.cat(outputs, 1)[:, lookahead:], expected, torch.float32, name=str(sizes)[:30])
            assert state.position == 150
        _, state = layer.stream(x[:, :100])
        assert_close(layer.flush(state), layer(x[:, :100])[:, 100 - lookahead :].double(), torch.float32)
        y, _ = layer.stream(x[:, 100:], state)  # flushing used nothing up
        assert_close(y, expected[:, 100 - lookahead : 150 - lookahead], torch.float32)


def test_the_state_of_a_long_stream_does_not_grow():
    layer = TCN(4, num_blocks=3, kernel_size=3).eval()
    state = layer.init_state(2)
    with torch.no_grad():
        for _ in range(500):
            _, state = layer.step(torch.randn(2, 4), state)
    for past, d in zip(state.past, (1, 1, 2, 2, 4, 4), strict=True):
        assert 2 * d <= past.length <= 4 * d + 64
        assert past._storage.shape[-1] <= 8 * d + 130


def test_lookahead_errors():
    layer = TCN(4, 20, num_blocks=2, lookahead=3)
    with pytest.raises(ValueError, match="not causal"):
        layer(torch.randn(1, 5, 4), return_state=True)
    with pytest.raises(ValueError, match="not causal"):
        layer.init_state(1)
    with pytest.raises(ValueError, match="x must be"):
        layer.stream(torch.randn(1, 5, 3))
    _, state = layer.stream(torch.randn(1, 15, 4))
    with pytest.raises(ValueError, match="max_length = 20"):
        layer.stream(torch.randn(1, 6, 4), state)
    with pytest.raises(ValueError, match="without samples"):
        layer.flush(type(state)(0))
    with pytest.raises(TypeError, match="no input controls"):
        layer.stream(torch.randn(1, 5, 4), controls=torch.zeros(1, 2))


# ---- initialisation, options ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_initialisation_is_what_the_authors_code_comes_to():
    """N(0, 0.01^2) reaches the 1x1 convolutions only: the others' is overwritten when g and v are put together."""
    layer = TCN(400, hidden=[300, 400], kernel_size=3)
    for block in layer.blocks:
        for c in (block.conv1, block.conv2):
            fan_in = c.weight_v[0].numel()
            bound = fan_in**-0.5
            assert c.weight_v.abs().max() <= bound
            assert c.weight_v.std() == pytest.approx(bound / 3**0.5, rel=0.01)
            assert c.bias.abs().max() <= bound
            assert_close(c.weight_g.flatten(), c.weight_v.flatten(1).double().norm(dim=1), torch.float32)
            assert_close(c.taps(), c.weight_v.double())
        assert block.downsample.weight.std() == pytest.approx(0.01, rel=0.01)
        assert block.downsample.weight.mean().abs() < 1e-4
    gaussian = TCN(400, num_blocks=1, kernel_size=3, init_std=0.01).blocks[0].conv1
    assert gaussian.taps().std() == pytest.approx(0.01, rel=0.01)
    kurtosis = (gaussian.taps() / 0.01).pow(4).mean()
    assert kurtosis == pytest.approx(3, rel=0.05)


def test_dropout_is_behind_both_convolutions():
    layer = TCN(4, num_blocks=1, dropout=1.0)
    x = torch.randn(2, 9, 4)
    assert torch.equal(layer(x), x.relu())


def test_errors():
    for options, message in (
        ({"kernel_size": 0}, "kernel_size"),
        ({"dilation_growth": 0}, "dilation_growth"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"hidden": [4, 0]}, "hidden"),
        ({"hidden": [4, 4], "num_blocks": 3}, "hidden must have num_blocks = 3"),
        ({"hidden": 5, "depthwise": True}, "depthwise"),
        ({"num_blocks": 1, "kernel_size": 3, "lookahead": 5}, "lookahead must be in 0 ... receptive field - 1 = 4"),
        ({"lookahead": -1}, "lookahead"),
    ):
        with pytest.raises(ValueError, match=message):
            TCN(4, **options)
    with pytest.raises(ValueError, match="not a fixed convolution"):
        TCN(4).kernel(5)


# ---- conversion ----------------------------------------------------------------------------------------------------


def published(widths, K, newer=False):
    """A state dict with the names and shapes of `TemporalConvNet(widths[0], widths[1:], K)`."""
    state, norm = {}, ("parametrizations.weight.original0", "parametrizations.weight.original1")
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        for name, repeat, channels in (("conv1", "net.0", before), ("conv2", "net.4", after)):
            for part, shape in (
                ("bias", (after,)),
                (norm[0] if newer else "weight_g", (after, 1, 1)),
                (norm[1] if newer else "weight_v", (after, channels, K)),
            ):
                state[f"tcn.network.{i}.{name}.{part}"] = torch.randn(shape, dtype=torch.float64)
                state[f"tcn.network.{i}.{repeat}.{part}"] = state[f"tcn.network.{i}.{name}.{part}"]
        if before != after:
            state[f"tcn.network.{i}.downsample.weight"] = torch.randn(after, before, 1, dtype=torch.float64)
            state[f"tcn.network.{i}.downsample.bias"] = torch.randn(after, dtype=torch.float64)
    return state


@pytest.mark.parametrize("newer", [False, True])
def test_published_weights(newer):
    widths, K = [4, 6, 6, 4], 3
    state = published(widths, K, newer)
    layer = TCN(4, hidden=widths[1:], kernel_size=K).double().eval()
    load_tcn_state_dict(layer, {**state, "linear.weight": torch.zeros(1)}, "tcn.")
    x = torch.randn(2, 25, 4, dtype=torch.float64)
    u = x.mT
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    for i in range(3):  # as their code runs: padded on both sides, and the end cut off
        v, pad = u, (K - 1) * 2**i
        for name in ("conv1", "conv2"):
            at = f"tcn.network.{i}.{name}."
            g, w = (state[at + part] for part in (names if newer else ("weight_g", "weight_v")))
            weight = torch._weight_norm(w, g, 0)
            v = F.conv1d(v, weight, state[at + "bias"], padding=pad, dilation=2**i)[..., :-pad].relu()
        at = f"tcn.network.{i}.downsample."
        u = (v + (F.conv1d(u, state[at + "weight"], state[at + "bias"]) if at + "bias" in state else u)).relu()
    assert_close(layer(x), u.mT)


def test_published_weights_that_do_not_fit():
    state = published([4, 6, 4], 3)
    with pytest.raises(ValueError, match=r"has no tcn.network.2.conv1.weight_g"):
        load_tcn_state_dict(TCN(4, hidden=[6, 4, 4], kernel_size=3), state, "tcn.")
    with pytest.raises(ValueError, match=r"tcn.network.0.conv1.weight_v gives shape \(6, 4, 3\)"):
        load_tcn_state_dict(TCN(4, hidden=[6, 4], kernel_size=2), state, "tcn.")
    with pytest.raises(ValueError, match=r"no place for .*network.1.conv1"):
        load_tcn_state_dict(TCN(4, hidden=[6], kernel_size=3), state, "tcn.")
