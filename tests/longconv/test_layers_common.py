"""The contract of every mixer: whole == chunks == steps, exact padding, limits, gradients, dtypes, states."""

import itertools
from pathlib import Path

import pytest
import safetensors.torch
import torch
from numerics import assert_close

from longconv.layers import LAYERS, GlobalConv, LightConv, MultiresLayer, build_layer
from longconv.state import Constant, GrowingBuffer, map_tensors

D, M = 16, 24
VARIANTS = {
    "hyena": ("hyena", {"filter": {"name": "hyena", "emb_dim": 5, "order": 8, "w": 3.0}}),
    "hyena-order3": ("hyena", {"order": 3, "short_kernel": 4}),
    "hyena-modal": ("hyena", {"filter": {"name": "modal", "order": 4}}),
    "hyena-1": ("hyena", {"short_kernel": 1, "filter": {"name": "rtf", "order": 3, "init": "montel"}}),
    "hyena-two-sided": ("hyena", {"order": 3, "bidirectional": True, "filter": {"name": "hyena", "order": 8}}),
    "hyena-two-sided-modal": (
        "hyena",
        {"short_kernel": 4, "bidirectional": True, "filter": {"name": "modal", "order": 3}},
    ),
    "attention": ("attention", {"num_heads": 2}),
    "attention-two-sided": ("attention", {"num_heads": 2, "bidirectional": True}),
    "multi_hyena": ("multi_hyena", {"num_heads": 8, "filter": {"name": "hyena", "order": 8}}),
    "multi_hyena-modal": ("multi_hyena", {"num_heads": 4, "filter": {"name": "modal", "order": 3}}),
    "multi_hyena-1": ("multi_hyena", {"num_heads": 4, "short_kernel": 1}),
    "multi_hyena-two-sided": ("multi_hyena", {"num_heads": 4, "bidirectional": True}),
    "sgconv": ("sgconv", {"filter": {"name": "sgconv", "kernel_dim": 4}}),
    "sgconv-two-sided": ("sgconv", {"bidirectional": True, "filter": {"name": "sgconv", "kernel_dim": 4}}),
    "s4d": ("s4d", {"filter": {"name": "s4d", "state_size": 6}}),
    "s4d-two-sided": ("s4d", {"filter": {"name": "s4d", "state_size": 6}, "bidirectional": True}),
    "smpconv": ("smpconv", {"filter": {"name": "smpconv", "points": 5, "radius": 0.3}}),
    "global_conv-freeform": ("global_conv", {}),
    "global_conv-dcls": ("global_conv", {"filter": {"name": "dcls", "kernel_count": 3, "dilated_kernel_size": 7}}),
    "global_conv-ema": ("global_conv", {"filter": {"name": "ema", "order": 4}, "output": "none"}),
    "global_conv": ("global_conv", {"filter": "hyena", "short_kernel": 3, "bias": True}),
    "global_conv-1": ("global_conv", {"short_kernel": 1, "output": "linear"}),
    "global_conv-modal": ("global_conv", {"filter": {"name": "modal", "order": 3}, "output": "linear"}),
    "global_conv-two-sided": ("global_conv", {"filter": "hyena", "bidirectional": True, "activation": "silu"}),
    "micro_tcn": ("micro_tcn", {"num_blocks": 3, "kernel_size": 3, "dilation_growth": 3}),
    "micro_tcn-grouped": ("micro_tcn", {"num_blocks": 2, "kernel_size": 4, "dilation_growth": 2, "grouped": True}),
    "micro_tcn-1": ("micro_tcn", {"num_blocks": 2, "kernel_size": 1}),
    "micro_tcn-centred": ("micro_tcn", {"num_blocks": 2, "kernel_size": 4, "dilation_growth": 3, "causal": False}),
    "multires": ("multires", {"depth": 4}),
    "multires-uniform": (
        "multires",
        {"depth": 3, "kernel_size": 3, "tree_select": "uniform", "memory_size": 6, "output": "glu"},
    ),
    "multires-two-sided": ("multires", {"depth": 3, "kernel_size": 3, "bidirectional": True}),
    "multires-two-sided-uniform": (
        "multires",
        {"depth": 3, "tree_select": "uniform", "memory_size": 5, "output": "glu", "bidirectional": True},
    ),
    "multires-1": ("multires", {"depth": 2, "kernel_size": 1, "activation": "none"}),
    "tcn": ("tcn", {"num_blocks": 2, "kernel_size": 3}),
    "tcn-widths": ("tcn", {"hidden": [16, 12, 20], "dilation_growth": 3}),
    "tcn-depthwise": ("tcn", {"num_blocks": 1, "kernel_size": 4, "depthwise": True}),
    "tcn-1": ("tcn", {"num_blocks": 2, "kernel_size": 1}),
    "tcn-lookahead": ("tcn", {"num_blocks": 2, "kernel_size": 3, "lookahead": 7}),
    "tcn-two-sided": ("tcn", {"num_blocks": 3, "kernel_size": 2, "bidirectional": True}),
    "tcn-two-sided-widths": ("tcn", {"hidden": [16, 12], "kernel_size": 4, "bidirectional": True}),
    "lightconv": ("lightconv", {"kernel_size": 5, "num_heads": 4}),
    "lightconv-1": ("lightconv", {"kernel_size": 1, "num_heads": 2, "conv_bias": True, "weight_softmax": False}),
    "lightconv-two-sided": ("lightconv", {"kernel_size": 6, "num_heads": 2, "conv_channels": 8, "bidirectional": True}),
    "dynamicconv": ("dynamicconv", {"kernel_size": 5, "num_heads": 4, "bias": True}),
    "dynamicconv-1": ("dynamicconv", {"kernel_size": 1, "num_heads": 2, "glu": False, "weight_softmax": False}),
    "dynamicconv-renorm": ("dynamicconv", {"kernel_size": 6, "num_heads": 2, "renorm_padding": True}),
    "dynamicconv-two-sided": (
        "dynamicconv",
        {"kernel_size": 5, "num_heads": 2, "renorm_padding": True, "bidirectional": True},
    ),
    "mega": ("mega", {"chunk_size": 5, "ndim": 3, "zdim": 4}),
    "mega-whole": ("mega", {"rel_pos_bias": "simple", "attention_activation": "laplace", "norm": "scalenorm"}),
    "mega-truncated": ("mega", {"truncation": 6, "norm": "layernorm", "zdim": 6, "hdim": 12}),
    "mega-two-sided": ("mega", {"chunk_size": 5, "rel_pos_bias": "simple", "norm": "rmsnorm", "bidirectional": True}),
    "mega-batchnorm": ("mega", {"chunk_size": 5, "zdim": 4, "norm": "batchnorm"}),
    "mega-two-sided-batchnorm": ("mega", {"zdim": 4, "norm": "batchnorm", "bidirectional": True}),
    "tcnca": ("tcnca", {"num_layers": 2, "kernel_size": 4, "dilation_factor": 4, "chunk_size": 5, "zdim": 4}),
    "tcnca-1": ("tcnca", {"kernel_size": 1, "chunk_size": 5, "rel_pos_bias": "simple", "zdim": 3}),
    "tcnca-whole": ("tcnca", {"num_layers": 2, "kernel_size": 3, "attention_activation": "laplace", "zdim": 4}),
    "tcnca-two-sided": (
        "tcnca",
        {"num_layers": 2, "kernel_size": 4, "dilation_factor": 3, "zdim": 4, "norm": "rmsnorm", "bidirectional": True},
    ),
}
#: Layers that take one length only, and which test file has them instead.
ELSEWHERE: dict[str, str] = {"hyena_nd": "test_hyena_nd.py"}


