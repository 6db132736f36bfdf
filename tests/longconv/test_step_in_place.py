"""`step_`: the same as `step`, with the new state in the memory of the old one."""

import pytest
import torch
from numerics import assert_close

from longconv.layers import LAYERS, build_layer
from longconv.state import Constant, map_tensors

D, M = 16, 24
STATIC = {
    "hyena-modal": ("hyena", {"filter": {"name": "modal", "order": 4}}),
    "hyena-order3": ("hyena", {"order": 3, "filter": {"name": "modal", "order": 4}}),
    "hyena-one-tap": ("hyena", {"short_kernel": 1, "filter": {"name": "s4d", "state_size": 6}}),
    "hyena-rtf": ("hyena", {"filter": {"name": "rtf", "order": 3, "init": "montel"}}),
    "multi_hyena": ("multi_hyena", {"num_heads": 4, "filter": {"name": "modal", "order": 3}}),
    "s4d": ("s4d", {"filter": {"name": "s4d", "state_size": 6}}),
    "global_conv": ("global_conv", {"filter": {"name": "ema", "order": 4}, "short_kernel": 3, "bias": True}),
    "sgconv": ("sgconv", {"filter": {"name": "modal", "order": 3}}),
    "smpconv": ("smpconv", {"filter": {"name": "modal", "order": 3}}),
    "lightconv": ("lightconv", {"kernel_size": 5, "num_heads": 4}),
    "dynamicconv": ("dynamicconv", {"kernel_size": 6, "num_heads": 2, "renorm_padding": True}),
}
NOT_STATIC = {
    "multires": {"depth": 4},
    "tcn": {"num_blocks": 2, "kernel_size": 3},
    "micro_tcn": {"num_blocks": 3, "kernel_size": 3, "dilation_growth": 3},
    "tcnca": {"num_layers": 2, "kernel_size": 4, "dilation_factor": 4, "chunk_size": 5, "zdim": 4},
    "attention": {"num_heads": 2},
    "hyena": {},
    "multi_hyena": {"num_heads": 4},
    "sgconv": {"filter": {"name": "sgconv", "kernel_dim": 4}},
    "mega": {"chunk_size": 5, "ndim": 3, "zdim": 4},
}
#: Not causal.
NO_STATE = {"hyena_nd"}
static = pytest.mark.parametrize("variant", STATIC)


def test_every_layer_is_tested():
    assert {name for name, _ in STATIC.values()} | NOT_STATIC.keys() | NO_STATE == LAYERS.keys()


def make(variant, **options):
    name, defaults = STATIC[variant]
    return build_layer(name, D, M, **{**defaults, **options}).eval()


def tensors(state):
    found = []
    map_tensors(state, lambda t: found.append(t) or t)
    return found


@static
@pytest.mark.parametrize("prefill", [0, 9])
def test_equals_step(variant, prefill):
    layer, x = make(variant), torch.randn(3, M, D)
    with torch.no_grad():
        _, state = layer(x[:, :prefill], return_state=True) if prefill else (None, layer.init_state(3))
        static_state = state.clone()
        assert static_state.is_static
        places = [t.data_ptr() for t in tensors(static_state)]
        for t in range(prefill, M):
            y, state = layer.step(x[:, t], state)
            assert_close(layer.step_(x[:, t], static_state), y.double(), torch.float32)
            assert static_state.position == t + 1
        assert [t.data_ptr() for t in tensors(static_state)] == places
        for a, b in zip(tensors(static_state), tensors(state), strict=True):
            assert_close(a, b.to(torch.complex128 if b.is_complex() else torch.float64), torch.float32)
        with pytest.raises(ValueError, match=f"max_length = {M}"):
            layer.step_(x[:, 0], static_state)


