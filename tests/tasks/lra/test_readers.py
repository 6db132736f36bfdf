"""Readers of the published files, on a few rows in each official layout, written by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from longconv import tasks
from longconv.tasks.lra import listops, standin

pytest.importorskip("PIL.Image")
RELEASE = "https://storage.googleapis.com/long-range-arena/lra_release.gz"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))


def _listops(folder: Path, lines=("( ( ( [MED 1 ) 5 ) ] )\t3\n", "( ( ( [SM 9 ) ( ( ( [MIN 3 ) 2 ) ] ) ) ] )\t1\n")):
    folder.mkdir(parents=True)
    for file in ("basic_train.tsv", "basic_val.tsv", "basic_test.tsv"):
        (folder / file).write_text("Source\tTarget\n" + "".join(lines))
    return folder


@pytest.mark.parametrize("depth", ["lra_release/lra_release/listops-1000", "lra_release/listops-1000", "listops", "."])
def test_listops(tmp_path, depth):
    _listops(tmp_path / "data" / depth)
    rows = tasks.get("lra/listops", data_dir=tmp_path / "data").splits()["validation"]
    words = [[listops.VOCABULARY[i] for i in row["input_ids"]] for row in rows]
    assert words == [
        ["[MED", "1", "5", "]", "<eos>"],
        ["[SM", "9", "[MIN", "3", "2", "]", "]", "<eos>"],
    ]
    assert [row["label"] for row in rows] == [3, 1]


def test_listops_files_are_read_as_they_are_generated(tmp_path):
    config = listops.ListOpsConfig(max_depth=5, max_args=5, min_length=10, max_length=80)
    made = listops.generate(30, seed=1, config=config)
    lines = [f"{standin._brackets(made[i][0])}\t{made[i][1]}\n" for i in range(30)]
    _listops(tmp_path / "listops-1000", lines)
    rows = tasks.get("lra/listops", data_dir=tmp_path).splits()["train"]
    assert [row["input_ids"].tolist() for row in rows] == [[*made[i][0].tolist(), 2] for i in range(30)]
    assert [row["label"] for row in rows] == made.labels.tolist()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("( ( ( [MOD 1 ) 5 ) ] )\t3\n", "line 3: no expression"),
        ("( ( ( [MED 1 ) 5 ) ] )\n", "line 3: no expression"),
        ("( ( ( [MED 1 ) 5 ) ] )\t13\n", "line 3: no expression"),
        ("\t1\n", "line 3: no expression"),
        ("( ( ( [MED 1 ) 15 ) ] )\t3\n", "line 3: a number of two digits"),
        ("( ( ( [MED " + "1 ) " * 2000 + "] )\t1\n", "line 3: 2003 tokens, more than 2000"),
    ],
)
def test_broken_listops(tmp_path, line, message):
    _listops(tmp_path / "data", ("( ( ( [MED 1 ) 5 ) ] )\t3\n", line))
    with pytest.raises(ValueError, match=rf"basic_train.tsv, {message}"):
        tasks.get("lra/listops", data_dir=tmp_path / "data").splits()
    (tmp_path / "data" / "basic_train.tsv").write_text("( ( ( [MED 1 ) 5 ) ] )\t3\n")
    with pytest.raises(ValueError, match="must begin with the line Source<tab>Target"):
        tasks.get("lra/listops", data_dir=tmp_path / "data").splits()


def _reviews(folder: Path) -> Path:
    texts = {"train/neg": ["bad é", "x" * 5000], "train/pos": ["good"], "test/neg": ["so so"], "test/pos": ["fine", ""]}
    for name, some in texts.items():
        (folder / name).mkdir(parents=True)
        for i, text in enumerate(some):
            (folder / name / f"{i}_1.txt").write_bytes(text.encode())
    (folder / "train" / "unsup").mkdir()
    (folder / "train" / "unsup" / "0_0.txt").write_text("not a labelled one")
    return folder


@pytest.mark.parametrize("depth", ["aclImdb", "."])
def test_text(tmp_path, depth):
    _reviews(tmp_path / "data" / depth)
    task = tasks.get("lra/text", data_dir=tmp_path / "data")
    splits = task.splits()
    rows = list(splits["train"])
    assert [row["label"] for row in rows] == [0, 0, 1]
    assert rows[0]["input_ids"].tolist() == [*(3 + byte for byte in "bad é".encode()), 2]
    assert rows[1]["input_ids"].tolist() == [3 + ord("x")] * 4095 + [2]
    assert [row["input_ids"].tolist() for row in splits["test"]][2] == [2]
    # As in the Long Range Arena, validation is on the test texts.
    assert splits["validation"] is splits["test"]
    assert "validation is on the test texts" in task.describe()


def test_held_out_text(tmp_path):
    standin.write("lra/text", tmp_path / "data", rows=(64, 36, 20))
    whole = tasks.get("lra/text", data_dir=tmp_path / "data").splits()
    splits = tasks.get("lra/text", data_dir=tmp_path / "data", validation=0.2).splits()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 80, "validation": 20, "test": 20}
    kept = [tuple(row["input_ids"]) for split in ("train", "validation") for row in splits[split]]
    assert sorted(kept) == sorted(tuple(row["input_ids"]) for row in whole["train"])
    assert 5 <= sum(int(row["label"]) for row in splits["validation"]) <= 15


def test_text_in_characters(tmp_path):
    folder = _reviews(tmp_path / "data")
    (folder / "train" / "neg" / "2_1.txt").write_text("ab" * 20 + "é" * 15 + "c" * 14, encoding="utf-8")
    task = tasks.get("lra/text", data_dir=tmp_path / "data", level="char")
    # x 4,095 times (texts are cut first), then a 21 and b 21 (equal: by code), é 16; c 14 is too rare.
    assert list(task.vocabulary) == ["<pad>", "<unk>", "<eos>", "x", "a", "b", "é"]
    assert task.vocab_size == 7
    assert task.splits()["train"][0]["input_ids"].tolist() == [5, 4, 1, 1, 6, 2]
    assert task.splits()["train"][2]["input_ids"].tolist() == [4, 5] * 20 + [6] * 15 + [1] * 14 + [2]


def test_text_from_the_hub(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(repository, split):
        asked.append((repository, split))
        return datasets.Dataset.from_dict({"text": [f"{split} é", "b"], "label": [1, 0]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = tasks.get("lra/text").splits()
    assert bytes((splits["train"][0]["input_ids"][:-1] - 3).astype(np.uint8)).decode() == "train é"
    assert [row["label"] for row in splits["test"]] == [1, 0]
    assert asked == [("stanfordnlp/imdb", "train"), ("stanfordnlp/imdb", "test")]
    monkeypatch.delattr(datasets, "load_dataset")
    assert len(tasks.get("lra/text").splits()["train"]) == 2  # from the cache, without a network


def _pairs(folder: Path, line: str = '1.0\tP1\tP2\tsome "text\tother') -> Path:
    folder.mkdir(parents=True)
    for split in ("train", "eval", "test"):
        (folder / f"new_aan_pairs.{split}.tsv").write_text(f"0\tA\tB\t{'y' * 5000}\t\n{line}\n")
    return folder


@pytest.mark.parametrize("depth", ["lra_release/lra_release/tsv_data", "lra_release/tsv_data", "aan", "."])
def test_retrieval(tmp_path, depth):
    _pairs(tmp_path / "data" / depth)
    task = tasks.get("lra/retrieval", data_dir=tmp_path / "data")
    rows = list(task.splits()["validation"])
    assert [row["label"] for row in rows] == [0, 1]
    assert rows[0]["input_ids_1"].tolist() == [3 + ord("y")] * 3999 + [2]
    assert rows[0]["input_ids_2"].tolist() == [2]
    assert bytes((rows[1]["input_ids_1"][:-1] - 3).astype(np.uint8)) == b'some "text'
    assert bytes((rows[1]["input_ids_2"][:-1] - 3).astype(np.uint8)) == b"other"
    assert task.lengths("train").tolist() == [4000, 11]


@pytest.mark.parametrize("line", ["1.0\tP1\tP2\tone text", "2\tP1\tP2\ta\tb", "1\tP1\tP2\ta\tb\tc"])
def test_broken_pairs(tmp_path, line):
    _pairs(tmp_path / "data", line)
    with pytest.raises(ValueError, match=r"new_aan_pairs.train.tsv, line 2: expected label, id, id, text and text"):
        tasks.get("lra/retrieval", data_dir=tmp_path / "data").splits()


MISSING = {
    "lra/text": ("neg", "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz"),
    "lra/retrieval": ("new_aan_pairs.eval.tsv", RELEASE),
    "lra/image": ("data_batch_4", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
    "lra/smnist": ("t10k-labels-idx1-ubyte", "https://ossci-datasets.s3.amazonaws.com/mnist/"),
    "lra/listops": ("basic_val.tsv", RELEASE),
    "lra/pathfinder64": ("curv_contour_length_14/metadata", RELEASE),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_files_are_named(name, tmp_path):
    """Neither folder nor files, or all files but one: what is missing, what to fetch, where to put it."""
    file, url = MISSING[name]
    with pytest.raises(FileNotFoundError, match=r"data_dir .*nowhere is not a folder") as error:
        tasks.get(name, data_dir=tmp_path / "nowhere").splits()
    assert url in str(error.value)
    assert "as data_dir" in str(error.value)
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError) as error:
        tasks.get(name, data_dir=tmp_path / "data").splits()
    assert file in str(error.value)
    assert url in str(error.value)
    assert "\n" not in str(error.value)


def test_one_missing_file_is_named(tmp_path):
    folder = _pairs(tmp_path / "lra_release" / "tsv_data")
    (folder / "new_aan_pairs.eval.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"tsv_data has no new_aan_pairs.eval.tsv; fetch"):
        tasks.get("lra/retrieval", data_dir=tmp_path).splits()


@pytest.mark.parametrize("name", ["lra/text", "lra/retrieval", "lra/image", "lra/scifar", "lra/smnist", "lra/pmnist"])
def test_without_folder_and_network(name, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def offline(*args, **kwargs):
        raise ConnectionError("no network here")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(FileNotFoundError, match=f"{name} needs its data: no data_dir was given.*fetch .*as data_dir"):
        tasks.get(name).splits()


def test_no_images_of_512_pixels_were_released(tmp_path):
    with pytest.raises(FileNotFoundError, match="no images of 512 pixels were released"):
        tasks.get("lra/path512", data_dir=tmp_path).splits()


def test_other_files_are_other_rows(tmp_path):
    _reviews(tmp_path / "aclImdb")
    before = tasks.get("lra/text", data_dir=tmp_path).splits()["train"][0]["input_ids"].tolist()
    (tmp_path / "aclImdb" / "train" / "neg" / "0_1.txt").write_text("changed")
    after = tasks.get("lra/text", data_dir=tmp_path).splits()["train"][0]["input_ids"].tolist()
    assert before != after == [*(3 + byte for byte in b"changed"), 2]


def test_vocabulary_is_json_that_can_be_read(tmp_path):
    _reviews(tmp_path / "aclImdb")
    task = tasks.get("lra/text", data_dir=tmp_path, level="char")
    file = next((task.cache_dir).glob("text-vocabulary-*/vocabulary.json")) if task.vocab_size else None
    assert json.loads(file.read_text()) == {"x": 3}
