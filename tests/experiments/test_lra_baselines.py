"""Linear classifiers on the tasks of the Long Range Arena: their features by hand, and what they can find."""

import csv
import math

import numpy as np
import pytest
import torch

from longconv import tasks
from longconv.experiments import lra_baselines
from longconv.experiments.benchmarks import BENCHMARKS
from longconv.experiments.lra_baselines import baselines, bigram_counts, features_of, find_discs, root_digits, wilson
from longconv.tasks.lra import listops, pathfinder
from longconv.tasks.lra.settings import pathfinder_config

pytest.importorskip("sklearn")


class Tokens:
    """Rows of 12 tokens; a row of class c has six times token c + 1, in any order. A pair is of one class or not."""

    name, n_classes, length, vocab_size, input_size = "lra/tokens", 3, 12, 7, None

    def __init__(self, is_pair=False, vocab_size=7):
        self.is_pair, self.vocab_size = is_pair, vocab_size

    def splits(self):
        generator = np.random.default_rng(0)
        sizes = {"train": 300, "validation": 60, "test": 90}
        return {split: [self.row(generator) for _ in range(n)] for split, n in sizes.items()}

    def row(self, generator):
        kinds = generator.integers(0, 3, 2)
        ids = [generator.permutation([*generator.integers(4, 7, 6), *[c + 1] * 6]) for c in kinds]
        if self.is_pair:
            return {"ids": np.stack(ids), "label": int(kinds[0] == kinds[1])}
        return {"ids": ids[0], "label": int(kinds[0])}

    def collate(self, rows):
        ids = torch.tensor(np.stack([row["ids"] for row in rows]))
        labels = torch.tensor([row["label"] for row in rows])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


class Images:
    """Images of 36 x 36 with a bright spot, whose place is that of the class."""

    name, n_classes, vocab_size, input_size, is_pair = "lra/images", 2, None, 1, False
    ranges = (("train", 0, 400), ("validation", 400, 480), ("test", 480, 600))

    def __init__(self, length=1296):
        self.length = length

    def splits(self):
        return {split: range(start, end) for split, start, end in self.ranges}

    def collate(self, rows):
        labels = torch.tensor([row % 2 for row in rows])
        generators = [torch.Generator().manual_seed(row) for row in rows]
        x = torch.stack([torch.randn(self.length, 1, generator=generator) for generator in generators])
        for row, label in zip(x, labels, strict=True):
            row[700 - 360 * label :][:6] += 3
        return {"input_values": x, "labels": labels}


def test_tokens_are_told_by_their_counts_and_not_by_the_most_frequent_class():
    guess, counts, bigrams = baselines(Tokens())
    assert (guess.features, guess.dimensions, guess.strength) == ("most frequent class", 0, None)
    assert guess.test < 0.45
    assert (counts.features, counts.dimensions) == ("counts of tokens", 7)
    assert counts.test > 0.98
    assert bigrams.dimensions == 49
    assert (counts.train_rows, counts.validation_rows, counts.test_rows) == (300, 60, 90)
    assert (counts.test_low, counts.test_high) == wilson(round(90 * counts.test), 90)


def test_pairs_are_told_by_what_both_have():
    _, counts, *_ = baselines(Tokens(is_pair=True))
    assert counts.dimensions == 2 * 7
    assert counts.test > 0.95


def test_bigrams_of_a_large_vocabulary_are_left_out():
    assert list(features_of(Tokens(vocab_size=300))) == ["counts of tokens"]


def test_a_place_is_found_in_pixels_and_not_in_statistics():
    guess, statistics, pixels = baselines(Images())
    assert guess.test == 0.5
    assert statistics.test < 0.65
    assert (pixels.features, pixels.dimensions) == ("pixels, 32 x 32", 1024)
    assert pixels.test > 0.9
    with pytest.raises(ValueError, match="lra/images has 1000 steps, which are no square image"):
        baselines(Images(length=1000))


def test_a_penalty_is_chosen_by_the_validation_split(monkeypatch):
    generator = np.random.default_rng(0)
    # One number that tells, and 200 that do not: on 100 rows, only a strong penalty keeps these small.
    x, labels = {}, {}
    for split, n in (("train", 100), ("validation", 2000), ("test", 2000)):
        labels[split] = generator.integers(0, 2, n)
        x[split] = generator.standard_normal((n, 201)).astype(np.float32)
        x[split][:, 0] += 2.5 * labels[split]
    _, chosen = lra_baselines._fit(x, labels)
    accuracies = {}
    for strength in lra_baselines.STRENGTHS:
        with monkeypatch.context() as patch:
            patch.setattr(lra_baselines, "STRENGTHS", (strength,))
            guesses, _ = lra_baselines._fit(x, labels)
        accuracies[strength] = (guesses["validation"] == labels["validation"]).mean()
    assert len(set(accuracies.values())) > 1
    assert accuracies[chosen] == max(accuracies.values())


def tokens_of(expression: str) -> list[int]:
    return [listops.VOCABULARY.index(word) for word in expression.split()]


