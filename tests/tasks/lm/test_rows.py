"""Rows: blocks as they are in Arrow files, and documents in rows with their boundaries."""

import itertools
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close

from longconv.models import LongConvConfig, LongConvForCausalLM
from longconv.tasks.lm import ByteTokenizer, Collator
from longconv.tasks.lm.corpus import open_corpus
from longconv.tasks.lm.packing import read_blocks, write_blocks
from longconv.tasks.lm.records import as_records
from longconv.tasks.lm.rows import BlockRows, DocumentCollator, DocumentRows, best_fit, write_plan
from longconv.tasks.lm.shards import TokenShards, build

E = ByteTokenizer().eos_id


@pytest.fixture
def tokens(folder, tmp_path) -> TokenShards:
    return build(as_records(open_corpus(folder)), ByteTokenizer(), tmp_path / "cache", workers=1)["train"]


@pytest.fixture
def texts(folder) -> list[str]:
    return list(open_corpus(folder).texts("train"))


def document_rows(tokens: TokenShards, folder: Path, length: int, context: int = 1) -> DocumentRows:
    folder.mkdir(exist_ok=True)
    write_plan(folder, tokens, length, context)
    return DocumentRows(tokens, folder, length, context)


@pytest.mark.parametrize("context", [1, 5, 63])
@pytest.mark.parametrize("keep_tail", [True, False])
@pytest.mark.parametrize("length", [64, 1000, 10**6])
def test_blocks_are_those_of_arrow_files(tokens, tmp_path, length, context, keep_tail):
    (tmp_path / "blocks").mkdir()
    write_blocks(tmp_path / "blocks", tokens[:], length, context, keep_tail)
    arrow, rows = read_blocks(tmp_path / "blocks"), BlockRows(tokens, length, context, keep_tail)
    assert len(rows) == len(arrow)
    collate = Collator(257, length)
    for i in {0, len(rows) // 2, len(rows) - 1}:
        ours, theirs = collate([rows[i]]), collate([arrow[i]])
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(IndexError):
        rows[len(rows)]


@given(
    sizes=st.lists(st.integers(2, 20), min_size=1, max_size=60),
    capacity=st.integers(20, 50),
)
@settings(max_examples=200)
def test_best_fit(sizes, capacity):
    sizes = np.array(sizes)
    rows = best_fit(sizes, capacity)
    filled = np.bincount(rows, sizes)
    assert filled.max() <= capacity
    assert filled.min() > 0
    # No two rows would fit into one: what any fit that looks before it opens a row guarantees.
    smallest = np.sort(filled)[:2]
    assert len(filled) == 1 or smallest.sum() > capacity


def test_best_fit_by_hand():
    # 7 and 6 first; 4 fits beside 6 only, 3 beside 7 only (which is fuller than it needs), 2 opens a third row.
    assert best_fit(np.array([2, 3, 4, 6, 7]), 10).tolist() == [2, 0, 1, 1, 0]


@pytest.mark.parametrize(("length", "context"), [(64, 1), (64, 20), (700, 1), (5000, 1)])
def test_every_token_of_every_document_is_predicted_once(tokens, texts, tmp_path, length, context):
    rows = document_rows(tokens, tmp_path / "plan", length, context)
    expected = Counter()
    for text in texts:
        ids = [E, *text.encode(), E]
        # The last few tokens before each label, which tell the places apart.
        expected.update((tuple(ids[max(0, t - 1) : t]), ids[t]) for t in range(1, len(ids)))
    found, whole = Counter(), 0
    for i in range(len(rows)):
        batch = DocumentCollator()([rows[i]])
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        bounds = batch["cu_seqlens"].tolist()
        assert bounds[0] == 0
        assert bounds[-1] == len(ids) <= length
        for start, stop in itertools.pairwise(bounds):
            assert stop - start >= 2
            assert labels[start] == -100
            whole += ids[start] == E and ids[stop - 1] == E
            for t in range(start + 1, stop):
                if labels[t] != -100:
                    assert labels[t] == ids[t]
                    found[(tuple(ids[t - 1 : t]), ids[t])] += 1
    assert found == expected
    assert whole >= sum(len(text.encode()) + 2 <= length for text in texts)


def test_what_fits_is_not_cut_and_rows_are_full(tokens, texts, tmp_path):
    longest = max(len(text.encode()) + 2 for text in texts)
    rows = document_rows(tokens, tmp_path / "plan", 2 * longest)
    found = []
    for i in range(len(rows)):
        row = rows[i]
        found += [ByteTokenizer().decode(piece) for piece in row["input_ids"].split(row["lengths"].tolist())]
    assert sorted(found) == sorted(texts)
    total = sum(len(text.encode()) + 2 for text in texts)
    assert total / (len(rows) * 2 * longest) > 0.85
    # In the order of their first documents.
    firsts = [
        texts.index(ByteTokenizer().decode(rows[i]["input_ids"][: rows[i]["lengths"][0]])) for i in range(len(rows))
    ]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("mixers", ["hyena", "attention", "hyena attention"])
def test_a_packed_batch_gives_the_logits_and_the_loss_of_its_documents(tokens, tmp_path, mixers):
    model = LongConvForCausalLM(
        LongConvConfig(
            vocab_size=258, hidden_size=8, num_hidden_layers=2, mixers=mixers, max_position_embeddings=1500,
            mixer_options={"attention": {"num_heads": 2}},
        )
    ).eval()  # fmt: skip
    rows = document_rows(tokens, tmp_path / "plan", 1500)
    batch = DocumentCollator()([rows[i] for i in range(3)])
    bounds = batch["cu_seqlens"].tolist()
    assert len(bounds) > 4
    assert batch["cu_seqlens"].dtype == torch.int32
    with torch.no_grad():
        packed = model(**batch)
        nats = count = 0
        for start, stop in itertools.pairwise(bounds):
            ids = batch["input_ids"][:, start:stop]
            alone = model(input_ids=ids, labels=ids)
            assert_close(packed.logits[:, start:stop], alone.logits)
            nats += alone.loss * (stop - start - 1)
            count += stop - start - 1
    assert_close(packed.loss, nats / count)


def test_select_and_pickle(tokens, tmp_path):
    rows = document_rows(tokens, tmp_path / "plan", 300)
    some = rows.select(range(2, 4))
    assert len(some) == 2
    for other, expected in ((some[1], rows[3]), (pickle.loads(pickle.dumps(rows))[3], rows[3])):
        assert all(torch.equal(other[name], expected[name]) for name in expected)
    with pytest.raises(IndexError):
        rows[len(rows)]
