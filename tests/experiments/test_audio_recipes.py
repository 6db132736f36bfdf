"""Recipes of audio: what they cite comes out, each can be built, smoke runs work, and leave a row in their table."""

import csv
import json
import math

import pytest
import torch
from transformers.initialization import no_init_weights

from longconv import cli
from longconv.experiments import recipes, results
from longconv.experiments.recipes.audio import bodies, past
from longconv.experiments.recipes.recipe import OURS, planned_steps
from longconv.models import LongConvConfig, LongConvForAudio, LongConvForCausalLM, LongConvForSequenceClassification
from longconv.training import AudioConfig, ClassifyConfig

NAMES = recipes.names("audio") + recipes.names("audio-small")
EFFECTS = [name for name in NAMES if isinstance(recipes.get(name), AudioConfig)]


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Runs, caches and tables of results go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LONGCONV_RESULTS", str(tmp_path / "results"))


def test_every_task_has_its_models():
    effects = {"tcn-100-c", "tcn-300-c", "tcn-1000-c", "tcn-324-n", "gated-tcn", "s4d", "sgconv", "multires", "lstm-32"}
    words = {"s4d", "sgconv", "multires", "hyena"}
    waves = {"s4d", "multires", "hyena"}
    expected = {
        **{"audio.la2a": effects, "audio-small.compressor": effects},
        **{"audio.sc35": words, "audio.sc10": words, "audio.ptbxl": words, "audio-small.spoken-words": words},
        **{"audio.sc09": waves, "audio.beethoven": waves, "audio.youtubemix": waves},
        "audio-small.wave": waves | {"sgconv"},
    }
    assert set(NAMES) == {f"{task}.{model}" for task, models in expected.items() for model in models}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("audio.la2a.tcn-324-n", "csteinmetz1/micro-tcn train.py"),
        ("audio.la2a.lstm-32", "csteinmetz1/micro-tcn train.py"),
        ("audio.sc35.s4d", "configs/experiment/sc/s4-sc.yaml"),
        ("audio.ptbxl.multires", "thjashin/multires-conv scripts/ptbxl.sh"),
    ],
)
def test_published(name, file):
    assert file in recipes.source(name)
    assert recipes.RECIPES[name].published
    assert all(recipes.source(other).startswith(OURS) for other in recipes.names("audio-small"))


def test_cited_numbers():
    speech, heart, effect = map(recipes.get, ("audio.sc35.s4d", "audio.ptbxl.multires", "audio.la2a.tcn-300-c"))
    assert isinstance(speech, ClassifyConfig)
    assert (speech.layers, speech.hidden_size, speech.lr, speech.weight_decay) == (6, 128, 0.01, 0.05)
    assert (speech.batch_size, speech.epochs, speech.norm, speech.bidirectional) == (16, 40, "batch", True)
    assert speech.mixer_options["s4d"]["filter"]["n_ssm"] == 2
    assert math.isclose(planned_steps(speech), 40 * 84_843 / 16, rel_tol=1e-3)
    assert (heart.layers, heart.hidden_size, heart.lr, heart.weight_decay) == (6, 128, 4.5e-3, 0.06)
    assert (heart.batch_size, heart.epochs, heart.warmup, heart.bidirectional) == (50, 100, 0.05, False)
    assert isinstance(effect, AudioConfig)
    assert (effect.batch_size, effect.lr, effect.loss_weights) == (32, 1e-3, {"l1+stft": 1.0})
    assert (effect.task_options["length"], effect.task_options["eval_length"]) == (65_536, 131_072)


# Of the published models: Steinmetz and Reiss 2022, receptive fields in ms at 44.1 kHz, and numbers of parameters.
@pytest.mark.parametrize(
    ("name", "field", "thousands"), [("tcn-100-c", 101, 26), ("tcn-300-c", 302, 51), ("tcn-1000-c", 1_008, 33),
                                     ("tcn-324-n", 324, 162)]
)  # fmt: skip
def test_published_sizes(name, field, thousands):
    config = recipes.get(f"audio.la2a.{name}")
    model = LongConvForAudio(config.model_config(controls=2))
    assert round(model.receptive_field / 44.1) == pytest.approx(field, abs=1)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(1e3 * thousands, rel=0.03)
    # What comes before a window, and behind it, does not count.
    assert config.task_options["context"] == past(bodies()[name]) == model.receptive_field - 1 - model.lookahead
    assert model.causal == name.endswith("-c")