def build(variant, channels=D, max_length=M, **options):
    name, defaults = VARIANTS[variant]
    return build_layer(name, channels, max_length, **{**defaults, **options})


CAUSAL = [variant for variant in VARIANTS if build(variant).causal]
variants = pytest.mark.parametrize("variant", VARIANTS)
causal_variants = pytest.mark.parametrize("variant", CAUSAL)
two_sided_variants = pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in CAUSAL])


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(variant, max_length=M, **options):
    return build(variant, D, max_length, **options).eval()


def run_chunks(layer, x, sizes, mask=None):
    state, outputs, start = None, [], 0
    for size in sizes:
        piece = slice(start, start + size)
        y, state = layer(x[:, piece], mask=None if mask is None else mask[:, piece], state=state, return_state=True)
        outputs.append(y)
        start += size
    return torch.cat(outputs, 1), state


def run_steps(layer, x, state=None):
    state = layer.init_state(x.shape[0]) if state is None else state
    outputs = []
    for x_t in x.unbind(1):
        y, state = layer.step(x_t, state)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def test_every_layer_is_tested():
    assert {name for name, _ in VARIANTS.values()} == set(LAYERS) - set(ELSEWHERE)
    assert set(ELSEWHERE) <= set(LAYERS)
    for file in ELSEWHERE.values():
        assert Path(__file__).with_name(file).exists()


