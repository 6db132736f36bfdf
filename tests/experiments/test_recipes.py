"""Recipes: what they cite comes out, every one can be built, and their smoke runs work, all layers and all tasks."""

import csv
import dataclasses
import math

import pytest

from longconv import cli, tasks
from longconv.experiments import recipes, results
from longconv.experiments.recipes.recipe import OURS, ROWS, planned_steps
from longconv.training import train

LAYERS = ("attention", "hyena", "mega", "multires", "s4d", "sgconv", "tcnca")
TASKS = (
    *("listops", "text", "retrieval", "image", "pathfinder32", "pathx"),
    *("pathfinder64", "path256", "path512", "smnist", "pmnist", "scifar", "digits"),
)


@pytest.fixture(autouse=True)
def apart(tmp_path, monkeypatch):
    """Runs, caches and tables of results go to a folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LONGCONV_RESULTS", str(tmp_path / "results"))


def test_every_layer_has_every_task():
    expected = {f"lra.{task}.{layer}" for task in TASKS for layer in LAYERS}
    expected |= {f"lra.{task}.tcn" for task in ("smnist", "pmnist", "digits")}
    assert set(recipes.names("lra")) == expected
    assert recipes.names("lra.listops") == tuple(f"lra.listops.{layer}" for layer in LAYERS)
    assert recipes.names("lra.list") == ()
    assert set(recipes.names()) >= expected


@pytest.mark.parametrize("name", recipes.names())
def test_recipe_is_consistent(name):
    config = recipes.get(name)
    config.check()
    family, task, layer = name.split(".")
    if family == "lra":
        assert (config.task, config.mixers) == (f"lra/{task}", layer)
        assert config.mixer_options[layer] is not None
    assert config.output.name == name
    # All of the validation split, but for language models of text, and of a folder of audio, which may be large.
    assert config.evaluate_batches == (50 if family == "lm" else 16 if name.startswith("audio-small.wave.") else 0)
    assert config.evaluate_every > 0
    if config.minutes is None:
        assert config.evaluate_every <= planned_steps(config)
    else:  # the clock ends it, and nothing else
        assert config.epochs is None
        assert planned_steps(config) == 0
    assert recipes.source(name)
    # Layers that nobody published on these tasks must not look as if somebody had.
    if family != "lm" and (layer in ("hyena", "tcnca") or task in ("digits", "path512")):
        assert recipes.source(name).startswith(OURS)


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no recipe is called 'lra.listop.sgconv'; near: .*lra.listops.sgconv"):
        recipes.get("lra.listop.sgconv")
    with pytest.raises(ValueError, match=r"these begin so: lra.listops.attention, .*lra.listops.tcnca"):
        recipes.source("lra.listops")


def test_rows_are_the_tasks():
    assert {name for name in ROWS if name.startswith("lra/")} == {
        name for name in tasks.available() if name.startswith("lra/")
    }
    for name in ("lra/listops", "lra/pathfinder32", "lra/pathx"):
        assert tasks.get(name).sizes["train"] == ROWS[name]
    assert len(tasks.get("lra/digits").splits()["train"]) == ROWS["lra/digits"]


@pytest.mark.parametrize(
    ("name", "steps", "within"),
    [
        # state-spaces/s4 v3: scheduler.num_training_steps, set for what the epochs come to or a little more.
        ("lra.listops.s4d", 80_000, 0.05),
        ("lra.text.s4d", 50_000, 0.001),
        ("lra.retrieval.s4d", 50_000, 0.1),
        ("lra.image.s4d", 180_000, 0),
        ("lra.pathfinder32.s4d", 500_000, 0),
        ("lra.pathx.s4d", 500_000, 0),
        # ctlllll/SGConv: the same, there of several GPUs together.
        ("lra.listops.sgconv", 80_000, 0.05),
        ("lra.retrieval.sgconv", 50_000, 0.1),
        ("lra.pathfinder32.sgconv", 500_000, 0),
        ("lra.pathx.sgconv", 125_000, 0),
        # facebookresearch/mega: --max-update.
        ("lra.listops.mega", 90_000, 0),
        ("lra.text.mega", 25_000, 0),
        ("lra.retrieval.mega", 91_960, 0.001),
        ("lra.image.mega", 180_000, 0),
        ("lra.pathfinder32.mega", 250_000, 0),
        ("lra.pathx.mega", 125_000, 0),
        # google-research/long-range-arena: num_train_steps, there of whole batches only.
        ("lra.listops.attention", 5_000, 0),
        ("lra.text.attention", 20_000, 0),
        ("lra.image.attention", 45_000 // 256 * 200, 0.006),
        ("lra.pathfinder32.attention", 160_000 // 512 * 200, 0.006),
    ],
)
def test_published_number_of_steps(name, steps, within):
    assert math.isclose(planned_steps(recipes.get(name)), steps, rel_tol=within)


@pytest.mark.parametrize(
    ("name", "warmup", "of"),
    [
        ("lra.listops.s4d", 1_000, 80_000),
        ("lra.pathx.s4d", 50_000, 500_000),
        ("lra.image.sgconv", 900, 180_000),
        ("lra.listops.mega", 3_000, 90_000),
        ("lra.listops.multires", 1, 100),
        ("lra.text.attention", 8_000, 20_000),
    ],
)
def test_published_warmup(name, warmup, of):
    assert recipes.get(name).warmup == warmup / of


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # The table of its paper; ours has the skip of the 1x1 convolution from 1 to 25 channels in the input map.
        ("lra.smnist.tcn", 0.070),
        # Shi et al. 2023 on sequential CIFAR.
        ("lra.scifar.multires", 1.4),
    ],
)
def test_published_number_of_parameters(name, millions):
    count = sum(p.numel() for p in recipes.get(name).job().build_model().parameters())
    assert math.isclose(count / 1e6, millions, rel_tol=0.03)


@pytest.mark.parametrize("layer", [*LAYERS, "tcn"])
def test_recipes_of_a_layer_can_be_built(layer):
    # The sizes of the recipes, but those of 128 px and more, whose filters take seconds to draw.
    for name in recipes.names("lra"):
        _, task, of = name.split(".")
        if of == layer and task not in ("pathx", "path256", "path512"):
            config = recipes.get(name)
            if config.task_options.pop("level", None):  # a vocabulary of characters is that of texts, not here
                assert task == "text"
            model = config.job().build_model()
            assert model.config.num_hidden_layers == config.layers
            assert all(block.mixer.causal != config.bidirectional for block in model.base_model.layers)


def smoke(name, tmp_path):
    config = dataclasses.replace(recipes.smoke(recipes.get(name)), cache_dir=tmp_path / "cache", quiet=True)
    result = train(config)
    assert result.complete
    assert result.steps == config.steps
    assert set(result.metrics) >= {"accuracy", "test_accuracy"}
    return config


def test_smoke_of_every_layer(tmp_path):
    for layer in LAYERS:
        config, whole = smoke(f"lra.listops.{layer}", tmp_path), recipes.get(f"lra.listops.{layer}")
        for kept in (
            "mixers",
            "mixer_options",
            "norm",
            "norm_position",
            "pooling",
            "schedule",
            "warmup",
            "lr",
            "dropout",
        ):
            assert getattr(config, kept) == getattr(whole, kept)


@pytest.mark.parametrize("task", [task for task in TASKS if not task.startswith(("listops", "path"))] + ["path512"])
def test_smoke_of_every_task(task, tmp_path):
    smoke(f"lra.{task}.sgconv", tmp_path)


@pytest.mark.parametrize("task", [task for task in TASKS if task.startswith("path")])
def test_pathfinder_of_every_size_has_one_smoke(task):
    small, first = (recipes.smoke(recipes.get(f"lra.{name}.mega")) for name in (task, "path512"))
    assert (small.task, small.task_options) == (first.task, first.task_options)


def test_smoke_on_the_command_line(tmp_path, capsys):
    assert cli.main(["train", "lra.listops.sgconv", "--smoke", "--quiet", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert "accuracy: validation" in said
    assert "smoke/lra.csv" in said
    with (tmp_path / "runs" / "smoke" / "lra.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["recipe"], row["steps"], row["complete"], row["smoke"]) == ("lra.listops.sgconv", "2", "True", "True")
    assert not (tmp_path / "results").exists()  # the table of real runs


def test_command_line_lists_recipes(capsys):
    assert cli.main(["train", "lra.listops"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(recipes.names("lra.listops"))
    assert "gconv-lra-listops.yaml" in lines[5]


def test_hash_is_of_what_is_learnt():
    config = recipes.get("lra.listops.sgconv")
    same = dataclasses.replace(config, seed=3, output="elsewhere", workers=2, quiet=True, log_every=1)
    assert results.recipe_hash(same) == results.recipe_hash(config)
    for change in (
        {"lr": 1e-3},
        {"batch_size": 10},
        {"task_options": {"seed": 1}},
        {"minutes": 20.0},
        {"data_dir": "x"},
    ):
        assert results.recipe_hash(dataclasses.replace(config, **change)) != results.recipe_hash(config)
