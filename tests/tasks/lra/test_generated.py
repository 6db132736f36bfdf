"""ListOps and Pathfinder, generated: splits are what the generators give, in the cache, whole or not at all."""

from pathlib import Path

import numpy as np
import pytest

from longconv import tasks
from longconv.tasks.lra import ListOps, Pathfinder, listops, pathfinder
from longconv.tasks.lra.listops import ListOpsConfig
from longconv.tasks.lra.random import child_seed
from longconv.tasks.lra.settings import PathfinderConfig, pathfinder_config

SMALL = ListOpsConfig(max_depth=5, max_args=5, min_length=10, max_length=80)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))


def _images(splits) -> list[tuple[int, ...]]:
    return [tuple(row["pixels"].tolist()) for split in splits.values() for row in split]


def test_listops_splits_are_what_is_generated():
    task = tasks.get("lra/listops", config=SMALL, sizes=(1100, 20, 30), seed=4)
    assert isinstance(task, ListOps)
    splits = task.splits()
    assert {name: len(split) for name, split in splits.items()} == {"train": 1100, "validation": 20, "test": 30}
    expected = listops.generate(1150, seed=4, config=SMALL)
    rows = [row for split in splits.values() for row in split]
    for i, row in enumerate(rows):
        assert row["input_ids"].tolist() == [*expected[i][0].tolist(), listops.EOS]
        assert row["label"] == expected[i][1]
        assert len(row["input_ids"]) <= task.length
    assert len({tuple(row["input_ids"]) for row in rows}) == 1150
    assert task.lengths("train").tolist() == [len(row["input_ids"]) for row in splits["train"]]


def test_a_config_can_be_a_mapping():
    fields = {"max_depth": 5, "max_args": 5, "min_length": 10, "max_length": 80}
    assert ListOps(config=fields).config == SMALL
    assert ListOps(config=fields).length == 80


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("lra/pathfinder32", 32),
        ("lra/pathfinder64", 64),
        ("lra/pathx", 128),
        ("lra/path256", 256),
        ("lra/path512", 512),
    ],
)
def test_pathfinder_of_every_size(name, size):
    task = tasks.get(name, difficulty="easy", sizes=(1, 1, 1), seed=3)
    assert isinstance(task, Pathfinder)
    assert task.name == name
    assert task.length == size**2
    row = task.splits()["validation"][0]
    expected = pathfinder.generate(1, child_seed(3, 1, 0), config=pathfinder_config(size, "easy"))
    assert np.array_equal(row["pixels"].reshape(size, size), expected.images[0])
    assert row["label"] == expected.labels[0]
    batch = task.collate([row, row])
    assert batch["input_values"].shape == (2, size**2, 1)
    assert batch["input_values"].min() == -1
    assert batch["input_values"].max() == 1


def test_pathfinder_goes_on_where_it_was_ended(tmp_path, monkeypatch):
    """Files that are whole are kept, and the rows are those of a run that was not ended."""
    expected = _images(_task(tmp_path / "a").splits())
    generate, calls = pathfinder.generate_parts, []

    def ended(n, seed, **options):
        calls.append(n)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(n, seed, **options)

    monkeypatch.setattr(pathfinder, "generate_parts", ended)
    with pytest.raises(KeyboardInterrupt):
        _task(tmp_path / "b").splits()
    assert _images(_task(tmp_path / "b").splits()) == expected
    assert calls == [300, 40, 40, 50]  # the first file was there


def _task(folder: Path) -> Pathfinder:
    return tasks.get("lra/pathfinder32", difficulty="easy", sizes=(300, 40, 50), cache_dir=folder)


def test_a_damaged_file_is_generated_again():
    task = ListOps(config=SMALL, sizes=(20, 1, 1))
    before = [row["input_ids"].tolist() for row in task.splits()["train"]]
    file = task.prepare()["train"][0]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="damaged"):
        assert [row["input_ids"].tolist() for row in task.splits()["train"]] == before


def test_splits_differ_and_depend_on_the_seed():
    first, second = (
        tasks.get("lra/pathfinder32", difficulty="easy", sizes=(4, 4, 4), seed=seed).splits() for seed in (0, 1)
    )
    assert len(set(_images(first) + _images(second))) == 24


@pytest.mark.parametrize(
    "options", [{"sizes": (1, 2)}, {"sizes": (1, 0, 1)}, {"seed": -1}, {"workers": 0}, {"pad_multiple": 0}]
)
@pytest.mark.parametrize("name", ["lra/listops", "lra/pathfinder32"])
def test_bad_options(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        tasks.get(name, **options)


def test_bad_options_of_pathfinder():
    with pytest.raises(ValueError, match="difficulty"):
        tasks.get("lra/pathfinder32", difficulty="impossible")
    with pytest.raises(ValueError, match='on_broken must be "error" or "skip", got'):
        tasks.get("lra/pathfinder32", on_broken="ignore")


@pytest.mark.parametrize("name", ["lra/listops", "lra/pathfinder32"])
def test_sizes_of_files_are_not_chosen(name, tmp_path):
    with pytest.raises(ValueError, match="sizes are those of generated data"):
        tasks.get(name, data_dir=tmp_path, sizes=(1, 1, 1))


def test_settings_of_pathfinder(tmp_path):
    settings = {"size": 24, "seed_distance": 5, "contour_length": 5, "distractor_paddles": 0}
    task = tasks.get("lra/pathfinder32", settings=settings, sizes=(20, 5, 5), seed=3)
    expected = pathfinder.generate(
        20, child_seed(3, 0, 0), config=PathfinderConfig(24, 5, (1,), 1, 2, 0.5, 1.5, 5, 1.0, 0, 1.5)
    )
    assert task.length == 576
    assert [tuple(row["pixels"].tolist()) for row in task.splits()["train"]] == [
        tuple(image.reshape(-1).tolist()) for image in expected.images
    ]
    assert "size 24" in task.source
    with pytest.raises(ValueError, match=r"settings: unknown 'sise'"):
        tasks.get("lra/pathfinder32", settings={"sise": 24})
    with pytest.raises(ValueError, match="settings are those of generated data"):
        tasks.get("lra/pathfinder32", settings=settings, data_dir=tmp_path)


def test_published_sizes():
    assert list(ListOps().sizes.values()) == [96_000, 2_000, 2_000]
    assert list(tasks.get("lra/pathx").sizes.values()) == [160_000, 20_000, 20_000]
