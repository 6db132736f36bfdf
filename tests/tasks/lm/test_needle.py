"""Needles in haystacks: where they are put, and what a model that reads, or guesses, gets for them."""

import math
import re

import numpy as np
import pytest
import tokenizers as hf
import torch
from numerics import assert_close
from transformers import PreTrainedTokenizerFast

from longconv.tasks.lm import ByteTokenizer, HuggingFaceTokenizer, TokenStream, find_needles, train_sentencepiece
from longconv.tasks.lm.needle import make_case, read_off, scorer
from longconv.tasks.lm.plots import plot_needle


@pytest.fixture(scope="module")
def texts(folder):
    return [file.read_bytes().decode() for file in sorted(folder.rglob("*.py"))]


def _wordpiece():
    """Digits and letters as pieces, spaces dropped."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = ["[UNK]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), ".", "the", "number", "of", "is"]
    rust = hf.Tokenizer(hf.models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    rust.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    rust.decoder = hf.decoders.WordPiece()
    rust.add_special_tokens(["[UNK]", "[SEP]"])
    return HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", sep_token="[SEP]"))


def _byte_level(texts):
    rust = hf.Tokenizer(hf.models.BPE())
    rust.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = hf.decoders.ByteLevel()
    # Numbers in the text, so that some of them become tokens of several digits.
    numbers = " ".join(str(n) for n in range(10_000, 10_300))
    trainer = hf.trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<end>"], initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet()
    )
    rust.train_from_iterator([*texts, numbers], trainer)
    return HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<end>"))


@pytest.fixture(scope="module", params=["bytes", "pieces", "wordpiece", "byte_level"])
def tokenizer(request, texts):
    return {
        "bytes": ByteTokenizer,
        "pieces": lambda: train_sentencepiece(texts, 400),
        "wordpiece": _wordpiece,
        "byte_level": lambda: _byte_level(texts),
    }[request.param]()


@pytest.fixture(scope="module")
def ids(tokenizer, texts):
    return TokenStream.of(texts, tokenizer).ids


def reader(tokenizer):
    """A model that finds the sentence and says its number."""

    def score(context, continuations):
        text = tokenizer.decode(context).lower()
        key = re.search(r"the number of (\w+) is\s*$", text)[1]
        value = re.search(rf"the number of {key} is (\d+)", text)[1]
        said = ["".join(re.findall(r"\d", tokenizer.decode(ids))) for ids in continuations]
        return [(0.0 if number == value else 1.0, number == value) for number in said]

    return score


def guesser(context, continuations):
    return [(1.0, False)] * len(continuations)


def test_a_model_that_reads_finds_every_needle(tokenizer, ids):
    result = find_needles(reader(tokenizer), tokenizer, ids, (160, 400), trials=3)
    assert (result.exact == 1).all()
    assert (result.rank == 1).all()
    assert result.exact.shape == (2, 5)


def test_a_model_that_knows_nothing_is_in_the_middle(tokenizer, ids):
    result = find_needles(guesser, tokenizer, ids, (160,), depths=(0, 50), trials=2, candidates=7)
    assert (result.exact == 0).all()
    assert (result.rank == 4).all()


@pytest.mark.parametrize("depth", [0, 25, 50, 100])
def test_where_the_needle_is(tokenizer, ids, depth):
    context = 300
    words = ids[ids != tokenizer.eos_id]
    case = make_case(tokenizer, words, context, depth, np.random.default_rng(3), 5)
    assert len(case.context) + max(map(len, case.candidates)) == context
    assert case.context[0] == tokenizer.bos_id
    assert len({tuple(candidate) for candidate in case.candidates}) == 5
    text = tokenizer.decode(case.context)
    key, value = re.search(r"[tT]he number of (\w+) is (\d+)", text).groups()
    assert "".join(re.findall(r"\d", tokenizer.decode(case.candidates[0]))) == value
    assert re.search(rf"[tT]he number of {key} is\s*$", text)
    sentence = tokenizer.encode(f"\nThe number of {key} is {value}.\n")
    question = tokenizer.encode(f"\nThe number of {key} is")
    room = context - 1 - len(sentence) - len(question) - max(map(len, case.candidates))
    start = 1 + round(room * depth / 100)
    assert case.context[start : start + len(sentence)] == sentence
    hay = case.context[1:start] + case.context[start + len(sentence) : 1 + room + len(sentence)]
    assert any(words[at : at + room].tolist() == hay for at in range(len(words) - room + 1))
    # Question and answer are the tokens of the text as a whole.
    tail = case.context[1 + room + len(sentence) :] + case.candidates[0]
    assert tail == tokenizer.encode(f"\nThe number of {key} is {value}")


def test_the_seed_decides_and_cells_are_their_own(ids, tokenizer):
    seen = []

    def noting(context, continuations):
        seen.append((tuple(context), tuple(map(tuple, continuations))))
        return guesser(context, continuations)

    def cases(*args, **options):
        seen.clear()
        find_needles(noting, tokenizer, ids, *args, trials=2, **options)
        return list(seen)

    both = cases((160, 200), depths=(0, 50))
    assert len(set(both)) == 8
    assert all(tokenizer.eos_id not in context[1:] for context, _ in both)  # each haystack is one document
    assert cases((160, 200), depths=(0, 50)) == both
    assert cases((200,), depths=(50,)) == both[6:]
    assert not set(cases((160, 200), depths=(0, 50), seed=1)) & set(both)


def test_rank_and_exact_answers_are_means_over_trials(ids, tokenizer):
    answers = iter([(2.0, True), (5.0, False)])

    def score(context, continuations):
        return [next(answers), (1.0, False), (2.0, False), (3.0, False)][: len(continuations)]

    result = find_needles(score, tokenizer, ids, (160,), depths=(50,), trials=2, candidates=4)
    assert result.exact.item() == 0.5
    assert result.rank.item() == (2.5 + 4) / 2  # one better and one equal; all better


def test_scores_of_a_model_by_hand():
    table = torch.randn(50, 50, dtype=torch.float64)

    def model(input_ids):
        return table[input_ids].cumsum(1)

    context, continuations = [3, 1, 4], [[1, 5, 9], [2], [6, 5]]
    continuations.append([])
    likeliest = []
    for _ in range(2):
        likeliest.append(int(model(torch.tensor([context + likeliest]))[0, -1].argmax()))
    continuations[-1] = likeliest
    found = scorer(model)(context, continuations)
    for ids, (nats, said) in zip(continuations, found, strict=True):
        expected = 0.0
        for n, token in enumerate(ids):
            logits = model(torch.tensor([context + ids[:n]]))[0, -1]
            expected -= logits.log_softmax(-1)[token].item()
        assert_close(torch.tensor(nats), torch.tensor(expected, dtype=torch.float64), torch.float32)
        assert said == (ids == likeliest)


def test_reading_off_ignores_what_is_behind():
    logits = torch.zeros(2, 3, 4)
    logits[0, 0, 2] = 5.0
    logits[:, 1:] = float("nan")
    (nats, said), _ = read_off(logits, [[2], [1]])
    assert said
    assert nats == pytest.approx(math.log(math.exp(5) + 3) - 5, rel=1e-5)


def test_table_and_plot(tokenizer, ids, tmp_path):
    result = find_needles(reader(tokenizer), tokenizer, ids, (160, 200), depths=(0, 100), trials=1)
    lines = result.table().splitlines()
    assert "1 trials a cell" in lines[0]
    assert "160 tokens" in lines[1]
    assert [line.split() for line in lines[2:]] == [
        ["0%", "100%", "1.00", "100%", "1.00"],
        ["100%", "100%", "1.00", "100%", "1.00"],
    ]
    assert result.to_dict()["exact"] == [[1.0, 1.0], [1.0, 1.0]]
    assert plot_needle(result, tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")


def test_errors(tokenizer, ids):
    for args, options, message in [
        ((), {}, "contexts and depths must not be empty"),
        ((200,), {"depths": (101,)}, "depths in 0..100 percent"),
        ((200,), {"trials": 0}, "trials must be at least 1"),
        ((200,), {"candidates": 1}, "candidates at least 2"),
        ((10,), {}, "a context of 10 tokens has no room for the needle and the question"),
        ((10**6,), {}, "a context of 1000000 tokens needs .* tokens of text, and there are only"),
    ]:
        with pytest.raises(ValueError, match=message):
            find_needles(guesser, tokenizer, ids, args, **options)


def test_a_tokenizer_that_cannot_tell_numbers_apart():
    rust = hf.Tokenizer(hf.models.WordLevel({"<unk>": 0, "</s>": 1, "number": 2}, unk_token="<unk>"))
    rust.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    blind = HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="<unk>", eos_token="</s>"))
    with pytest.raises(ValueError, match="does not tell numbers apart"):
        find_needles(guesser, blind, np.full(500, 2), (160,))
