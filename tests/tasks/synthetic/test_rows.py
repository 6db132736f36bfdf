"""Splits as data sets, batches, metrics, and how both go together with a language model."""

import pickle
import types

import numerics
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from longconv import tasks
from longconv.models import LongConvConfig, LongConvForCausalLM
from longconv.tasks.synthetic import AnswerMetrics, Recall, predictions, rows

NAMES = [name for name in tasks.available() if name.startswith("synthetic/")]


def small(name, **options):
    extra = {"synthetic/mqar": {"num_kv_pairs": 4}, "synthetic/copying": {"num_tokens_to_copy": 5}}
    vocabulary = 40 if name == "synthetic/noisy_recall" else 20
    return tasks.get(
        name, length=40, **{"vocab_size": vocabulary, "sizes": (150, 70, 30), **extra.get(name, {}), **options}
    )


def equal(a, b):
    return all((a[name] == b[name]).all() for name in ("input_ids", "labels", "distances"))


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_data_sets(name):
    task = small(name)
    splits = task.splits()
    assert {split: len(data) for split, data in splits.items()} == {"train": 150, "validation": 70, "test": 30}
    data = splits["train"]
    every = list(data)
    assert len(every) == 150
    assert equal(every[149], data[149])
    block = task.block("train", 149 // 64)
    assert (every[149]["input_ids"] == block.input_ids[149 % 64]).all()
    chosen = data.select([7, 140, 7])
    assert [equal(row, data[i]) for row, i in zip(chosen, (7, 140, 7), strict=True)] == [True] * 3
    assert equal(chosen.select(range(1, 2))[0], data[140])
    assert all(equal(a, b) for a, b in zip(data.__getitems__([3, 99]), (data[3], data[99]), strict=True))
    for wrong in (150, -1):
        with pytest.raises(IndexError):
            data[wrong]
        with pytest.raises(IndexError):
            data.select([wrong])
    batch = task.collate(every[:5])
    assert set(batch) == {"input_ids", "labels"}
    assert all(x.shape == (5, task.tokens) and x.dtype == torch.int64 for x in batch.values())
    assert equal({k: v[2].numpy() for k, v in task.collate_with_distances(every[:5]).items()}, every[2])


def test_rows_do_not_depend_on_who_makes_them():
    task = small("synthetic/mqar")
    alone = [batch["input_ids"] for batch in DataLoader(task.splits()["train"], 8, collate_fn=task.collate)]
    data = small("synthetic/mqar").splits()["train"]
    several = [
        batch["input_ids"] for batch in DataLoader(data, 8, collate_fn=task.collate, num_workers=2, shuffle=False)
    ]
    assert all(torch.equal(a, b) for a, b in zip(alone, several, strict=True))
    assert equal(pickle.loads(pickle.dumps(data))[5], data[5])


def test_what_does_not_fit_is_made_again(monkeypatch):
    made, task = [], small("synthetic/recall")
    block = task.block
    monkeypatch.setattr(task, "block", lambda split, number: made.append((split, number)) or block(split, number))
    data = task.splits()["train"]
    monkeypatch.setattr(rows, "CACHE_BYTES", sum(array.nbytes for array in block("train", 0)))
    first = data[0]
    for i in (1, 64, 65, 0):
        data[i]
    assert made == [("train", 0), ("train", 1), ("train", 0)]
    assert equal(data[0], first)


def test_fresh_rows_go_on_for_ever():
    fixed, fresh = (small("synthetic/copying", fresh=on).splits() for on in (False, True))
    assert len(fresh["train"]) == 150
    assert equal(fresh["train"][3], fixed["train"][3])
    assert not equal(fresh["train"][153], fixed["train"][3])
    with pytest.raises(IndexError):
        fixed["train"][153]
    with pytest.raises(IndexError):
        fresh["test"][30]


# Alignment


def oracle(task, answers):
    """A "model" that looks answers up by what it has seen: row t of its logits knows tokens 0 ... t, and no more."""

    def model(input_ids):
        logits = torch.zeros(*input_ids.shape, task.vocab_size)
        for b, row in enumerate(input_ids.tolist()):
            for t in range(len(row)):
                known = answers.get(tuple(row[: t + 1]))
                if known is not None:
                    logits[b, t, known] = 1.0
        return types.SimpleNamespace(logits=logits)

    return model


@pytest.mark.parametrize("name", NAMES)
def test_an_oracle_answers_everything_and_one_that_is_late_nothing(name):
    task = small(name, sizes=(1, 1, 30))
    answers = {}
    for row in task.splits()["test"]:
        for t in np.flatnonzero(row["labels"] != -100):
            answers[tuple(row["input_ids"][:t].tolist())] = int(row["labels"][t])
    found = task.evaluate(oracle(task, answers), "test", batch_size=7)
    assert found.compute() == {"accuracy": 1.0, "row_accuracy": 1.0}
    assert sum(cell.count for cell in found.by_position()) == 30 * task.answers
    assert sum(cell.count for cell in found.by_distance()) == 30 * task.answers
    # Read one position later, every logit speaks of the token before.
    late = task.evaluate(lambda input_ids: oracle(task, answers)(input_ids).logits.roll(1, 1), "test")
    assert late.compute()["accuracy"] < 0.35


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_language_model(name):
    """`LongConvForCausalLM` shifts labels itself; its loss, the task's and the definition are one."""
    task = small(name)
    model = LongConvForCausalLM(
        LongConvConfig(vocab_size=task.vocab_size, hidden_size=8, num_hidden_layers=1, mixers="sgconv",
                       max_position_embeddings=task.tokens)
    ).eval()  # fmt: skip
    for split in ("train", "test"):
        batch = task.collate([task.splits()[split][i] for i in range(4)])
        with torch.no_grad():
            out = model(**batch)
        log_p = out.logits.double().log_softmax(-1)
        nats = [
            -log_p[b, t - 1, batch["labels"][b, t]]
            for b in range(4)
            for t in range(1, task.tokens)
            if batch["labels"][b, t] != -100
        ]
        expected = torch.stack(nats).mean()
        numerics.assert_close(out.loss, expected)
        numerics.assert_close(task.loss(out.logits, batch["labels"]), expected)


def test_evaluate_of_a_module():
    task = small("synthetic/recall")
    model = LongConvForCausalLM(
        LongConvConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, mixers="sgconv", dropout=0.5,
                       max_position_embeddings=task.tokens)
    )  # fmt: skip
    model.train()
    a, b = (task.evaluate(model, "train", batch_size=size) for size in (8, 50))
    assert model.training
    assert a.compute() == b.compute()  # without dropout, whatever the batches
    assert [cell.low for cell in a.by_position()] == [42]  # answers alone, also of the train split
    with pytest.raises(ValueError, match="no split 'dev'"):
        task.evaluate(model, "dev")


