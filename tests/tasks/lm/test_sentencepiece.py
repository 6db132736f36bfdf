import sys

import pytest

from longconv.tasks.lm import train_sentencepiece

TEXTS = ["def compute(stream):\n\treturn stream ▁ \0 \ue000\n\n\n" * 5, "if window > kernel:\r\n        pass\n" * 5]


def test_the_vocabulary_has_the_size_asked_for():
    for vocab_size in (310, 350):
        tokenizer = train_sentencepiece(TEXTS, vocab_size)
        assert tokenizer.vocab_size == vocab_size
        assert len(set(tokenizer.pieces)) == len(tokenizer.pieces) == vocab_size - 258


def test_pieces_cover_whitespace_and_never_stand_ins():
    pieces = train_sentencepiece(TEXTS, 350).pieces
    assert {"        ", "\n", "\t", "\r\n", ":\r\n", "▁", "\0"} <= set(pieces)
    assert any(piece.startswith(" ") and len(piece) > 2 and piece.strip() for piece in pieces)
    assert not any(private in piece for piece in pieces for private in "\ue000\ue001\ue002\ue003")


def test_learning_is_deterministic():
    assert train_sentencepiece(TEXTS, 330).pieces == train_sentencepiece(iter(TEXTS), 330).pieces


def test_special_tokens_are_never_learned():
    texts = ["<|endoftext|> <|pad|> <0x41> x\n" * 50, "< | > endoftext pad 0x41\n" * 50]
    tokenizer = train_sentencepiece(texts, 290)
    assert "endoftext" in "".join(tokenizer.pieces)
    assert not {"<|endoftext|>", "<|pad|>", "<0x41>"} & set(tokenizer.pieces)
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    assert not {256, 257} & set(tokenizer.encode(texts[0]))


def test_every_strideth_line_is_read():
    lines = ["common words here\n", "zqzqzqzq\n"] * 50
    assert any("zq" in piece for piece in train_sentencepiece(["".join(lines)], 275).pieces)
    assert not any("z" in piece for piece in train_sentencepiece(["".join(lines)], 275, stride=2).pieces)


def test_long_lines_are_learned_from():
    pieces = train_sentencepiece(["kernel " * 20_000], 270).pieces
    assert " kernel" in pieces


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        (TEXTS, 258, "vocab_size must be above 258 .* not 258"),
        (TEXTS, 50_000, r"no vocabulary of 50000 from these texts: they have pieces for at most \d+$"),
        (TEXTS, 260, r"no vocabulary of 260 from these texts: their characters alone need \d+$"),
        ([], 300, "no vocabulary of 300 from these texts: they are empty"),
        ([""], 300, "no vocabulary of 300 from these texts: they are empty"),
    ],
)
def test_errors(texts, vocab_size, message):
    with pytest.raises(ValueError, match=message) as error:
        train_sentencepiece(texts, vocab_size)
    assert "\n" not in str(error.value)


def test_the_limits_in_the_messages_are_the_limits():
    for wrong in (50_000, 260):
        with pytest.raises(ValueError, match="no vocabulary") as error:
            train_sentencepiece(TEXTS, wrong)
        limit = int(str(error.value).split()[-1])
        assert train_sentencepiece(TEXTS, limit).vocab_size == limit
        with pytest.raises(ValueError, match="no vocabulary"):
            train_sentencepiece(TEXTS, limit + (1 if wrong > limit else -1))


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r'pip install "longconv\[train\]"'):
        train_sentencepiece(TEXTS, 300)
