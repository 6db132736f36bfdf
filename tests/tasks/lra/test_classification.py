"""What all tasks have in common, held against every one of them on stand-ins."""

import pickle

import numpy as np
import pytest
import torch

from longconv import tasks
from longconv.tasks.lra import standin
from longconv.tasks.lra.classification import permutation
from longconv.tasks.lra.loading import rate

NAMES = [name for name in tasks.available() if name.startswith("lra/")]
# name: classes, length, vocabulary, channels
PUBLISHED = {
    "lra/listops": (10, 2000, 18, None),
    "lra/text": (2, 4096, 259, None),
    "lra/retrieval": (2, 4000, 259, None),
    "lra/image": (10, 1024, None, 1),
    "lra/pathfinder32": (2, 1024, None, 1),
    "lra/pathfinder64": (2, 4096, None, 1),
    "lra/pathx": (2, 16_384, None, 1),
    "lra/path256": (2, 65_536, None, 1),
    "lra/path512": (2, 262_144, None, 1),
    "lra/smnist": (10, 784, None, 1),
    "lra/pmnist": (10, 784, None, 1),
    "lra/scifar": (10, 1024, None, 3),
    "lra/digits": (10, 64, None, 1),
}
# Those whose rows are made in moments.
QUICK = [name for name in NAMES if name not in ("lra/pathx", "lra/path256", "lra/path512", "lra/pathfinder64")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every quick task on a stand-in, by name."""
    root = tmp_path_factory.mktemp("standins")
    options = {name: {"data_dir": root / name.rpartition("/")[2]} for name in QUICK if name != "lra/digits"}
    for name, option in options.items():
        standin.write(name, option["data_dir"])
    return {name: tasks.get(name, cache_dir=root / "cache", **options.get(name, {})) for name in QUICK}


@pytest.mark.parametrize("name", NAMES)
def test_attributes(name):
    task = tasks.get(name)
    assert task.name == name
    assert (task.n_classes, task.length, task.vocab_size, task.input_size) == PUBLISHED[name]
    assert task.pad_id == 0
    assert task.is_pair == (name == "lra/retrieval")
    assert tasks.get(name, pad_multiple=64, workers=1).n_classes == task.n_classes


@pytest.mark.parametrize("name", QUICK)
def test_splits_and_batches(name, made):
    task = made[name]
    splits = task.splits()
    assert list(splits) == ["train", "validation", "test"]
    for split, rows in splits.items():
        assert len(rows) >= 8
        lengths = task.lengths(split)
        assert lengths.shape == (len(rows),)
        assert lengths.dtype == np.int64
        batch = task.collate(rows.__getitems__([3, 0, 5]))
        assert batch["labels"].dtype == torch.int64
        assert batch["labels"].tolist() == [int(rows[i]["label"]) for i in (3, 0, 5)]
        assert 0 <= min(batch["labels"]) <= max(batch["labels"]) < task.n_classes
        longest = max(lengths[[3, 0, 5]])
        if task.vocab_size is None:
            assert set(batch) == {"input_values", "labels"}
            assert batch["input_values"].shape == (3, task.length, task.input_size)
            assert batch["input_values"].dtype == torch.float32
            assert longest == task.length
        else:
            assert set(batch) == {"input_ids", "attention_mask", "labels"}
            shape = (3, 2, longest) if task.is_pair else (3, longest)
            assert batch["input_ids"].shape == batch["attention_mask"].shape == shape
            assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64
            assert batch["input_ids"].max() < task.vocab_size
            assert torch.equal(batch["attention_mask"] == 1, batch["input_ids"] != task.pad_id)
            # Padding is on the right.
            assert (batch["attention_mask"].diff(dim=-1) <= 0).all()
            assert torch.equal(batch["attention_mask"].sum(-1).reshape(3, -1).amax(1), torch.tensor(lengths[[3, 0, 5]]))
    with pytest.raises(ValueError, match="no split 'val', there are: train, validation, test"):
        task.lengths("val")


@pytest.mark.parametrize("name", QUICK)
def test_all_classes_are_there(name, made):
    labels = np.concatenate([np.asarray(split["label"]) for split in made[name].splits().values()])
    assert set(labels.tolist()) == set(range(made[name].n_classes))


@pytest.mark.parametrize("name", QUICK)
def test_a_worker_of_a_data_loader_gets_the_same(name, made):
    task = pickle.loads(pickle.dumps(made[name]))
    rows = made[name].splits()["test"]
    here, there = made[name].collate(rows.__getitems__([0, 1])), task.collate(rows.__getitems__([0, 1]))
    assert all(torch.equal(here[key], there[key]) for key in here)
    loader = torch.utils.data.DataLoader(rows, batch_size=2, collate_fn=task.collate)
    assert all(torch.equal(here[key], next(iter(loader))[key]) for key in here)


@pytest.mark.parametrize("name", QUICK)
def test_rows_as_lists_are_as_good(name, made):
    """Rows that went through another format, such as after `Dataset.map`."""
    rows = made[name].splits()["test"]
    expected, got = made[name].collate([rows[0], rows[1]]), made[name].collate(list(rows.with_format(None))[:2])
    assert all(torch.equal(expected[key], got[key]) for key in expected)


@pytest.mark.parametrize("name", QUICK)
def test_description(name, made):
    lines = made[name].describe().splitlines()
    assert lines[0].startswith(f"{name}: {made[name].n_classes} classes, ")
    sizes = {split: len(rows) for split, rows in made[name].splits().items()}
    assert lines[2] == f"rows: train {sizes['train']}, validation {sizes['validation']}, test {sizes['test']}".replace(
        "1197", "1,197"
    )


def test_batches_are_padded_to_a_multiple():
    task = tasks.get("lra/listops", pad_multiple=64, config={"max_length": 100, "min_length": 10, "max_depth": 5})
    for length, expected in ((1, 64), (64, 64), (65, 100), (100, 100)):
        batch = task.collate([{"input_ids": [5] * length, "label": 3}, {"input_ids": [5], "label": 1}])
        assert batch["input_ids"].shape == (2, expected)
        assert batch["attention_mask"].sum(1).tolist() == [length, 1]
        assert batch["input_ids"].sum(1).tolist() == [5 * length, 5]


def test_pairs_are_padded_together():
    task = tasks.get("lra/retrieval", pad_multiple=8)
    row = {"input_ids_1": [7, 8, 2], "input_ids_2": np.array([9, 2], np.uint16), "label": 1}
    other = {"input_ids_1": [2], "input_ids_2": list(range(1, 10)), "label": 0}
    batch = task.collate([row, other])
    assert batch["input_ids"].shape == (2, 2, 16)
    assert batch["input_ids"][0].tolist() == [[7, 8, 2] + [0] * 13, [9, 2] + [0] * 14]
    assert batch["input_ids"][1].tolist() == [[2] + [0] * 15, [*range(1, 10)] + [0] * 7]
    assert batch["attention_mask"].sum(-1).tolist() == [[3, 2], [1, 9]]


def test_loss_and_accuracy():
    task = tasks.get("lra/listops")
    logits = torch.eye(10)[[1, 2, 3]] * 20
    assert task.loss(logits, torch.tensor([1, 2, 3])) < 1e-6
    assert task.loss(torch.zeros(3, 10), torch.tensor([1, 2, 3])).item() == pytest.approx(np.log(10))
    for predictions in (logits.numpy(), (logits.numpy(), None)):
        prediction = type("Prediction", (), {"predictions": predictions, "label_ids": np.array([1, 2, 4])})
        assert task.compute_metrics(prediction) == {"accuracy": pytest.approx(2 / 3)}


def test_rows_per_second(made):
    for name in ("lra/listops", "lra/image"):
        assert rate(made[name], "test", batch_size=4, seconds=0.05) > 1
    with pytest.raises(ValueError, match="no split 'val'"):
        rate(made["lra/listops"], "val")
    for wrong in ({"batch_size": 0}, {"seconds": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            rate(made["lra/listops"], **wrong)


def test_rows_are_dealt_as_torch_deals_them():
    generator = torch.Generator().manual_seed(42)
    parts = torch.utils.data.random_split(range(103), [80, 23], generator=generator)
    assert permutation(103).tolist() == [*parts[0].indices, *parts[1].indices]


def test_stand_ins(tmp_path):
    with pytest.raises(ValueError, match="no stand-in for 'lra/digits', there are for: lra/image"):
        standin.write("lra/digits", tmp_path)
    with pytest.raises(ValueError, match="rows must be three numbers, 10 or more"):
        standin.write("lra/image", tmp_path, rows=(20, 20, 3))
    files = [sorted(standin.write("lra/text", tmp_path / str(i), seed=i // 2).rglob("*.txt")) for i in range(3)]
    contents = [[file.read_bytes() for file in some] for some in files]
    assert contents[0] == contents[1] != contents[2]