@causal_variants
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("L", [1, 2, 7, 24])
def test_chunks_and_steps_equal_the_whole(variant, L, grad):
    layer, x = make(variant), torch.randn(3, L, D)
    with torch.set_grad_enabled(grad):
        whole = layer(x).double()
        for sizes in {(L,), (1, L - 1), (L - 1, 1), (L // 2, L - L // 2), (1,) * L}:
            y, state = run_chunks(layer, x, [s for s in sizes if s])
            assert_close(y, whole, torch.float32, name=f"chunks {sizes}")
            assert state.position == L
        y, state = run_steps(layer, x)
        assert_close(y, whole, torch.float32, name="steps")
        assert state.position == L


@causal_variants
def test_steps_continue_a_prefill_and_a_state_can_be_used_twice(variant):
    layer, x, other = make(variant), torch.randn(2, 20, D), torch.randn(2, 20, D)
    other[:, :9] = x[:, :9]
    with torch.no_grad():
        _, state = layer(x[:, :9], return_state=True)
        _, state = layer.step(x[:, 9], layer(x[:, :9], return_state=True)[1])  # leaves room behind the buffers
        expected = layer(x)[:, 10:]
        branch = torch.cat([x[:, :10], other[:, 10:]], 1)
        first, _ = run_steps(layer, x[:, 10:], state)
        second, _ = run_steps(layer, other[:, 10:], state)
        chunk, _ = layer(x[:, 10:], state=state, return_state=True)
    assert_close(first, expected.double(), torch.float32)
    assert_close(second, layer(branch)[:, 10:].double(), torch.float32)
    assert_close(chunk, expected.double(), torch.float32)


@causal_variants
def test_it_is_causal(variant):
    layer, x = make(variant), torch.randn(2, 20, D)
    changed = x.clone()
    changed[:, 12:] += 1
    assert_close(layer(changed)[:, :12], layer(x)[:, :12].double(), torch.float32)
    assert not torch.allclose(layer(changed)[:, 12], layer(x)[:, 12])


@variants
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64], ids=str)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_exact(variant, side, dtype):
    layer, lengths, L = make(variant), [20, 13, 1], 20
    x, mask = torch.full((3, L, D), 7.0), torch.zeros(3, L, dtype=dtype)
    for row, length in enumerate(lengths):
        real = slice(L - length, L) if side == "left" else slice(0, length)
        x[row, real], mask[row, real] = torch.randn(length, D), 1
    y = layer(x, mask=mask)
    assert y.isfinite().all()
    for row, length in enumerate(lengths):
        keep = mask[row].bool()
        assert_close(y[row, keep], layer(x[row, keep][None])[0].double(), torch.float32, name=f"length {length}")


@variants
def test_packed_sequences_do_not_see_each_other(variant):
    """Their total length may exceed max_length, which bounds each of them."""
    layer, lengths = make(variant), [5, 1, 0, M, 9]
    x = torch.randn(1, sum(lengths), D)
    ends = torch.tensor([0, *lengths]).cumsum(0)
    y = layer(x, cu_seqlens=ends)
    for start, end in itertools.pairwise(ends.tolist()):
        if end > start:
            assert_close(y[:, start:end], layer(x[:, start:end]).double(), torch.float32, name=f"from {start}")


