import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longconv.tasks.lm import ByteTokenizer, Collator, packing
from longconv.tasks.lm.packing import blocks_of, read_blocks, read_stream, write_blocks, write_stream


def _stream(tmp_path, texts):
    write_stream(tmp_path, texts, ByteTokenizer(), sum(len(text.encode()) for text in texts), "test")
    return read_stream(tmp_path)


def _predictions(dataset, length):
    """(position-free) list of (token before, token) for every label, as a model that shifts sees them."""
    seen = []
    for row in dataset:
        batch = Collator(257, length)([row])
        inputs, labels = batch["input_ids"][0], batch["labels"][0]
        seen += [(int(inputs[t]), int(labels[t + 1])) for t in range(length - 1) if labels[t + 1] != -100]
    return seen


@given(n=st.integers(1, 200), length=st.integers(2, 40), data=st.data())
def test_every_token_is_predicted_once(n, length, data):
    context = data.draw(st.integers(1, length - 1))
    predicted: list[int] = []
    for block in blocks_of(n, length, context):
        assert 0 <= block.start < block.stop <= n
        assert block.stop - block.start == length or block.stop == n
        new = range(block.start + block.context, block.stop)
        assert len(new) > 0 or n == 1
        assert block.context >= context or block.start == 0
        predicted += new
    assert predicted == list(range(1, n))


@pytest.mark.parametrize(
    ("length", "context", "message"),
    [(1, 1, "length must be at least 2"), (8, 0, "context must be"), (8, 8, "context must be at least 1 and below")],
)
def test_impossible_blocks(length, context, message):
    with pytest.raises(ValueError, match=message):
        blocks_of(100, length, context)


def test_stream_joins_documents_with_end_of_text(tmp_path):
    stream = _stream(tmp_path, ["ab", "é", "c"])
    assert stream.tolist() == [256, 97, 98, 256, 0xC3, 0xA9, 256, 99, 256]
    assert stream.dtype == np.uint16
    assert not stream.flags.writeable


def test_stream_of_many_batches(tmp_path, monkeypatch):
    texts = [f"document {i}\n" * (i % 4) + "x" for i in range(50)]
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = _stream(tmp_path / "whole", texts)
    monkeypatch.setattr(packing, "_TOKENS_AT_ONCE", 64)
    assert np.array_equal(_stream(tmp_path / "parts", texts), whole)


@pytest.mark.parametrize("context", [1, 5])
@pytest.mark.parametrize("length", [6, 16, 1000])
def test_blocks_on_disk_ask_for_every_token_once(tmp_path, monkeypatch, length, context):
    monkeypatch.setattr(packing, "_TOKENS_AT_ONCE", 64)
    stream = _stream(tmp_path, ["some text\n" * 9, "more", "and an end"])
    write_blocks(tmp_path, stream, length, context)
    dataset = read_blocks(tmp_path)
    assert dataset.column_names == (["input_ids"] if context == 1 else ["input_ids", "labels"])
    assert dataset[0]["input_ids"].dtype == torch.int64
    assert _predictions(dataset, length) == list(zip(stream[:-1].tolist(), stream[1:].tolist(), strict=True))


def test_tail(tmp_path):
    stream = _stream(tmp_path, ["x" * 20])  # 22 tokens with both ends
    for length, keep, rows in [
        (8, True, 3),
        (8, False, 3),
        (10, True, 3),
        (10, False, 2),
        (50, True, 1),
        (50, False, 1),
    ]:
        write_blocks(tmp_path, stream, length, keep_tail=keep)
        dataset = read_blocks(tmp_path)
        assert len(dataset) == rows
        if not keep and len(stream) > length:
            assert {len(row["input_ids"]) for row in dataset} == {length}


def test_collate_pads_and_masks():
    rows = [{"input_ids": torch.tensor([5, 6, 7, 8])}, {"input_ids": [1, 2]}]
    batch = Collator(257, 4)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [1, 2, 257, 257]]
    assert batch["labels"].tolist() == [[-100, 6, 7, 8], [-100, 2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    assert sorted(Collator(257, 4)(rows[:1])) == ["input_ids", "labels"]
    with pytest.raises(ValueError, match="a row of 4 tokens does not fit into blocks of 3"):
        Collator(257, 3)(rows)


def test_collate_keeps_given_labels():
    batch = Collator(257, 4)([{"input_ids": [1, 2, 3], "labels": [-100, -100, 3]}])
    assert batch["labels"].tolist() == [[-100, -100, 3, -100]]


def test_large_vocabularies_fit(tmp_path):
    class Wide(ByteTokenizer):
        vocab_size = 70_000

        def encode_batch(self, texts):
            return [np.full(3, 69_999) for _ in texts]

        token_bytes = np.ones(70_000, dtype=np.int64)

    write_stream(tmp_path, ["abc"], Wide(), 3, "test")
    assert read_stream(tmp_path).tolist() == [256, 69_999, 69_999, 69_999, 256]
