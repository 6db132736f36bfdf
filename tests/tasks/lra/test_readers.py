"""Readers of the published files, on a few rows in each official layout, written by hand."""

import gzip
import json
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from longconv import tasks
from longconv.tasks.lra import cifar, listops, mnist, standin
from longconv.tasks.lra.classification import permutation

PIL = pytest.importorskip("PIL.Image")
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


def _paths(root: Path, n: int = 40, folder: str = "curv_contour_length_14", shade: int = 0) -> Path:
    """Grey images whose pixels are their number; images 10, 11, … come before 2 where names are sorted as text."""
    (root / folder / "metadata").mkdir(parents=True)
    for number, part in ((2, range(n // 2)), (10, range(n // 2, n))):
        (root / folder / "imgs" / str(number)).mkdir(parents=True)
        lines = []
        for i in part:
            path = root / folder / "imgs" / str(number) / f"sample_{i}.png"
            PIL.fromarray(np.full((32, 32), i + shade, np.uint8)).save(path)
            lines.append(f"imgs/{number} sample_{i}.png {i} {i % 2} 1.0 14 4 2 0.5 1 1\n")
        (root / folder / "metadata" / f"{number}.npy").write_text("".join(lines))
    return root


@pytest.mark.parametrize("depth", ["lra_release/lra_release/pathfinder32", "pathfinder/pathfinder32", "."])
def test_pathfinder(tmp_path, depth):
    _paths(tmp_path / "data" / depth)
    splits = tasks.get("lra/pathfinder32", data_dir=tmp_path / "data").splits()
    # S4's code: in the order of the metadata's numbers, dealt by random_split with seed 42.
    parts = torch.utils.data.random_split(range(40), [32, 4, 4], generator=torch.Generator().manual_seed(42))
    for rows, part in zip(splits.values(), parts, strict=True):
        assert [int(row["pixels"][0]) for row in rows] == list(part)
        assert all(len(row["pixels"]) == 1024 and (row["pixels"] == row["pixels"][0]).all() for row in rows)
        assert [row["label"] for row in rows] == [i % 2 for i in part]


def test_broken_images(tmp_path):
    root = _paths(tmp_path / "pathfinder32")
    images = root / "curv_contour_length_14" / "imgs"
    (images / "2" / "sample_0.png").write_bytes(b"")
    (images / "2" / "sample_1.png").write_bytes((images / "2" / "sample_1.png").read_bytes()[:60])
    (images / "10" / "sample_20.png").unlink()
    PIL.fromarray(np.zeros((16, 32), np.uint8)).save(images / "10" / "sample_21.png")
    faults = [
        r"imgs/2/sample_0.png \(empty\)",
        r"imgs/2/sample_1.png \(damaged",
        r"imgs/10/sample_20.png \(not there\)",
        r"imgs/10/sample_21.png \(32 x 16 pixels\)",
    ]
    with pytest.raises(ValueError, match=r'broken image.*on_broken="skip"') as error:
        tasks.get("lra/pathfinder32", data_dir=tmp_path).splits()
    assert "sample_" in str(error.value)
    with pytest.warns(UserWarning, match="left out") as caught:
        splits = tasks.get("lra/pathfinder32", data_dir=tmp_path, on_broken="skip").splits()
    said = " ".join(str(warning.message) for warning in caught)
    for fault in faults:
        assert pytest.importorskip("re").search(fault, said), fault
    shades = [int(row["pixels"][0]) for rows in splits.values() for row in rows]
    assert sorted(shades) == sorted(set(range(40)) - {0, 1, 20, 21})


def test_the_known_empty_image_is_left_out_before_rows_are_dealt(tmp_path):
    root = _paths(tmp_path / "pathfinder32", folder="curv_baseline")
    lines = "".join(f"imgs/0 sample_{i}.png {i} 1 1.0\n" for i in (172,))
    (root / "curv_baseline" / "metadata" / "0.npy").write_text(lines)
    (root / "curv_baseline" / "imgs" / "0").mkdir()
    (root / "curv_baseline" / "imgs" / "0" / "sample_172.png").write_bytes(b"")
    splits = tasks.get("lra/pathfinder32", difficulty="easy", data_dir=tmp_path).splits()
    assert [int(row["pixels"][0]) for row in splits["train"]] == permutation(40)[:32].tolist()


def test_broken_metadata(tmp_path):
    root = _paths(tmp_path / "pathfinder32")
    (root / "curv_contour_length_14" / "metadata" / "3.npy").write_text("imgs/3 sample_0.png 0\n")
    with pytest.raises(ValueError, match=r"3.npy, line 1: expected folder, file, number, label"):
        tasks.get("lra/pathfinder32", data_dir=tmp_path).splits()


def test_of_two_folders_the_inner_one_is_read(tmp_path):
    _paths(tmp_path / "lra_release" / "lra_release" / "pathfinder32", shade=100)
    outer = _paths(tmp_path / "lra_release" / "pathfinder32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for data_dir in (tmp_path, tmp_path / "lra_release"):
            row = tasks.get("lra/pathfinder32", data_dir=data_dir).splits()["train"][0]
            assert row["pixels"][0] >= 100
    with pytest.warns(UserWarning, match="issue 38"):
        assert tasks.get("lra/pathfinder32", data_dir=outer).splits()["train"][0]["pixels"][0] < 100


def _cifar(folder: Path) -> np.ndarray:
    folder.mkdir(parents=True)
    pixels = np.random.RandomState(0).randint(256, size=(60, 3072)).astype(np.uint8)
    for i, part in enumerate(np.split(np.arange(60), 6)):
        name = "test_batch" if i == 5 else f"data_batch_{i + 1}"
        batch = {b"data": pixels[part], b"labels": (part % 10).tolist(), b"filenames": [b"x.png"] * 10}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    return pixels


@pytest.mark.parametrize("packed", [False, True])
def test_cifar(tmp_path, packed):
    pixels = _cifar(tmp_path / "data" / "cifar-10-batches-py")
    if packed:
        with tarfile.open(tmp_path / "data" / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "data" / "cifar-10-batches-py", "cifar-10-batches-py")
        for file in (tmp_path / "data" / "cifar-10-batches-py").iterdir():
            file.unlink()
    order = permutation(50)
    expected = {"train": order[:45], "validation": order[45:], "test": np.arange(50, 60)}
    for name in ("lra/image", "lra/scifar"):
        task = tasks.get(name, data_dir=tmp_path / "data")
        for split, rows in task.splits().items():
            assert [row["label"] for row in rows] == [i % 10 for i in expected[split]]
            i = expected[split][2]
            colours = pixels[i].reshape(3, 32, 32)
            values = task.collate([rows[2]])["input_values"][0]
            if name == "lra/scifar":
                want = torch.from_numpy(colours.reshape(3, -1).T.copy()).float() / 255
                want = (want - torch.tensor([0.4914, 0.4822, 0.4465])) / torch.tensor([0.247, 0.243, 0.261])
            else:
                grey = PIL.fromarray(colours.transpose(1, 2, 0).copy()).convert("L")
                want = (torch.from_numpy(np.array(grey)).float().view(-1, 1) / 255 - 122.6 / 255) / (61 / 255)
            assert torch.equal(values, want)


def test_grey_is_pillows():
    colours = np.random.RandomState(0).randint(256, size=(300, 300, 3)).astype(np.uint8)
    assert np.array_equal(cifar.to_grey(colours), np.array(PIL.fromarray(colours).convert("L")))


def test_grey_pixels_as_tokens(tmp_path):
    _cifar(tmp_path / "data")
    task, tokens = (tasks.get("lra/image", data_dir=tmp_path / "data", tokens=flag) for flag in (False, True))
    assert (tokens.vocab_size, tokens.input_size) == (256, None)
    row = task.splits()["test"][0]
    batch = tokens.collate([row])
    assert batch["input_ids"].tolist() == [row["pixels"].tolist()]
    assert batch["attention_mask"].all()
    with pytest.raises(ValueError, match="tokens=True needs images of one channel, lra/scifar has 3"):
        tasks.get("lra/scifar", tokens=True)


class _Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def test_broken_cifar(tmp_path, capsys):
    _cifar(tmp_path / "data")
    file = tmp_path / "data" / "data_batch_3"
    whole = file.read_bytes()
    short = pickle.dumps({b"data": np.zeros((3, 3072), np.uint8), b"labels": [1]})
    for contents in (whole[:1000], b"", pickle.dumps(_Evil()), pickle.dumps([1]), short):
        file.write_bytes(contents)
        with pytest.raises(ValueError, match=r"data_batch_3 .*; fetch https://www.cs.toronto.edu"):
            tasks.get("lra/image", data_dir=tmp_path / "data").splits()
    assert "this ran" not in capsys.readouterr().out
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cifar-10-python.tar.gz is damaged"):
        tasks.get("lra/image", data_dir=tmp_path / "data").splits()


def _digits(folder: Path, packed: bool) -> np.ndarray:
    folder.mkdir(parents=True)
    images = np.random.RandomState(0).randint(256, size=(36, 28, 28)).astype(np.uint8)
    for name, part in (("train", np.arange(24)), ("t10k", np.arange(24, 36))):
        for kind, array in (("images-idx3", images[part]), ("labels-idx1", (part % 10).astype(np.uint8))):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
            file = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(header + array.tobytes()) if packed else header + array.tobytes())
    return images


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("depth", [".", "MNIST/raw"])
def test_mnist(tmp_path, packed, depth):
    images = _digits(tmp_path / "data" / depth, packed)
    order = permutation(24)
    expected = {"train": order[:22], "validation": order[22:], "test": np.arange(24, 36)}
    options = {"smnist": {}, "pmnist": {}, "pmnist seed": {"permutation": 92916}}
    orders = {
        "smnist": np.arange(784),
        "pmnist": [i for i in (int(f"{k:010b}"[::-1], 2) for k in range(1024)) if i < 784],
        "pmnist seed": np.random.RandomState(92916).permutation(784),
    }
    for kind, option in options.items():
        task = tasks.get(f"lra/{kind.split()[0]}", data_dir=tmp_path / "data", **option)
        for split, rows in task.splits().items():
            assert [row["label"] for row in rows] == [i % 10 for i in expected[split]]
            values = task.collate([rows[1]])["input_values"][0, :, 0]
            want = images[expected[split][1]].reshape(-1)[orders[kind]]
            assert torch.equal(values, torch.from_numpy(want).float() / 255)


def test_bit_reversal():
    assert mnist.bit_reversal(8).tolist() == [0, 4, 2, 6, 1, 5, 3, 7]
    assert mnist.bit_reversal(6).tolist() == [0, 4, 2, 1, 5, 3]
    assert mnist.bit_reversal(784)[:4].tolist() == [0, 512, 256, 768]
    assert sorted(mnist.bit_reversal(784)) == list(range(784))


@pytest.mark.parametrize("wrong", ["random", -1, True, 1.5])
def test_bad_permutations(wrong):
    with pytest.raises(ValueError, match='permutation must be "bitreversal" or a seed'):
        tasks.get("lra/pmnist", permutation=wrong)


def test_broken_mnist(tmp_path):
    _digits(tmp_path / "data", packed=True)
    file = tmp_path / "data" / "t10k-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    for contents in (whole[:-100], b"no gzip", gzip.compress(gzip.decompress(whole)[:-1]), gzip.compress(b"\0\0")):
        file.write_bytes(contents)
        with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte.gz is .*; fetch the four files"):
            tasks.get("lra/smnist", data_dir=tmp_path / "data").splits()


@pytest.mark.parametrize("name", ["lra/image", "lra/smnist"])
def test_images_from_the_hub(name, monkeypatch):
    datasets = pytest.importorskip("datasets")
    column, shape = {"lra/image": ("img", (32, 32, 3)), "lra/smnist": ("image", (28, 28))}[name]
    pixels = np.random.RandomState(0).randint(256, size=(30, *shape)).astype(np.uint8)

    def load_dataset(repository, split):
        assert repository == {"lra/image": "uoft-cs/cifar10", "lra/smnist": "ylecun/mnist"}[name]
        rows = {column: [PIL.fromarray(image) for image in pixels], "label": [i % 10 for i in range(30)]}
        features = datasets.Features({column: datasets.Image(), "label": datasets.Value("int64")})
        return datasets.Dataset.from_dict(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = tasks.get(name).splits()["test"]
    assert [row["label"] for row in rows] == [i % 10 for i in range(30)]
    grey = cifar.to_grey(pixels) if name == "lra/image" else pixels
    assert np.array_equal(np.stack([row["pixels"] for row in rows]), grey.reshape(30, -1))


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