@causal_variants
def test_left_padding_carries_over_to_chunks_and_steps(variant):
    layer, lengths, L = make(variant), [20, 13, 4], 20
    x, mask = torch.randn(3, L, D), torch.zeros(3, L, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, L - length :] = True
    with torch.no_grad():
        y, state = run_chunks(layer, x, [9, 7, 2], mask)  # the last row is all padding in the first chunk
        tail, _ = run_steps(layer, x[:, 18:], state)
        y = torch.cat([y, tail], 1)
        for row in range(3):
            assert_close(y[row, mask[row]], layer(x[row, mask[row]][None])[0].double(), torch.float32)
        # A first chunk without padding, then one with a mask of ones.
        y, state = layer(x[:, :9], return_state=True)
        y, _ = layer(x[:, 9:], mask=torch.ones(3, 11), state=state, return_state=True)
        assert_close(y, layer(x)[:, 9:].double(), torch.float32)


@variants
def test_errors_name_the_cause(variant):
    layer, x = make(variant), torch.randn(2, M, D)
    with pytest.raises(ValueError, match="max_length = 24"):
        layer(torch.randn(2, M + 1, D))
    with pytest.raises(ValueError, match="at least 1"):
        layer(x[:, :0])
    with pytest.raises(ValueError, match="x must be"):
        layer(torch.randn(2, 5, D + 1))
    with pytest.raises(TypeError, match="x must be floating point"):
        layer(torch.ones(2, 5, D, dtype=torch.int64))
    with pytest.raises(ValueError, match="mask must be"):
        layer(x, mask=torch.ones(2, M - 1))
    for wrong in ([0, M - 1], [1, M], [0, 5, 4, M], [M]):
        with pytest.raises(ValueError, match="cu_seqlens"):
            layer(x[:1], cu_seqlens=torch.tensor(wrong))
    ends = torch.tensor([0, M])
    for row, options in ((x, {}), (x[:1], {"mask": torch.ones(1, M)})):
        with pytest.raises(ValueError, match="cu_seqlens"):
            layer(row, cu_seqlens=ends, **options)
    with pytest.raises(ValueError, match="max_length = 24"):
        layer(torch.randn(1, M + 1, D), cu_seqlens=torch.tensor([0, M + 1]))
    with pytest.raises(ValueError, match="channels"):
        build(variant, 0)
    with pytest.raises(ValueError, match="max_length"):
        build(variant, D, 0)


@causal_variants
def test_errors_of_states_name_the_cause(variant):
    layer, x = make(variant), torch.randn(2, M, D)
    _, state = layer(x, return_state=True)
    with pytest.raises(ValueError, match="max_length = 24"):
        layer(x[:, :1], state=state)
    with pytest.raises(ValueError, match="max_length = 24"):
        layer.step(x[:, 0], state)
    with pytest.raises(ValueError, match="x_t must be"):
        layer.step(torch.randn(2, D + 1), layer.init_state(2))
    for wrong in ((torch.zeros(2),), [None], 3):
        with pytest.raises(TypeError, match="state must be what init_state"):
            layer.step(x[:, 0], wrong)
        with pytest.raises(TypeError, match="state must be what init_state"):
            layer(x[:, :3], state=wrong)
    with pytest.raises(ValueError, match="cu_seqlens"):
        layer(x[:1], cu_seqlens=torch.tensor([0, M]), return_state=True)
    right = torch.ones(2, M, dtype=torch.bool)
    right[1, -1] = False
    layer(x, mask=right)
    with pytest.raises(ValueError, match="pads on the right"):
        layer(x, mask=right, return_state=True)


@two_sided_variants
def test_two_sided_layers_have_no_state(variant):
    layer, x = make(variant), torch.randn(2, 12, D)
    changed = x.clone()
    changed[:, -1] += 1
    assert not torch.allclose(layer(changed)[:, -2], layer(x)[:, -2])
    assert layer.lookahead != 0
    for call in (
        lambda: layer(x, return_state=True),
        lambda: layer(x, state=object()),
        lambda: layer.init_state(2),
        lambda: layer.step(x[:, 0], None),
    ):
        with pytest.raises(ValueError, match="not causal"):
            call()


@variants
def test_gradients_reach_every_parameter_also_through_a_state(variant):
    layer, x = make(variant), torch.randn(2, 12, D, requires_grad=True)
    reference = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    assert all(g.isfinite().all() and g.any() for g in reference)
    for y in (run_chunks(layer, x, [5, 7])[0], run_steps(layer, x)[0]) if layer.causal else ():
        for got, expected in zip(
            torch.autograd.grad(y.square().sum(), [x, *layer.parameters()]), reference, strict=True
        ):
            assert_close(got, expected.double(), torch.float32)


