"""distill() on every layer with long filters: the same class, a recurrence, nearly the same function."""

import numerics
import pytest
import torch

from longconv.distill import distill
from longconv.filters import ModalFilter
from longconv.layers import LAYERS
from longconv.models import LongConvConfig, LongConvForCausalLM, load_model, save_model

# Mixer and options, and how far the logits may be off. A Hankel matrix of 64 taps has rank 32: SGConv's kinks, and taps
# of noise without a window, are more than that.
CASES = {
    "hyena": ("hyena", {}, 1e-3),
    "multi_hyena": ("multi_hyena", {"num_heads": 4}, 1e-3),
    "sgconv": ("sgconv", {"filter": {"name": "sgconv", "kernel_dim": 8}}, 0.1),
    "global_conv": ("global_conv", {"filter": {"name": "freeform", "modulate": True}}, 1e-3),
    "global_conv-noise": ("global_conv", {"filter": "freeform"}, 0.02),
    "smpconv": ("smpconv", {"filter": {"name": "smpconv", "radius": 0.3}}, 0.01),
    "s4d": ("s4d", {"filter": {"name": "s4d", "state_size": 16}}, 0.05),
    "mega": ("mega", {"chunk_size": 16, "ndim": 4, "zdim": 8}, 1e-3),
}


def test_every_layer_with_long_filters_is_tested():
    layers = {name: LAYERS[name](16, 16) for name in LAYERS}
    assert {name for name, layer in layers.items() if len(layer.long_filters)} == {
        name for name, _, _ in CASES.values()
    }


@pytest.mark.parametrize("case", CASES)
def test_distilled(case, tmp_path):
    name, options, limit = CASES[case]
    torch.manual_seed(1)
    config = LongConvConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, mixers=name, mixer_options={name: options},
        max_position_embeddings=64,
    )  # fmt: skip
    model, ids = LongConvForCausalLM(config).eval(), torch.randint(50, (2, 60))
    student, report = distill(model, tol=1e-4)
    assert [fit.layer for fit in report.layers] == [0, 1]
    for block, teacher in zip(student.model.layers, model.model.layers, strict=True):
        assert type(block.mixer) is type(teacher.mixer)
        [filter], [original] = block.mixer.long_filters, teacher.mixer.long_filters
        assert isinstance(filter, ModalFilter)
        assert filter.channels == original.channels
    whole = student(ids).logits
    assert numerics.relative_l2(whole, model(ids).logits) < limit
    save_model(student, tmp_path / "student")
    assert torch.equal(load_model(tmp_path / "student")(ids).logits, whole)
    if case == "smpconv":
        # Its piecewise linear taps of 0.01 are differences of modes of 80, which float32 does not have the digits for.
        whole = student.double()(ids).logits
    with torch.no_grad():
        out = student(ids[:, :30], use_cache=True)
        logits, sizes = [out.logits], []
        for t in range(30, 60):
            out = student(ids[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits)
            sizes.append(long_state(out.past_key_values.states[0]).state.numel())
    numerics.assert_close(torch.cat(logits, 1), whole.double(), torch.float32)
    assert len(set(sizes)) == 1


def long_state(state):
    """Of the long filter, in any layer's state."""
    long = state.summary if hasattr(state, "summary") else state.long
    return long[0] if isinstance(long, tuple) else long
