import json
import math
import shutil

import pytest
import torch

from longconv.tasks import get
from longconv.tasks.lm import load_tokenizer


def _task(folder, **options):
    return get("lm", **({"data": folder, "length": 64, "validation": 0.2, "test": 0.2} | options))


def _uniform(vocab_size):
    return lambda input_ids, attention_mask=None: torch.zeros(*input_ids.shape, vocab_size)


@pytest.fixture(params=["bytes", "sentencepiece"])
def options(request):
    return {"tokenizer": "bytes"} if request.param == "bytes" else {"tokenizer": "sentencepiece", "vocab_size": 350}


def test_bits_per_byte_of_a_uniform_model(folder, options):
    task = _task(folder, **options)
    vocab_size = task.tokenizer.vocab_size
    for split, documents in task.corpus.documents.items():
        texts = [document.path.read_bytes() for document in documents]
        n_bytes = sum(map(len, texts))
        # Every document's tokens, and one for its end.
        n_tokens = sum(len(task.tokenizer.encode(text.decode())) + 1 for text in texts)
        assert task.bytes_in(split) == n_bytes
        assert len(task.stream(split)) == n_tokens + 1
        if split != "train":
            result = task.evaluate(_uniform(vocab_size), split, batch_size=3)
            assert result["bits_per_byte"] == pytest.approx(math.log2(vocab_size) * n_tokens / n_bytes, rel=1e-6)
            assert result["perplexity"] == pytest.approx(vocab_size, rel=1e-5)


def test_bits_per_byte_of_a_context_free_model_does_not_depend_on_blocks(folder, options):
    table = torch.randn(400)

    def model(input_ids, attention_mask=None):
        return table[: task.tokenizer.vocab_size].expand(*input_ids.shape, -1)

    results = []
    for length, context, batch_size in [(2, 1, 64), (64, 1, 5), (64, 63, 50), (97, 40, 2), (1 << 14, 1, 1)]:
        task = _task(folder, length=length, eval_context=context, **options)
        results.append(task.evaluate(model, "test", batch_size=batch_size))
    nats = table[: task.tokenizer.vocab_size].double().log_softmax(0).neg()[task.stream("test")[1:].astype(int)].sum()
    assert results[0]["bits_per_byte"] == pytest.approx(nats.item() / math.log(2) / task.bytes_in("test"), rel=1e-6)
    assert all(result == pytest.approx(results[0], rel=1e-6) for result in results)


def test_more_context_is_what_the_model_sees(folder):
    """A model that is right from the second token it sees on: only context takes its errors away."""

    def model(input_ids, attention_mask=None):
        following = input_ids.roll(-1, 1)
        logits = torch.nn.functional.one_hot(following, 258) * 50.0
        logits[:, :5] = 0
        return logits

    little = _task(folder).evaluate(model, "test")["bits_per_byte"]
    task = _task(folder, eval_context=8)
    assert task.evaluate(model, "test")["bits_per_byte"] == pytest.approx(
        5 * math.log2(258) / task.bytes_in("test"), rel=1e-3
    )
    assert little > 0.5


def test_part_of_a_split_divides_by_its_own_bytes(folder, options):
    task = _task(folder, **options)
    batch = next(iter(torch.utils.data.DataLoader(task.splits()["test"], batch_size=2, collate_fn=task.collate)))
    text = b"".join(task.tokenizer.decode_bytes(row[row != -100]) for row in batch["labels"])
    n_tokens = int((batch["labels"] != -100).sum())
    result = task.evaluate(_uniform(task.tokenizer.vocab_size), "test", batch_size=2, max_batches=1)
    expected = n_tokens * math.log2(task.tokenizer.vocab_size) / len(text)
    assert result["bits_per_byte"] == pytest.approx(expected, rel=1e-6)


def test_splits_read_back_as_the_documents(folder, options):
    task = _task(folder, length=50, **options)
    for split, dataset in task.splits().items():
        ids = [256] + [int(i) for row in dataset for i in row["input_ids"][1:]]
        text = "".join(task.corpus.texts(split))
        if split == "train":  # its short last block is left out
            assert {len(row["input_ids"]) for row in dataset} == {50}
            assert text.startswith(task.tokenizer.decode(ids))
            assert len(task.stream(split)) - len(ids) < 50
        else:
            assert ids == task.stream(split).tolist()
            assert task.tokenizer.decode(ids) == text