# Metrics


def test_accuracy_by_position_and_distance():
    labels = torch.tensor([[-100, 5, -100, 7], [-100, 5, 6, -100]])
    distances = torch.tensor([[0, 1, 0, 9], [0, 1, 3, 0]])
    metrics = AnswerMetrics()
    metrics.update(torch.tensor([[5, 0, 8]]), labels[:1], distances[:1])
    metrics.update(torch.tensor([[5, 6, 0]]), labels[1:], distances[1:])
    assert metrics.compute() == {"accuracy": 3 / 4, "row_accuracy": 1 / 2}
    assert [(c.low, c.high, c.count, c.accuracy) for c in metrics.by_position()] == [
        (1, 1, 2, 1.0), (2, 2, 1, 1.0), (3, 3, 1, 0.0)
    ]  # fmt: skip
    assert [(c.low, c.high, c.count, c.accuracy) for c in metrics.by_distance()] == [
        (1, 1, 2, 1.0), (2, 3, 1, 1.0), (8, 15, 1, 0.0)
    ]  # fmt: skip


def test_metrics_are_the_same_however_rows_are_divided():
    random = np.random.default_rng(0)
    labels = np.where(random.random((64, 50)) < 0.3, random.integers(0, 3, (64, 50)), -100)
    labels[:, 0] = -100
    guesses, distances = random.integers(0, 3, (64, 49)), random.integers(1, 70, (64, 50))
    whole, parts = AnswerMetrics(), AnswerMetrics()
    whole.update(guesses, labels, distances)
    for i in range(0, 64, 5):
        parts.update(guesses[i : i + 5], labels[i : i + 5], distances[i : i + 5])
    right = [guesses[b, t - 1] == labels[b, t] for b in range(64) for t in range(1, 50) if labels[b, t] != -100]
    assert whole.compute() == parts.compute()
    assert whole.compute()["accuracy"] == np.mean(right)
    assert whole.by_position() == parts.by_position()
    assert whole.by_distance() == parts.by_distance()
    assert [(cell.low, cell.high) for cell in whole.by_distance()] == [
        (1, 1), (2, 3), (4, 7), (8, 15), (16, 31), (32, 63), (64, 127)
    ]  # fmt: skip


def test_for_the_trainer():
    """`compute_metrics` takes logits, or what `preprocess_logits_for_metrics` keeps of them."""
    task = small("synthetic/recall")
    logits = torch.randn(6, task.tokens, 20)
    labels = task.collate([task.splits()["validation"][i] for i in range(6)])["labels"]
    kept = task.preprocess_logits_for_metrics((logits, "a cache"), labels)
    assert torch.equal(kept, predictions(logits))
    assert kept.shape == (6, task.tokens - 1)
    found = [
        task.compute_metrics(types.SimpleNamespace(predictions=given.numpy(), label_ids=labels.numpy()))
        for given in (kept, logits)
    ]
    assert found[0] == found[1]


def test_bad_metrics():
    metrics = AnswerMetrics()
    with pytest.raises(ValueError, match=r"expected predicted \(B, L - 1\) and labels \(B, L\)"):
        metrics.update(torch.zeros(2, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="expected distances like labels"):
        metrics.update(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2, 3))
    metrics.update(torch.zeros(2, 3), torch.full((2, 4), -100))
    with pytest.raises(ValueError, match="no answers in 2 rows"):
        metrics.compute()


def test_describe():
    said = Recall(length=256, vocab_size=10, fresh=True).describe()
    assert "synthetic/recall: 256 tokens, 10 ids, 1 answers in a row of 259, chance 0.25" in said
    assert "others in every epoch" in said