def test_root_digits_by_hand():
    rows = [tokens_of("[MED 3 [MAX 3 4 ] 3 [SM 1 [MIN 9 9 ] ] 0 ] <eos>"), tokens_of("[MIN 9 ] <eos>")]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    expected = np.zeros((2, 4, 12))
    expected[0, 2, [0, 3, 10, 11]] = 1, 2, 2, 1
    expected[1, 0, [9, 11]] = 1
    assert np.array_equal(root_digits({"input_ids": ids}).reshape(2, 4, 12), expected)


def test_root_digits_count_the_arguments_of_real_expressions():
    made = listops.generate(20, seed=1)
    for i in range(len(made)):
        ids, _ = made[i]
        counts = root_digits({"input_ids": torch.as_tensor(ids).long()[None]}).reshape(4, 12)
        depth, arguments = 0, 0
        for token in ids:
            word = listops.VOCABULARY[token]
            arguments += depth == 1 and word != "]"
            depth += word.startswith("[") - (word == "]")
        (root,) = np.flatnonzero(counts.sum(1))
        assert listops.OPERATORS[root] == listops.VOCABULARY[ids[0]]
        assert counts[root, :11].sum() == arguments


def test_bigrams_by_hand_without_what_is_masked():
    counts = bigram_counts(torch.tensor([[1, 2, 1, 2, 0]]), torch.tensor([[1, 1, 1, 1, 0]]), 3)
    assert counts.reshape(3, 3).tolist() == [[0, 0, 0], [0, 0, 2], [0, 1, 0]]


@pytest.mark.parametrize(("size", "n", "share"), [(32, 300, 0.96), (64, 24, 0.95), (128, 16, 1.0)])
def test_discs_are_found(size, n, share):
    scenes = pathfinder.generate(n, seed=2, config=pathfinder_config(size, "hard"))
    images = torch.as_tensor(scenes.images).float()[:, None] / 127.5 - 1
    found = find_discs(images, pathfinder_config(size).marker_radius).numpy()
    errors = [np.abs(found - markers).max((1, 2)) for markers in (scenes.markers, scenes.markers[:, ::-1])]
    assert (np.minimum(*errors) <= 1).mean() >= share


def test_distance_of_the_discs_finds_what_it_should(tmp_path):
    """Easy images of 256 pixels: the distance alone is right in 86% (docs/lra.md)."""
    task = tasks.get("lra/path256", sizes=(100, 10, 60), difficulty="easy", cache_dir=tmp_path)
    kinds = features_of(task)
    assert list(kinds) == ["pixel statistics", "pixels, 32 x 32", "distance of the discs"]
    x, labels = {}, {}
    for split, rows in task.splits().items():
        found, labels[split] = lra_baselines._read(task, rows, {"d": kinds["distance of the discs"]})
        x[split] = found["d"]
    binned = lra_baselines._binned(x)
    assert binned["train"].shape == (100, 16)
    assert (binned["train"].sum(1) == 1).all()
    guesses, _ = lra_baselines._fit(binned, labels)
    assert (guesses["test"] == labels["test"]).mean() > 0.7


def test_wilson_interval_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    for right, n in ((0, 7), (3, 7), (7, 7), (1000, 2000), (1, 100000)):
        expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        low, high = wilson(right, n)
        assert math.isclose(low, expected.low, rel_tol=1e-9, abs_tol=1e-12)
        assert math.isclose(high, expected.high, rel_tol=1e-9, abs_tol=1e-12)


def test_benchmark_prints_and_appends(tmp_path, capsys):
    run = BENCHMARKS["lra-baselines"]
    path = tmp_path / "rows.csv"
    options = {"sizes": (300, 50, 80), "seed": 5, "cache_dir": tmp_path / "cache", "output": path}
    rows = run("lra/listops", **options)
    assert [row.features for row in rows] == [
        "most frequent class", "root operator", "counts of tokens", "counts of tokens, root operator",
        "root operator and its digits", "counts of bigrams",
    ]  # fmt: skip
    assert {row.options for row in rows} == {'{"seed": 5, "sizes": [300, 50, 80]}'}
    assert {(row.train_rows, row.validation_rows, row.test_rows, row.classes) for row in rows} == {(300, 50, 80, 10)}
    assert all(row.test_low <= row.test <= row.test_high for row in rows)
    by = {row.features: row.test for row in rows}
    assert by["root operator and its digits"] > by["most frequent class"]
    run("lra/listops", **options)
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["features"] for line in lines] == 2 * [row.features for row in rows]
    assert "root operator and its digits" in capsys.readouterr().out


def test_benchmark_names_what_it_does_not_know(tmp_path):
    with pytest.raises(ValueError, match=r"tasks must be some of lra/.*lra/listops.*; got 'lra/listop'"):
        BENCHMARKS["lra-baselines"]("lra/listop", output=tmp_path / "rows.csv")
    assert not list(tmp_path.iterdir())