@causal_variants
def test_detached_state_allows_truncated_backpropagation(variant):
    layer, x = make(variant), torch.randn(2, 12, D)
    y, state = layer(x[:, :6], return_state=True)
    y.sum().backward()
    y, _ = layer(x[:, 6:], state=state.detach(), return_state=True)
    y.sum().backward()


@variants
def test_gradcheck(variant):
    layer = build(variant, 4, 6, **({"num_heads": 1} if "num_heads" in VARIANTS[variant][1] else {})).double().eval()
    x = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: layer(x), x)


@variants
def test_receptive_field_by_gradient(variant):
    """Of the sum of squares of one output: zero (but for an FFT's rounding) outside the field, not zero at its ends."""
    layer = make(variant)
    field, ahead = layer.receptive_field, layer.lookahead
    L = M if field is None else field + 8
    layer = make(variant, max_length=L).double()
    x = torch.randn(1, L, D, dtype=torch.float64, requires_grad=True)
    at = L // 2 if ahead is None else L - 4 - ahead
    gradient = torch.autograd.grad(layer(x)[0, at].square().sum(), x)[0][0].abs().sum(1)
    reached = gradient > (1e-12 * gradient.max() if len(layer.long_filters) else 0)
    assert reached[at]
    if ahead is not None:
        assert not reached[at + ahead + 1 :].any()
    if field is not None:
        assert ahead is not None
        first = at + ahead - field + 1
        assert not reached[:first].any()
        assert reached[first]
        assert reached[at + ahead]


# What comes before and behind the convolution that `kernel` is, in the layers that are one.
AROUND = {
    GlobalConv: (lambda layer, x: x, lambda layer, z: layer._pointwise(z)),
    MultiresLayer: (lambda layer, x: x, lambda layer, z: layer._output(z)),
    LightConv: (
        lambda layer, x: layer._project(x),
        lambda layer, z: layer.out_proj(z if layer.conv_bias is None else z + layer.conv_bias),
    ),
}


@variants
@pytest.mark.parametrize("L", [1, 2, 19])
def test_fixed_convolutions_are_their_kernel(variant, L):
    """Tap by tap in float64; a layer that is no fixed convolution says so."""
    layer, x = make(variant).double(), torch.randn(2, L, D, dtype=torch.float64)
    around = next((maps for kind, maps in AROUND.items() if isinstance(layer, kind)), None)
    if around is None:
        with pytest.raises(ValueError, match=f"{type(layer).__name__} is not a fixed convolution"):
            layer.kernel(L)
        return
    kernel, u = layer.kernel(L), around[0](layer, x)
    assert kernel.shape == (u.shape[-1], L if layer.causal else 2 * L - 1)
    lags = range(0 if layer.causal else 1 - L, L)
    z = torch.zeros_like(u)
    for tap, lag in zip(kernel.unbind(1), lags, strict=True):
        z[:, max(lag, 0) : L + min(lag, 0)] += tap * u[:, max(-lag, 0) : L - max(lag, 0)]
    assert_close(layer(x), around[1](layer, z))


@variants
def test_built_on_the_meta_device_and_initialised_later(variant):
    """Nothing is lost that a module's own initialisation does not bring back (new memory is NaN here)."""
    direct = build(variant)
    with torch.device("meta"):
        later = build(variant)
    later.to_empty(device="cpu")
    for module in reversed(list(later.modules())):  # parts before the whole
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    theirs = dict(direct.state_dict())
    assert later.state_dict().keys() == theirs.keys()
    for name, tensor in later.state_dict().items():
        assert tensor.isfinite().all(), name
        assert tensor.dtype == theirs[name].dtype, name
        if name not in dict(later.named_parameters()):
            assert torch.equal(tensor, theirs[name]), name
    later.load_state_dict(theirs)
    x = torch.randn(2, 10, D)
    assert torch.equal(later.eval()(x), direct.eval()(x))