@pytest.mark.parametrize("name", EFFECTS)
def test_models_of_effects_can_be_built(name):
    config = recipes.get(name)
    with torch.device("meta"), no_init_weights():
        model = LongConvForAudio(config.model_config(controls=2))
    assert model.lookahead is not None
    reach = 1 if model.receptive_field is None else model.receptive_field - model.lookahead
    # Published are those that count all that they see; those for a CPU all count alike.
    alike = name.startswith("audio-small") or config.body == "mixers"
    assert alike or config.task_options["context"] == reach - 1


@pytest.mark.parametrize("name", [name for name in NAMES if name not in EFFECTS])
def test_classifiers_and_language_models_can_be_built(name):
    config = recipes.get(name)
    options = config.model_options()
    words = {"max_position_embeddings": 16_000}
    with torch.device("meta"), no_init_weights():
        if isinstance(config, ClassifyConfig):
            options |= {"mixer_options": config.options_of_mixers(), "num_labels": 10, "input_size": 1}
            model = LongConvForSequenceClassification(LongConvConfig(**words, **options))
        else:
            model = LongConvForCausalLM(LongConvConfig(vocab_size=256, **words, **options))
    assert model.config.num_hidden_layers == config.layers
    bidirectional = isinstance(config, ClassifyConfig) and config.bidirectional
    assert all(block.mixer.causal != bidirectional for block in model.base_model.layers)


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("audio-small.compressor.tcn-100-c", "test_esr"),
        ("audio.la2a.multires", "test_esr"),
        ("audio.sc10.sgconv", "half_rate_accuracy"),
        ("audio-small.spoken-words.sgconv", "test_accuracy"),
        ("audio.ptbxl.multires", "test_macro_auroc"),
        ("audio.sc09.s4d", "test_bits_per_byte"),
        ("audio-small.wave.hyena", "test_bits_per_byte"),
    ],
)
def test_smoke_leaves_a_row(name, metric, tmp_path, capsys):
    whole, small = recipes.get(name), recipes.smoke(recipes.get(name))
    for kept in ("mixers", "mixer_options", "schedule", "warmup", "lr", "norm"):
        assert getattr(small, kept) == getattr(whole, kept)
    assert cli.main(["train", name, "--smoke", "--quiet", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "smoke/audio.csv" in said
    (row,) = results.read_audio(tmp_path / "runs" / "smoke" / "audio.csv")
    assert (row.recipe, row.steps, row.complete, row.smoke) == (name, 2, True, True)
    assert row.layer == whole.model_name
    assert row.validation is not None
    assert getattr(row, metric) is not None
    columns = {f"test_{row.measure}", *(["half_rate_accuracy"] if metric.startswith("half") else [])}
    if row.measure == "loss":
        columns = {"test_mae", "test_esr", "test_stft", "test_mrstft", "test_loudness"}
    found = {name for name in vars(row) if name.startswith(("test_", "half_")) and getattr(row, name) is not None}
    assert found == columns
    assert not (tmp_path / "results").exists()  # the table of real runs
    model = str(tmp_path / "runs" / "smoke" / name / "model")
    assert cli.main(["evaluate", model, "--json-output", "--batch-size", "2"]) == 0
    measured = json.loads(capsys.readouterr().out)
    if row.measure == "loss":
        assert measured["all"]["esr"] == pytest.approx(row.test_esr, rel=1e-4)
    else:
        assert measured[row.measure] == pytest.approx(getattr(row, f"test_{row.measure}"), rel=1e-4)


@pytest.mark.parametrize("task", sorted({name.rpartition(".")[0] for name in NAMES}))
def test_every_recipe_has_a_smoke(task):
    """Its data is written and its options fit; what is run is above."""
    for name in recipes.names(task):
        small = recipes.smoke(recipes.get(name))
        small.check()
        assert small.job().config == small


def test_the_table_of_audio_has_columns_of_its_own(tmp_path):
    path = results.default_path("audio")
    assert path == tmp_path / "results" / "audio.csv"
    fields = list(results.AudioRow.__dataclass_fields__)
    path.parent.mkdir()
    path.write_text(",".join(fields) + "\n")
    with path.open() as file:
        assert next(csv.reader(file)) == fields
    assert results.read_audio(path) == []