@static
def test_a_copy_restores_exactly(variant):
    layer, x = make(variant), torch.randn(2, 16, D)
    with torch.no_grad():
        _, state = layer(x[:, :6], return_state=True)
        kept = state.clone()
        first = [layer.step_(x[:, t], state) for t in range(6, 16)]
        for _ in range(2):
            state.copy_(kept)
            assert state.position == 6
            again = [layer.step_(x[:, t], state) for t in range(6, 16)]
            assert torch.equal(torch.stack(again), torch.stack(first))


@static
def test_wherever_the_state_comes_from(variant):
    """From a forward pass or steps that recorded gradients; reordered; used by `step` afterwards."""
    layer, x = make(variant), torch.randn(3, 20, D)
    expected, rows = layer(x).detach().double(), torch.tensor([2, 0, 2])
    _, state = layer(x[:, :6], return_state=True)
    _, state = layer.step(x[:, 6], state)
    state = state.detach()
    for t in range(7, 12):
        y = layer.step_(x[:, t], state)
        assert not y.requires_grad
        assert_close(y, expected[:, t], torch.float32)
    state = state.index_select(rows)
    for t in range(12, 16):
        assert_close(layer.step_(x[rows, t], state), expected[rows, t], torch.float32)
    y, state = layer.step(x[rows, 16], state)
    assert_close(y, expected[rows, 16], torch.float32)
    y, _ = layer(x[rows, 17:], state=state, return_state=True)
    assert_close(y, expected[rows, 17:], torch.float32)


@pytest.mark.parametrize("name", NOT_STATIC)
def test_a_state_that_grows_or_moves_is_refused(name):
    layer, x = build_layer(name, D, M, **NOT_STATIC[name]).eval(), torch.randn(2, 8, D)
    with torch.no_grad():
        _, state = layer(x, return_state=True)
        for each in (state, layer.init_state(2)):
            assert not each.is_static
            with pytest.raises(ValueError, match=f"state is not static .*, so {type(layer).__name__} cannot"):
                layer.step_(x[:, 0], each)
        with pytest.raises(ValueError, match="is not static: it has no fixed memory"):
            state.copy_(state)
        assert state.position == 8


def test_bad_input():
    layer = make("hyena-modal")
    state = layer.init_state(2)
    with pytest.raises(ValueError, match="x_t must be"):
        layer.step_(torch.randn(2, D + 1), state)
    with pytest.raises(TypeError, match="state must be what init_state"):
        layer.step_(torch.randn(2, D), (torch.zeros(2),))
    with pytest.raises(ValueError, match="source has"):
        state.copy_(layer.init_state(3))


@static
def test_in_half_precision_recurrences_stay_wide(variant):
    """Windows of past inputs have the inputs' dtype, which loses nothing; what is summed over time is wider."""
    layer, x = make(variant).bfloat16(), torch.randn(2, 20, D).bfloat16()
    with torch.no_grad():
        expected = layer(x)
        state = layer.init_state(2)
        wide = tensors(getattr(state, "long", ()))
        assert all(t.dtype in (torch.complex128, torch.complex64, torch.float64) for t in wide)
        y = torch.stack([layer.step_(x_t, state) for x_t in x.unbind(1)], 1)
    assert y.dtype == torch.bfloat16
    assert torch.linalg.vector_norm(y - expected) < 0.1 * torch.linalg.vector_norm(expected)


@static
def test_autocast(variant):
    layer, x = make(variant), torch.randn(2, 10, D)
    with torch.no_grad():
        expected, state = layer(x), layer.init_state(2)
        with torch.autocast("cpu", torch.bfloat16):
            y = torch.stack([layer.step_(x_t, state) for x_t in x.unbind(1)], 1)
    assert torch.linalg.vector_norm(y - expected) < 0.1 * torch.linalg.vector_norm(expected)


def test_modes_are_no_part_of_a_clone():
    layer = make("hyena-modal")
    with torch.no_grad():
        state = layer.init_state(2)
    assert isinstance(state.long[0].modes, Constant)
    assert state.clone().long[0].modes is state.long[0].modes