def test_sentencepiece_learns_from_train_only(folder, tmp_path):
    options = {"tokenizer": "sentencepiece", "vocab_size": 350}
    root = shutil.copytree(folder, tmp_path / "corpus")
    before = _task(root, **options)
    secret = "quizzaciously " * 2000
    for split in ("validation", "test"):
        file = root / before.corpus.documents[split][0].name
        file.write_bytes(file.read_bytes() + secret.encode())
    after = _task(root, **options)
    assert after.corpus.fingerprint("test") != before.corpus.fingerprint("test")
    # Two caches, so that both vocabularies are learned.
    after.cache_dir = tmp_path / "another cache"
    assert after.tokenizer.pieces == before.tokenizer.pieces
    assert not any("qu" in piece for piece in after.tokenizer.pieces)
    # The control: in train the same text does change the vocabulary.
    file = root / before.corpus.documents["train"][0].name
    file.write_bytes(file.read_bytes() + secret.encode())
    assert any("quizz" in piece for piece in _task(root, **options).tokenizer.pieces)


def test_cache_is_used_and_repaired(folder, options, tmp_path, monkeypatch):
    first = _task(folder, **options)
    first.splits()
    made = sorted(path.name for path in first.cache_dir.iterdir())
    assert not any(name.startswith(".") for name in made)

    def never(*_, **__):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        for name in ("write_stream", "write_blocks", "train_sentencepiece"):
            patch.setattr(f"longconv.tasks.lm.task.{name}", never)
        again = _task(folder, **options)
        rows = [row["input_ids"].tolist() for row in again.splits()["test"]]
    for name in made:
        file = max((first.cache_dir / name).iterdir(), key=lambda path: path.stat().st_size)
        file.write_bytes(file.read_bytes()[:-7] + b"garbage")
    with pytest.warns(UserWarning, match="is damaged and is built again") as caught:
        repaired = _task(folder, **options).splits()
    assert [row["input_ids"].tolist() for row in repaired["test"]] == rows
    assert len(caught) == len(made)
    assert sorted(path.name for path in first.cache_dir.iterdir()) == made


def test_what_changes_the_tokens_changes_the_cache(folder, tmp_path):
    def folders(task):
        task.splits()
        return {path.name for path in task.cache_dir.iterdir()}

    base = _task(folder)
    seen = folders(base)
    assert folders(_task(shutil.copytree(folder, tmp_path / "copy"))) == seen
    longer = folders(_task(folder, length=65))
    assert {name.partition("-")[0] for name in longer - seen} == {"blocks"}
    assert len(longer - seen) == 3
    assert len(folders(_task(folder, eval_context=2)) - longer) == 2
    pieces = folders(_task(folder, tokenizer="sentencepiece", vocab_size=350))
    assert len(pieces - longer) == 2 + 1 + 3 + 3


def test_tokenizer_from_a_model_folder(folder, tmp_path):
    first = _task(folder, tokenizer="sentencepiece", vocab_size=350)
    first.tokenizer.save(tmp_path / "model")
    second = _task(folder, tokenizer=load_tokenizer(tmp_path / "model"), length=32)
    assert second.stream("test").tolist() == first.stream("test").tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "words"}, "unknown tokenizer 'words', known: bytes, sentencepiece"),
        ({"vocab_size": 300}, 'vocab_size can be chosen for tokenizer="sentencepiece" only'),
        ({"length": 1}, "length must be at least 2"),
        ({"eval_context": 64}, "context must be at least 1 and below length=64"),
    ],
)
def test_option_errors(folder, options, message):
    with pytest.raises(ValueError, match=message) as error:
        _task(folder, **options)
    assert "\n" not in str(error.value)


def test_split_errors(folder):
    task = _task(folder, test=0.0)
    assert sorted(task.splits()) == ["train", "validation"]
    for use in (task.bytes_in, task.stream, lambda split: task.evaluate(_uniform(258), split)):
        with pytest.raises(ValueError, match="no split 'test', there are: train, validation"):
            use("test")


def test_describe(folder, options):
    task = _task(folder, **options)
    text = task.describe()
    assert str(folder) in text
    for split, dataset in task.splits().items():
        (line,) = [line for line in text.splitlines() if line.startswith(split)]
        numbers = [float(field.replace(",", "")) for field in line.split()[1:]]
        n_tokens = len(task.stream(split)) - 1
        assert numbers[:4] == [len(task.corpus.documents[split]), task.bytes_in(split), n_tokens, len(dataset)]
        assert numbers[4] == pytest.approx(task.bytes_in(split) / n_tokens, abs=0.005)
    assert f"{task.tokenizer.vocab_size} ids" in text


