"""distill() on every layer with long filters: the same class, a recurrence, nearly the same function."""

import numerics
import pytest
import torch

from longconv.distill import distill, hankel_singular_values
from longconv.distill.exact import keep
from longconv.filters import ModalFilter, build_filter
from longconv.layers import LAYERS
from longconv.models import (
    LongConvConfig,
    LongConvForCausalLM,
    LongConvForSequenceClassification,
    load_model,
    save_model,
)

# Mixer and options, and how far the logits may be off: None if the filters are recurrences, which stay. A Hankel matrix
# of 64 taps has rank 32: SGConv's kinks, taps of noise without a window and S4D's modes are more than that.
RTF = {"name": "rtf", "order": 6, "init": "montel", "constraint": "l1_montel"}
CASES = {
    "hyena": ("hyena", {}, 1e-3),
    "multi_hyena": ("multi_hyena", {"num_heads": 4}, 1e-3),
    "sgconv": ("sgconv", {"filter": {"name": "sgconv", "kernel_dim": 8}}, 0.1),
    "global_conv": ("global_conv", {"filter": {"name": "freeform", "modulate": True}}, 1e-3),
    "global_conv-noise": ("global_conv", {"filter": "freeform"}, 0.02),
    "global_conv-rtf": ("global_conv", {"filter": RTF}, None),
    "smpconv": ("smpconv", {"filter": {"name": "smpconv", "radius": 0.3}}, 0.01),
    "s4d": ("s4d", {"filter": {"name": "s4d", "state_size": 16}}, None),
    "s4d-large": ("s4d", {"filter": {"name": "s4d", "state_size": 66}}, 0.1),
    "hyena-modal": ("hyena", {"filter": {"name": "modal", "order": 32}, "order": 3}, None),
    "mega": ("mega", {"chunk_size": 16, "ndim": 4, "zdim": 8}, None),
    "mega-truncated": ("mega", {"chunk_size": 16, "ndim": 4, "zdim": 8, "truncation": 40}, 1e-3),
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
    stages = len(model.model.layers[0].mixer.long_filters)
    assert [(fit.layer, fit.stage) for fit in report.layers] == [(i, s) for i in range(2) for s in range(stages)]
    for block, teacher in zip(student.model.layers, model.model.layers, strict=True):
        assert type(block.mixer) is type(teacher.mixer)
        for filter, original in zip(block.mixer.long_filters, teacher.mixer.long_filters, strict=True):
            assert type(filter) is (type(original) if limit is None else ModalFilter)
            assert filter.channels == original.channels
    whole = student(ids).logits
    if limit is None:
        assert torch.equal(whole, model(ids).logits)
        assert all(fit.exact and not fit.fit.relative_error.any() for fit in report.layers)
        assert str(report).count("exact") == 4 * stages
    else:
        assert numerics.relative_l2(whole, model(ids).logits) < limit
        assert not any(fit.exact for fit in report.layers)
    save_model(student, tmp_path / "student")
    assert torch.equal(load_model(tmp_path / "student")(ids).logits, whole)
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


FILTERS = {
    "s4d": ({"name": "s4d", "state_size": 8}, 7, 4),  # S4D-Lin's first frequency is 0
    "real": ({"name": "s4d", "state_size": 5, "real": True}, 5, 5),
    "ema": ({"name": "ema", "order": 3}, 3, 3),
    "modal": ({"name": "modal", "order": 4}, 7, 4),  # its first pole is real
    "rtf": (RTF, 6, None),
}


@pytest.mark.parametrize("name", FILTERS)
def test_what_is_kept_counts_its_states(name):
    spec, order, modes = FILTERS[name]
    filter = build_filter(spec, 3)
    assert keep(filter, filter(200), order - 1) is None
    report = keep(filter, filter(200), order)
    assert report.order.tolist() == [order] * 3
    assert modes is None or report.modes.tolist() == [modes] * 3
    # Taps that are that many exponentials have a Hankel matrix of no higher rank, and decay no slower.
    assert (hankel_singular_values(filter.double()(200), 20)[:, order] < 1e-10 * report.singular_values[:, 0]).all()
    assert (report.radius < 1).all()
    tail = filter(4000)[:, 2000:].abs().amax(-1)
    assert (tail <= 1e4 * report.radius**2000 + 1e-12).all()


def test_padding_of_a_distilled_filter_is_no_state():
    filter = ModalFilter.from_modes(
        torch.tensor([[0.5, -0.5, 0.0], [0.5j, 0.0, 0.0]]).cfloat(), torch.tensor([[1.0, 1, 1], [1, 0, 0]]).cfloat(),
        torch.ones(2),
    )  # fmt: skip
    assert keep(filter, filter(20), 2).order.tolist() == [2, 2]
    assert keep(filter, filter(20), 2).modes.tolist() == [2, 1]


def test_a_layer_with_one_filter_too_large_is_fitted_as_a_whole():
    config = LongConvConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=2, mixers="hyena s4d", max_position_embeddings=64,
        mixer_options={"hyena": {"order": 3}, "s4d": {"filter": {"name": "s4d", "state_size": 6}}},
    )  # fmt: skip
    model = LongConvForCausalLM(config).eval()
    student, report = distill(model, order=6)
    assert [fit.exact for fit in report.layers] == [False, False, True]
    assert set(student.config.layer_options) == {"0"}
    again, report = distill(student, order=6)
    assert [fit.exact for fit in report.layers] == [True, True, True]
    ids = torch.randint(50, (2, 60))
    assert torch.equal(again(ids).logits, student(ids).logits)
    _, report = distill(student, order=4)
    assert [fit.exact for fit in report.layers] == [False, False, False]


@pytest.mark.parametrize("mixer", ["global_conv", "hyena", "s4d", "mega"])
def test_two_sided_layers_are_no_recurrences(mixer):
    options = {"bidirectional": True} | ({"filter": "freeform"} if mixer == "global_conv" else {})
    config = LongConvConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, mixers=f"attention {mixer} {mixer}",
        mixer_options={mixer: options}, max_position_embeddings=64,
    )  # fmt: skip
    message = "the mixers of layers 1, 2 are not causal: a two-sided convolution is no recurrence"
    with pytest.raises(ValueError, match=message):
        distill(LongConvForSequenceClassification(config), tol=1e-4)