@variants
def test_bfloat16(variant):
    layer, x = make(variant), torch.randn(2, 20, D)
    expected = layer(x)
    layer, x = layer.bfloat16(), x.bfloat16()
    assert all(p.dtype == torch.float32 for f in layer.long_filters for p in f.parameters())
    with torch.no_grad():
        y = layer(x)
        assert y.dtype == torch.bfloat16
        assert torch.linalg.vector_norm(y - expected) < 0.1 * torch.linalg.vector_norm(expected)
        for streamed in (run_chunks(layer, x, [7, 13])[0], run_steps(layer, x)[0]) if layer.causal else ():
            assert streamed.dtype == torch.bfloat16
            assert torch.linalg.vector_norm(streamed - expected) < 0.1 * torch.linalg.vector_norm(expected)


@variants
def test_autocast(variant):
    layer, x = make(variant), torch.randn(2, 20, D)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        streams = (run_chunks, lambda layer, x, _: run_steps(layer, x)) if layer.causal else ()
        for y in (layer(x), *(stream(layer, x, [7, 13])[0] for stream in streams)):
            assert torch.linalg.vector_norm(y - expected) < 0.1 * torch.linalg.vector_norm(expected)


@causal_variants
def test_states_follow_the_batch(variant):
    layer, x = make(variant), torch.randn(3, 12, D)
    mask = torch.ones(3, 8, dtype=torch.bool)
    mask[1, :3] = False
    with torch.no_grad():
        _, state = layer(x[:, :8], mask=mask, return_state=True)
        expected, _ = run_steps(layer, x[:, 8:], state)
        rows = torch.tensor([2, 0, 0, 1])
        y, _ = run_steps(layer, x[rows, 8:], state.index_select(rows))
        assert_close(y, expected[rows].double(), torch.float32)
        y, _ = run_steps(layer, x.repeat_interleave(2, 0)[:, 8:], state.batch_repeat_interleave(2))
        assert_close(y, expected.repeat_interleave(2, 0).double(), torch.float32)
        y, _ = run_steps(layer, x[:, 8:], state.to("cpu"))
        assert torch.equal(y, expected)


@causal_variants
def test_inference_mode_states(variant):
    layer, x = make(variant), torch.randn(2, 12, D)
    expected = layer(x)
    with torch.inference_mode():
        _, state = layer(x[:, :8], return_state=True)
        y, state = layer.step(x[:, 8], state)
    with torch.no_grad():
        y, state = layer.step(x[:, 9], state)
    assert_close(y, expected[:, 9].double(), torch.float32)


@causal_variants
def test_long_streams_through_every_way_of_going_on(variant):
    """Long enough for what a filter's state does in blocks: prefill, steps, chunks, batches, gradients on and off."""
    L, rows = 500, torch.tensor([1, 0, 1])
    layer, x = make(variant, max_length=L), torch.randn(2, L, D)
    with torch.no_grad():
        expected = layer(x).double()
        y, state = layer(x[:, :75], return_state=True)
        outputs = [y]
        for at, end in [(75, 215), (215, 216), (216, 246), (246, 250), (250, 379), (379, 381), (381, 383), (383, L)]:
            piece = x[:, at:end]
            with torch.set_grad_enabled(at in (250, 381)):
                y, after = layer(piece, state=state, return_state=True) if at % 2 else run_steps(layer, piece, state)
                moved, _ = run_steps(layer, piece[rows, :20], state.index_select(rows))
            assert_close(moved, expected[rows, at:end][:, :20], torch.float32, name=f"rows after {at}")
            outputs.append(y)
            state = after.detach()
    assert_close(torch.cat(outputs, 1), expected, torch.float32)


