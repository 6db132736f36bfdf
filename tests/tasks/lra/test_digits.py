import sys

import numpy as np
import pytest

from longconv import tasks
from longconv.tasks.lra.digits import stratified

load_digits = pytest.importorskip("sklearn.datasets").load_digits


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("scale", [1, 4])
def test_every_digit_is_in_one_split(scale):
    task = tasks.get("lra/digits", scale=scale)
    splits = task.splits()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1197, "validation": 300, "test": 300}
    assert task.length == 64 * scale**2
    side = 8 * scale
    digits = load_digits()
    seen = []
    for rows in splits.values():
        values = task.collate(rows.__getitems__(list(range(len(rows)))))
        images = values["input_values"].numpy().reshape(-1, side, side)
        # 0 … 16 is -1 … 1; each pixel is repeated in both directions.
        assert np.array_equal(images, np.kron(images[:, ::scale, ::scale], np.ones((1, scale, scale), np.float32)))
        seen += [
            ((image[::scale, ::scale] + 1) * 8, int(label))
            for image, label in zip(images, values["labels"], strict=True)
        ]
    found = sorted((np.rint(image).astype(int).reshape(-1).tolist(), label) for image, label in seen)
    expected = sorted(
        (image.astype(int).reshape(-1).tolist(), int(label))
        for image, label in zip(digits.images, digits.target, strict=True)
    )
    assert found == expected


def test_splits_have_the_same_shares_of_classes():
    splits = tasks.get("lra/digits").splits()
    shares = np.bincount(load_digits().target) / 1797
    for rows in splits.values():
        counts = np.bincount([int(row["label"]) for row in rows], minlength=10)
        assert np.abs(counts - shares * len(rows)).max() <= 2


def test_the_seed_decides():
    labels = load_digits().target
    first, again, other = stratified(labels, 0), stratified(labels, 0), stratified(labels, 1)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert sorted(first) == list(range(1797))


@pytest.mark.parametrize("options", [{"scale": 0}, {"scale": 1.5}, {"seed": -1}, {"scale": True}])
def test_bad_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be an integer"):
        tasks.get("lra/digits", **options)


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'sklearn.datasets is missing: pip install "longconv\[lra\]"'):
        tasks.get("lra/digits").splits()
