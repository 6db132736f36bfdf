"""Training that starts from a saved model, distilled or not, and training with a teacher."""

import dataclasses
import json
import shutil

import numerics
import pytest
import torch
from safetensors.torch import load_file

from longconv.distill import distill
from longconv.filters import ModalFilter
from longconv.models import load_model, save_model
from longconv.tasks.lm import SentencePieceTokenizer, load_tokenizer
from longconv.training import TrainConfig, is_finished, train
from longconv.training import language as language_module
from longconv.training import run as run_module
from longconv.training.callbacks import Clock
from longconv.training.teacher import TeacherTrainer, divergence


def first_config(output, corpus, **changes) -> TrainConfig:
    small = TrainConfig(
        output=output, data=corpus, tokenizer="bytes", length=64, hidden_size=16, layers=2, mixers="hyena attention",
        mixer_options={"attention": {"num_heads": 2}}, batch_size=2, steps=12, save_every=0, log_every=1, lr=1e-2,
        evaluate_batches=3, quiet=True,
    )  # fmt: skip
    return dataclasses.replace(small, **changes)


def next_config(output, corpus, **changes) -> TrainConfig:
    """What is left to say when the model is given."""
    small = TrainConfig(
        output=output, data=corpus, length=64, batch_size=2, steps=6, save_every=3, log_every=1, evaluate_batches=3,
        quiet=True,
    )  # fmt: skip
    return dataclasses.replace(small, **changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("start")
    train(first_config(folder / "run", corpus))
    teacher = folder / "run" / "model"
    student, _ = distill(load_model(teacher), order=4)
    with torch.no_grad():
        student.base_model.layers[0].mixer.long_filters[0].passthrough += 1  # something to learn
    save_model(student, folder / "distilled", load_tokenizer(teacher))
    return teacher, folder / "distilled"


def losses(result):
    return [row["loss"] for row in result.log if row["split"] == "train"]


def test_starts_from_the_weights_the_sizes_and_the_tokenizer(trained, corpus, tmp_path):
    teacher, _ = trained
    result = train(next_config(tmp_path / "run", corpus, init=teacher, lr=0.0, weight_decay=0.0, steps=1))
    filters = {
        name for name in result.model.state_dict() if "long_filters" in name
    }  # they have their own learning rate
    assert filters
    for name, value in load_model(teacher).state_dict().items():
        assert name in filters or torch.equal(result.model.state_dict()[name], value), name
    assert result.task.tokenizer.vocab_size == 258
    said = json.loads((tmp_path / "run" / "train.json").read_text())
    assert {name: said[name] for name in ("hidden_size", "layers", "mixers", "tokenizer", "max_length", "init")} == {
        "hidden_size": 16, "layers": 2, "mixers": "hyena attention", "tokenizer": "bytes", "max_length": 64,
        "init": str(teacher),
    }  # fmt: skip


def test_a_distilled_model_is_fine_tuned_with_the_marks_of_its_modes(trained, corpus, tmp_path, monkeypatch):
    _, distilled = trained
    groups = []

    class Watched(language_module.LongConvTrainer):
        def create_optimizer(self, model=None):
            optimizer = super().create_optimizer(model)
            names = {id(p): name for name, p in self.model.named_parameters()}
            groups.extend(
                (names[id(p)], g["initial_lr"] if "initial_lr" in g else g["lr"], g["weight_decay"])
                for g in optimizer.param_groups
                for p in g["params"]
            )
            return optimizer

    monkeypatch.setattr(language_module, "LongConvTrainer", Watched)
    before = load_model(distilled)
    result = train(next_config(tmp_path / "run", corpus, init=distilled))
    modes = {name for name, _ in before.named_parameters() if "long_filters" in name}
    assert {name.rpartition(".")[2] for name in modes} == {"log_dt", "log_decay", "frequency", "residue", "passthrough"}
    found = {name: (lr, decay) for name, lr, decay in groups}
    assert {found[name] for name in modes} == {(1e-3, 0.0)}
    assert found["model.layers.0.mixer.in_proj.weight"] == (2e-3, 0.1)
    after = result.model.state_dict()
    assert all(not torch.equal(value, after[name]) for name, value in before.state_dict().items() if name in modes)
    assert isinstance(load_model(tmp_path / "run" / "model").base_model.layers[0].mixer.long_filters[0], ModalFilter)


def test_modes_stay_stable_at_any_learning_rate(trained, corpus, tmp_path):
    _, distilled = trained
    wild = tmp_path / "wild"
    shutil.copytree(distilled, wild)
    config = json.loads((wild / "config.json").read_text())
    config["layer_options"]["0"]["filter"]["lr"] = 10.0
    (wild / "config.json").write_text(json.dumps(config))
    result = train(next_config(tmp_path / "run", corpus, init=wild, steps=20, save_every=0, clip=1e9))
    (before, after) = (m.base_model.layers[0].mixer.long_filters[0] for m in (load_model(distilled), result.model))
    assert (
        after.log_decay - before.log_decay
    ).abs().max() > 20  # what a decay rate not exponentiated would not survive
    assert (after.poles.abs() < 1).all()
    assert (after.poles.abs().float() < 1).all()
    assert after(2000).isfinite().all()


def test_an_interrupted_fine_tuning_resumes_to_the_same_losses(trained, corpus, tmp_path):
    teacher, distilled = trained
    options = {"init": distilled, "teacher": teacher, "kd_weight": 0.25}
    whole = train(next_config(tmp_path / "whole", corpus, **options))
    train(next_config(tmp_path / "cut", corpus, **options))
    shutil.rmtree(tmp_path / "cut" / "checkpoint-6")
    shutil.rmtree(tmp_path / "cut" / "model")
    resumed = train(next_config(tmp_path / "cut", corpus, **options, resume=True))
    strip = lambda rows: [(row["step"], row["split"], row["loss"], row.get("kl")) for row in rows]  # noqa: E731
    assert strip(resumed.log) == strip(whole.log)
    a, b = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(ValueError, match=r"was trained with kd_weight = 0\.25, not 1\.0"):
        train(next_config(tmp_path / "cut", corpus, **{**options, "kd_weight": 1.0}, resume=True))


def test_a_weight_of_zero_is_plain_training(trained, corpus, tmp_path):
    teacher, distilled = trained
    plain = train(next_config(tmp_path / "plain", corpus, init=distilled))
    zero = train(next_config(tmp_path / "zero", corpus, init=distilled, teacher=teacher, kd_weight=0.0))
    assert zero.log[0].keys() == plain.log[0].keys()
    assert losses(zero) == losses(plain)
    half = train(next_config(tmp_path / "half", corpus, init=distilled, teacher=teacher))
    first = half.log[0]
    assert first["kl"] > 0
    assert first["loss"] == pytest.approx((losses(plain)[0] + first["kl"]) / 2, rel=1e-6)
    assert losses(half)[1:] != losses(plain)[1:]


def test_with_a_weight_of_one_the_teacher_is_all_there_is(trained, corpus, tmp_path):
    teacher, _ = trained
    run = train(first_config(tmp_path / "run", corpus, seed=5, teacher=teacher, kd_weight=1.0, steps=30))
    assert losses(run) == [row["kl"] for row in run.log if row["split"] == "train"]
    assert losses(run)[-1] < losses(run)[0] / 2
    assert run.metrics["loss"] > 2 * losses(run)[-1]  # an evaluation is of the cross entropy


def test_a_model_that_is_its_own_teacher_has_no_divergence(trained, corpus, tmp_path):
    teacher, _ = trained
    run = train(
        next_config(tmp_path / "run", corpus, init=teacher, teacher=teacher, kd_weight=0.9, accumulate=2, steps=1)
    )
    assert run.log[0]["kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_divergence_is_that_of_the_definition(dtype):
    z, w = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    labels = torch.randint(9, (3, 6))
    labels[0, 4:] = -100
    labels[2, 0] = -100  # never predicted anyway
    p, q = z.softmax(-1), w.softmax(-1)
    expected = (p * (p.log() - q.log())).sum(-1)[:, :-1]
    kl, count = divergence(z.to(dtype), w.to(dtype), labels)
    assert count == 13
    numerics.assert_close(kl, expected.sum() - expected[0, 3:].sum())


def test_gradients_go_to_the_student_only(trained, corpus, tmp_path):
    teacher, distilled = trained
    config = next_config(tmp_path, corpus)
    student, master = load_model(distilled).train(), language_module.load_teacher(teacher, load_tokenizer(teacher), 64)
    trainer = TeacherTrainer(
        config.job(),
        clock=Clock(None),
        steps=config.steps,
        teacher=master,
        weight=0.75,
        model=student,
        args=run_module._arguments(config, config.steps),
    )
    batch = {"input_ids": torch.randint(256, (2, 20)), "labels": torch.randint(256, (2, 20))}
    loss = trainer.compute_loss(student, batch, num_items_in_batch=torch.tensor(50))
    z = student(batch["input_ids"]).logits
    plain = torch.nn.functional.cross_entropy(
        z[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
    )
    kl, _ = divergence(master(batch["input_ids"]).logits, z, batch["labels"])
    numerics.assert_close(loss.detach(), (plain / 4 + 3 * kl / 4).detach() / 50)
    loss.backward()
    assert all(p.grad is None for p in master.parameters())
    assert not master.training
    assert all(p.grad is not None for p in student.parameters())
    student.eval()
    assert trainer.compute_loss(student, batch).item() == pytest.approx(plain.item() / 38, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, r"hidden_size = 32 contradicts init: the model in .* has 16; leave it out"),
        ({"mixers": "hyena hyena"}, "mixers = 'hyena hyena' contradicts init: .* has 'hyena attention'"),
        ({"mixer_options": {"hyena": {"order": 3}}}, "mixer_options = .* contradicts init"),
        ({"max_length": 128}, "max_length = 128 contradicts init: .* has 64"),
        ({"length": 65}, "length must be at most 64, the longest sequence of the model"),
    ],
)
def test_options_that_contradict_the_model(trained, corpus, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train(next_config(tmp_path / "run", corpus, init=trained[0], **change))
    assert not (tmp_path / "run").exists()
    agreeing = {"hidden_size": 16, "mixers": "hyena attention", "tokenizer": "bytes", "max_length": 64}
    train(next_config(tmp_path / "run", corpus, init=trained[0], steps=1, save_every=0, **agreeing))


def test_errors(trained, corpus, tmp_path):
    teacher, distilled = trained
    with pytest.raises(FileNotFoundError, match="no model folder"):
        train(next_config(tmp_path / "a", corpus, init=tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no model folder"):
        train(next_config(tmp_path / "b", corpus, init=distilled, teacher=tmp_path / "none"))
    shutil.copytree(teacher, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no tokenizer\.json in"):
        train(next_config(tmp_path / "c", corpus, init=tmp_path / "bare"))
    with pytest.raises(ValueError, match=r"the teacher in .* has another tokenizer"):
        train(first_config(tmp_path / "d", corpus, tokenizer="sentencepiece", vocab_size=300, teacher=teacher))
    with pytest.raises(ValueError, match="length must be at most 64, the longest sequence of the teacher"):
        train(first_config(tmp_path / "e", corpus, length=128, teacher=teacher))
    with pytest.raises(ValueError, match=r"kd_weight = 0\.5 needs a teacher"):
        train(next_config(tmp_path / "f", corpus, init=distilled, kd_weight=0.5))
    with pytest.raises(ValueError, match=r"kd_weight must be in \[0, 1\], got -1\.0"):
        train(next_config(tmp_path / "g", corpus, init=distilled, teacher=teacher, kd_weight=-1.0))
    SentencePieceTokenizer(["ab"]).save(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"the tokenizer in .*bare has 259 ids and the model 258"):
        train(next_config(tmp_path / "h", corpus, init=tmp_path / "bare"))


def test_init_is_saved_with_the_run_and_compared(trained, corpus, tmp_path):
    teacher, distilled = trained
    train(next_config(tmp_path / "run", corpus, init=distilled))
    with pytest.raises(ValueError, match=r"was trained with init = '.*distilled', not '.*model'"):
        train(next_config(tmp_path / "run", corpus, init=teacher, resume=True))


def test_a_finished_run_is_known_by_its_options(trained, corpus, tmp_path):
    _, distilled = trained
    config = next_config(tmp_path / "run", corpus, init=distilled)
    assert not is_finished(config)
    train(config)
    assert is_finished(config)
    assert is_finished(dataclasses.replace(config, resume=True, hidden_size=16))
    with pytest.raises(ValueError, match=r"was trained with lr = 0\.002, not 0\.5"):
        is_finished(dataclasses.replace(config, lr=0.5))
    file = tmp_path / "run" / "train.json"
    said = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in said.items() if name != "filter_lr_scale"}))
    assert is_finished(config)  # a run from before there was that option
    with pytest.raises(ValueError, match=r"was trained with filter_lr_scale = 1\.0, not 0\.5"):
        is_finished(dataclasses.replace(config, filter_lr_scale=0.5))
    file.unlink()
    for ask in (is_finished, train):
        with pytest.raises(ValueError, match=r"has no train\.json that would say how it was trained"):
            ask(dataclasses.replace(config, resume=True))