@variants
def test_in_models(variant, tmp_path):
    """By name in a configuration: loss, saving and loading to the bit, missing weights as published, generation."""
    from longconv.models import LongConvConfig, LongConvForCausalLM, LongConvForSequenceClassification

    name, options = VARIANTS[variant]
    config = LongConvConfig(
        vocab_size=11,
        hidden_size=D,
        num_hidden_layers=2,
        mixers=name,
        mixer_options={name: options},
        max_position_embeddings=M,
        initializer_range=0.3,
    )
    kind = LongConvForCausalLM if variant in CAUSAL else LongConvForSequenceClassification
    if kind is LongConvForSequenceClassification:
        with pytest.raises(ValueError, match=f"block 0 \\('{name}'.*not causal"):
            LongConvForCausalLM(config)
    model, ids = kind(config).eval(), torch.randint(11, (2, 12))
    marks = {name: p._optim for name, p in model.named_parameters() if hasattr(p, "_optim")}
    bare, mixer = build(variant), model.model.layers[0].mixer
    linear = {id(p) for module in mixer.modules() if isinstance(module, torch.nn.Linear) for p in module.parameters()}
    for key, parameter in mixer.named_parameters():
        if id(parameter) not in linear and parameter.numel() >= 48:  # not those that the model initialises
            published = bare.get_parameter(key)
            assert 0.5 * published.std() - 1e-6 <= parameter.std() <= 2 * published.std() + 1e-6, key
    model.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert {name: p._optim for name, p in loaded.named_parameters() if hasattr(p, "_optim")} == marks
    prefix = "model.layers.0.mixer."
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"]
    assert all(name.startswith(prefix) for name in info["missing_keys"])
    for key, parameter in loaded.named_parameters():
        fresh = model.get_parameter(key)
        assert parameter.isfinite().all(), key
        if key.startswith(prefix) and fresh.numel() >= 48:
            assert parameter.std() <= 2 * fresh.std() + 1e-6, key
            assert fresh.std() <= 2 * parameter.std() + 1e-6, key
    if variant in CAUSAL:
        with torch.no_grad():
            out = model.generate(ids, max_new_tokens=6, do_sample=False)
            assert torch.equal(out[:, 12:], model(out[:, :-1]).logits[:, 11:].argmax(-1))
            packed = model(ids.view(1, -1), cu_seqlens=torch.tensor([0, 12, 24])).logits
            assert_close(packed.view(2, 12, -1), model(ids).logits.double(), torch.float32)


def test_a_filter_shorter_than_the_layer_is_an_error_also_in_steps():
    layer, x = make("hyena", filter={"name": "hyena", "max_length": 10}), torch.randn(2, 12, D)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            with pytest.raises(ValueError, match="max_length = 10"):
                layer(x)
            with pytest.raises(ValueError, match="max_length = 10"):
                layer(x, return_state=True)
            y, state = layer(x[:, :9], return_state=True)
            with pytest.raises(ValueError, match="max_length = 10"):
                layer(x[:, 9:], state=state)
            y, state = layer.step(x[:, 9], state)
            assert_close(y, layer(x[:, :10])[:, 9].double(), torch.float32)
            with pytest.raises(ValueError, match="max_length = 10"):
                layer.step(x[:, 10], state)


def test_unknown_mixer():
    with pytest.raises(ValueError, match=f"unknown mixer 'mamba'; known: {', '.join(sorted(LAYERS))}$"):
        build_layer("mamba", 8)


def test_growing_buffer_shares_storage_only_while_nobody_has_written_behind_it():
    buffer = GrowingBuffer(torch.zeros(2, 3, 0), dim=-1)
    with torch.no_grad():
        contents, copies, storage = [], 0, None
        for i in range(100):
            buffer = buffer.append(torch.full((2, 3, 1), float(i)))
            contents.append(float(i))
            copies += buffer.view.data_ptr() != storage
            storage = buffer.view.data_ptr()
            assert torch.equal(buffer.view[0, 0], torch.tensor(contents))
        assert copies < 10
        a, b = buffer.append(torch.ones(2, 3, 1)), buffer.append(-torch.ones(2, 3, 1))
        assert a.view[0, 0, -1] == 1
        assert b.view[0, 0, -1] == -1
        moved = buffer.map(lambda t: t.index_select(0, torch.tensor([1])))
        assert moved.append(torch.ones(1, 3, 2)).view.shape == (1, 3, 102)
        handed_through = buffer.map(torch.detach)
        a, b = buffer.append(torch.ones(2, 3, 1)), handed_through.append(-torch.ones(2, 3, 1))
        assert (a.view[..., -1] == 1).all()
        assert (b.view[..., -1] == -1).all()


def test_constants_are_not_reordered():
    state = {"a": torch.arange(3), "b": Constant(torch.arange(3)), "c": [None, "text", 4]}
    doubled = map_tensors(state, lambda t: 2 * t)
    assert torch.equal(doubled["a"], 2 * torch.arange(3))
    assert torch.equal(doubled["b"].value, torch.arange(3))
    assert doubled["c"] == [None, "text", 4]
    assert torch.equal(map_tensors(state, lambda t: 2 * t, constants=True)["b"].value, 2 * torch.arange(3))
