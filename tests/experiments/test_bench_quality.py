"""The benchmark of quality after distillation, with models that are trained for a moment."""

import csv
import dataclasses

import pytest
import torch

from longconv.distill import distill
from longconv.experiments.benchmarks import BENCHMARKS, quality
from longconv.experiments.benchmarks.quality_models import MODELS, recipe
from longconv.filters import ModalFilter
from longconv.models import LongConvConfig, LongConvForCausalLM, load_model
from longconv.training import TrainConfig


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for n in range(40):
        lines = [f"def function_{n}_{i}(x, y):\n    return x + y * {i % 7}\n\n" for i in range(30)]
        (folder / f"file_{n}.py").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LONGCONV_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def ran(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("quality")
    options = {
        "models": ("hyena-smooth", "multihyena"), "methods": ("hankel",), "orders": (16, 2), "tols": (1e-2,),
        "minutes": 1 / 120, "finetune_minutes": 1 / 120, "finetune_order": 2, "folder": folder / "models",
        "data": corpus, "length": 64,
        "hidden_size": 16, "layers": 2, "vocab_size": 300, "blocks": 4, "threads": 1, "output": folder / "rows.csv",
    }  # fmt: skip
    return folder, options, BENCHMARKS["quality"](**options)


def test_run_end_to_end(ran):
    folder, _, rows = ran
    assert [(row.model, row.order, row.tol) for row in rows] == [
        (model, *setting)
        for model in ("hyena-smooth", "multihyena")
        for setting in ((16, None), (2, None), (None, 1e-2), (2, None))
    ]
    assert [bool(row.fine_tuned_seconds) for row in rows] == 2 * [False, False, False, True]
    with (folder / "rows.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (folder / "rows.png").read_bytes().startswith(b"\x89PNG")
    for row in rows:
        assert row.taps == 64
        assert row.filters == (32 if row.model == "hyena-smooth" else 8)
        copies = 1 if row.model == "hyena-smooth" else 16
        # Rows have two decimals, and halves are exact here: 14.875 is written as 14.88.
        assert row.states_mean == pytest.approx(row.state_size / row.filters / copies, abs=0.0051)
        assert row.bits_per_byte_lost == pytest.approx(row.student_bits_per_byte - row.teacher_bits_per_byte, abs=2e-6)
        assert row.kl >= 0
        assert 0 <= row.top1 <= 1
        assert (row.reached is None) == (row.tol is None)
    by = {(row.model, row.setting): row for row in rows if not row.fine_tuned_seconds}
    close, coarse = by["hyena-smooth", "order 16"], by["hyena-smooth", "order 2"]
    assert close.filter_error < coarse.filter_error
    assert close.kl < coarse.kl
    assert coarse.states_max == 2
    # Smooth filters, after a moment of training, are within the tolerance with few states.
    assert by["hyena-smooth", "tol 0.01"].reached == 1.0
    assert by["hyena-smooth", "tol 0.01"].filter_error_worst <= 1e-2


def test_rows_say_what_a_distillation_by_hand_gives(ran):
    folder, _, rows = ran
    teacher = load_model(folder / "models" / "multihyena" / "model")
    student, report = distill(teacher, order=2, method="hankel")
    row = next(row for row in rows if row.model == "multihyena" and row.order == 2)
    filters = quality.filters_of(teacher)
    assert [copies for _, copies in filters] == [16, 16]
    states = torch.cat([quality.used_states(f) for f, _ in quality.filters_of(student)])
    assert torch.equal(states, torch.cat([fit.fit.order for fit in report.layers]))
    kernels, fitted = (torch.cat([f(64).detach() for f, _ in quality.filters_of(m)]) for m in (teacher, student))
    assert row.filter_error == pytest.approx(float((kernels - fitted).norm() / kernels.norm()), rel=1e-3)


def test_a_trained_model_is_not_trained_again_and_an_interrupted_one_goes_on(ran, tmp_path, monkeypatch):
    _, options, rows = ran
    calls = []

    def train(config):
        calls.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr("longconv.experiments.benchmarks.quality_models.train", train)
    again = quality.run(**{**options, "finetune_minutes": 0.0, "output": tmp_path / "rows.csv"})
    assert calls == []

    def strip(row):  # all but when, and how long it took
        return dataclasses.replace(row, date="", distill_seconds=0.0)

    assert list(map(strip, again)) == [strip(row) for row in rows if not row.fine_tuned_seconds]
    with pytest.raises(ValueError, match=r"was trained with hidden_size = 16, not 32"):
        quality.run(**{**options, "hidden_size": 32})
    with pytest.raises(KeyboardInterrupt):
        quality.run(**{**options, "folder": tmp_path})
    (tmp_path / "hyena-smooth" / "checkpoint-200").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        quality.run(**{**options, "folder": tmp_path})
    assert [config.resume for config in calls] == [False, True]


def test_the_gradient_method_takes_the_steps_it_is_given(ran, tmp_path):
    _, options, _ = ran
    few = {"models": ("multihyena",), "methods": ("gradient",), "orders": (4,), "tols": (), "finetune_minutes": 0.0}
    errors = []
    for steps in (1, 100):
        (row,) = quality.run(**{**options, **few, "gradient_steps": steps, "output": tmp_path / "rows.csv"})
        assert (row.method, row.states_max) == (f"gradient (steps={steps})", 4)
        errors.append(row.filter_error)
    assert errors[1] < errors[0]


def test_used_states_count_real_poles_once_and_padding_not():
    poles = torch.tensor([[0.5 + 0.5j, -0.5 + 0j, 0.9 + 0j, 0j, 0.3j]])
    residues = torch.tensor([[1 + 0j, 1 + 0j, 2 + 0j, 1 + 0j, 0j]])
    modal = ModalFilter.from_modes(poles, residues, torch.zeros(1))
    assert quality.used_states(modal).tolist() == [2 + 1 + 1]


def test_every_recipe_makes_a_model_with_long_filters(tmp_path):
    base = TrainConfig(output=tmp_path, length=32, hidden_size=8, layers=1)
    for name in MODELS:
        config = recipe(name, base)
        config.check()
        assert config.output == tmp_path / name
        model = LongConvForCausalLM(
            LongConvConfig(
                vocab_size=9, hidden_size=8, num_hidden_layers=1, mixers=config.mixers,
                mixer_options=config.mixer_options, max_position_embeddings=32,
            )
        )  # fmt: skip
        ((bank, copies),) = quality.filters_of(model)
        assert len(bank(32)) * copies == 8 * (4 if name == "multihyena" else 1)
        student, _ = distill(model.eval(), order=4)
        assert all(quality.used_states(modal).max() <= 4 for modal, _ in quality.filters_of(student))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ("hyena",)}, "models: unknown 'hyena'; known: hyena-smooth"),
        ({"methods": ("magic",)}, "methods: unknown 'magic'; known: "),
        ({"orders": (0,)}, "orders must be at least 1"),
        ({"gradient_steps": 0}, "gradient_steps must be at least 1"),
        ({"orders": (), "tols": ()}, "one of orders or tols"),
        ({"finetune_order": 0}, "finetune_order at least 1"),
        ({"hidden_size": 18}, "hidden_size must be a multiple of 4 for multihyena"),
        ({"minutes": 0.0}, "minutes must be positive"),
    ],
)
def test_bad_options(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        quality.run(**{"folder": tmp_path / "models", "output": tmp_path / "rows.csv", **change})
    assert not list(tmp_path.iterdir())
