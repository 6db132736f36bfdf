"""distill(): a model becomes a recurrence that is the same function, saves, loads and generates."""

import json

import numerics
import pytest
import torch

from longconv.distill import distill
from longconv.filters import ModalFilter
from longconv.models import LongConvConfig, LongConvForCausalLM, load_model, save_model


def build(mixers="hyena hyena attention", **options) -> LongConvForCausalLM:
    torch.manual_seed(1)
    config = LongConvConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, mixers=mixers, max_position_embeddings=200,
        mixer_options={"attention": {"num_heads": 2}, "hyena": options},
    )  # fmt: skip
    return LongConvForCausalLM(config).eval()


@pytest.fixture(scope="module")
def distilled():
    model = build()
    return model, *distill(model, tol=1e-5)


def test_the_student_is_the_same_function(distilled):
    model, student, report = distilled
    assert type(student) is type(model)
    x = torch.randint(0, 50, (2, 150))
    assert numerics.relative_l2(student(x).logits, model(x).logits) < 1e-4
    assert [fit.layer for fit in report.layers] == [0, 1]
    for block, mixer in zip(student.base_model.layers, ("hyena", "hyena", "attention"), strict=True):
        assert all(isinstance(f, ModalFilter) for f in block.mixer.long_filters)
        assert len(block.mixer.long_filters) == (mixer == "hyena")


def test_the_teacher_is_untouched(distilled):
    model, _, _ = distilled
    assert not any(isinstance(m, ModalFilter) for m in model.modules())
    assert not model.config.layer_options


def test_parallel_and_recurrent_form_agree(distilled):
    _, student, _ = distilled
    x = torch.randint(0, 50, (2, 60))
    whole = student(x).logits
    out = student(x[:, :20], use_cache=True)
    steps = [out.logits]
    for t in range(20, 60):
        out = student(x[:, t : t + 1], past_key_values=out.past_key_values, use_cache=True)
        steps.append(out.logits)
    numerics.assert_close(torch.cat(steps, 1), whole)


def test_the_state_does_not_grow(distilled):
    _, student, _ = distilled
    sizes = []
    for length in (10, 100):
        cache = student(torch.randint(0, 50, (1, length)), use_cache=True).past_key_values
        state = cache.states[0].long[0].state
        sizes.append(state.numel())
    assert sizes[0] == sizes[1]


def test_saves_and_loads_to_the_same_logits(distilled, tmp_path):
    _, student, _ = distilled
    save_model(student, tmp_path / "m")
    x = torch.randint(0, 50, (2, 77))
    loaded = load_model(tmp_path / "m")
    assert torch.equal(loaded(x).logits, student(x).logits)
    again, report = distill(loaded, order=4)  # a modal model can be distilled further
    assert max(int(fit.fit.order.max()) for fit in report.layers) <= 4
    assert again(x).logits.isfinite().all()


def test_generates_the_same_tokens(distilled):
    model, student, _ = distilled
    prompt = torch.randint(0, 50, (2, 30))
    out = [m.generate(prompt, max_new_tokens=30, do_sample=False) for m in (model, student)]
    assert torch.equal(*out)


def test_the_report_tells_the_truth(distilled):
    model, student, report = distilled
    for fit in report.layers:
        kernel, fitted = (m.base_model.layers[fit.layer].mixer.long_filters[0](200) for m in (model, student))
        numerics.assert_close(fit.kernel, kernel)
        numerics.assert_close(fit.fitted, fitted)
        error = torch.linalg.vector_norm(kernel.double() - fitted.double(), dim=-1)
        relative = error / torch.linalg.vector_norm(kernel.double(), dim=-1)
        assert torch.allclose(relative, fit.fit.relative_error, rtol=0.05, atol=1e-7)
        assert (fit.fit.relative_error <= 1e-5).all()
        assert (fit.fit.radius < 1).all()
        assert (fit.fit.error_bound <= fit.fit.relative_error + 1e-9).all()


def test_report_as_table_json_and_plots(distilled, tmp_path):
    _, _, report = distilled
    assert str(report).count("\n") == 3
    paths = report.save(tmp_path / "report")
    assert [path.name for path in paths] == ["report.json", "hankel.png", "bounds.png", "filters.png"]
    data = json.loads(paths[0].read_text())
    layer = data["layers"][1]
    assert layer["layer"] == 1
    assert len(layer["filters"]["order"]) == 16
    assert len(layer["filters"]["singular_values"]) == 16
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths[1:])


def test_order_three_operators_have_two_banks_per_layer():
    model = build("hyena", order=3)
    student, report = distill(model, tol=1e-4)
    assert [(fit.layer, fit.stage) for fit in report.layers] == [(i, s) for i in range(3) for s in range(2)]
    x = torch.randint(0, 50, (1, 120))
    assert numerics.relative_l2(student(x).logits, model(x).logits) < 1e-3


def test_a_fixed_order_and_a_part_of_the_taps():
    model = build("hyena")
    _, report = distill(model, order=2, length=50)
    assert all(fit.fit.length == 50 and int(fit.fit.order.max()) <= 2 for fit in report.layers)
    better, worse = (distill(model, order=n)[1].layers[0].relative_error for n in (6, 1))
    assert better < worse


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of order and tol"),
        ({"order": 4, "tol": 0.1}, "exactly one of order and tol"),
        ({"tol": 0.1, "method": "magic"}, "unknown distillation method 'magic'; known: balanced, best"),
        ({"tol": 0.1, "length": 201}, r"length must be in 1..max_length = 200, got 201"),
        ({"tol": 0.1, "length": 0}, r"length must be in 1..max_length"),
        ({"tol": -1.0}, "must not be negative"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        distill(build("hyena"), **options)


def test_a_model_without_long_filters():
    with pytest.raises(ValueError, match="no long filter to distil: its mixers are 'attention'"):
        distill(build("attention"), tol=0.1)