def test_standard_library():
    task = get("lm", max_bytes=600_000, tokenizer="sentencepiece", vocab_size=1024, length=256)
    assert "standard library" in task.describe()
    for split in task.corpus.documents:
        stream = task.stream(split)
        assert int(task.tokenizer.token_bytes[stream].sum()) == task.bytes_in(split)
        assert task.tokenizer.decode(stream) == "".join(task.corpus.texts(split))
    assert task.bytes_in("train") / len(task.stream("train")) > 2


def test_trainer_metrics_are_those_of_evaluate(folder, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    task = _task(folder, eval_context=16)
    config = GPT2Config(vocab_size=258, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=256)
    model = GPT2LMHeadModel(config)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            tmp_path,
            max_steps=2,
            per_device_train_batch_size=4,
            per_device_eval_batch_size=3,
            report_to=[],
            use_cpu=True,
        ),
        train_dataset=task.splits()["train"],
        eval_dataset=task.splits()["validation"],
        data_collator=task.collate,
        compute_metrics=task.compute_metrics,
        preprocess_logits_for_metrics=task.preprocess_logits_for_metrics,
    )
    assert math.isfinite(trainer.train().training_loss)
    reported = trainer.evaluate()
    expected = task.evaluate(model, "validation", batch_size=4)
    for name in ("loss", "bits_per_byte", "perplexity"):
        assert reported[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-4)
    batch = task.collate([task.splits()["train"][0]])
    assert task.loss(model(batch["input_ids"]).logits, batch["labels"]).item() == pytest.approx(
        model(**batch).loss.item(), rel=1e-5
    )


def test_the_cache_of_before_is_found(tmp_path):
    # Names from before there were shards: another name, and everybody's corpora are tokenised anew.
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"text {i}\n" * (i + 1))
    task = get("lm", data=tmp_path, length=32, validation=0.2, test=0.2, cache_dir=tmp_path / "cache")
    task.splits()
    assert sorted(path.name for path in task.cache_dir.iterdir()) == [
        "blocks-855d1f394fb50a7d20e2",
        "blocks-c217b34aeba4bf7adfa3",
        "blocks-ec98a53ad41ec9e56aee",
        "stream-06af93b16b27792a42f9",
        "stream-7421dbf698600a3cd702",
        "stream-dde4c19345877ea65cd3",
    ]


def test_packing_changes_no_count(folder, options):
    """A model without context pays the same for every token, wherever it stands: once for each, and for each end."""
    table = torch.randn(400)

    def model(input_ids, attention_mask=None, cu_seqlens=None):
        return table[: task.tokenizer.vocab_size].expand(*input_ids.shape, -1)

    task = _task(folder, **options)
    expected = task.evaluate(model, "test")
    for length, context, batch_size in [(64, 1, 3), (64, 20, 2), (100_000, 1, 1)]:
        task = _task(folder, packing="documents", length=length, eval_context=context, workers=1, **options)
        assert task.evaluate(model, "test", batch_size=batch_size) == pytest.approx(expected, rel=1e-6)
        assert task.bytes_in("test") == task.corpus.bytes_in("test")
        assert task.stream("test").tolist() == _task(folder, **options).stream("test").tolist()


def test_records_and_files_of_the_same_texts_give_the_same_tokens(folder, options, tmp_path):
    plain = _task(folder, tokenizer="bytes")
    for split in plain.corpus.splits:
        rows = (json.dumps({"text": text}) + "\n" for text in plain.corpus.texts(split))
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    records = _task(tmp_path, **options)
    if options["tokenizer"] == "sentencepiece":
        # Learned from the same texts.
        assert records.tokenizer.pieces == _task(folder, **options).tokenizer.pieces
    else:
        for split, rows in records.splits().items():
            batches = zip(rows, plain.splits()[split], strict=True)
            assert all(torch.equal(ours["input_ids"], theirs["input_ids"]) for ours, theirs in batches)
    assert "documents" in records.describe()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"packing": "rows"}, 'packing must be "blocks" or "documents", got \'rows\''),
        ({"workers": 0}, "workers must be at least 1, got 0"),
    ],
)
def test_errors_of_packing(folder, options, message):
    with pytest.raises(ValueError, match=message):
        _task(folder, **options)
