"""Readers of the published images, on a few rows in each official layout, written by hand."""

import gzip
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from longconv import tasks
from longconv.tasks.lra import cifar, mnist
from longconv.tasks.lra.classification import permutation

PIL = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))


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
