import io
import sys

import pytest
import sentencepiece
from transformers import AutoTokenizer

from longconv.tasks.lm import load_sentencepiece, load_tokenizer, open_tokenizer, train_sentencepiece

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


PLAIN = {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
FOREIGN = [
    "",
    "return stream",
    "  compute   the  window \n",
    "naïve 数据 🤗 ﬁ Ａ½ \u3000 x",
    "▁ literal",
    "a😀😀b",
    "x" * 100,
]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def kind(request):
    return request.param


@pytest.fixture(scope="module", params=["defaults", "plain", "bytes"])
def model_file(request, kind, folder, tmp_path_factory):
    """A model that SentencePiece trained itself, with its own defaults, without normalisation, with bytes."""
    options = {"defaults": {}, "plain": PLAIN, "bytes": {"byte_fallback": True}}[request.param]
    lines = [line for file in sorted(folder.rglob("*.py")) for line in file.read_text().splitlines()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type=kind, vocab_size=340, minloglevel=2,
        user_defined_symbols=["<sep>"], hard_vocab_limit=False, character_coverage=0.98, **options,
    )  # fmt: skip
    file = tmp_path_factory.mktemp("sp") / "own.model"
    file.write_bytes(model.getvalue())
    return file


def test_a_model_file_gives_the_ids_of_sentencepiece(model_file, folder, tmp_path):
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    ours = load_sentencepiece(model_file)
    assert ours.vocab_size == theirs.get_piece_size()
    assert ours.eos_id == theirs.eos_id()
    texts = [*FOREIGN, *(line for file in sorted(folder.rglob("*.py")) for line in file.read_text().splitlines())]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text), text
        (document,) = ours.encode_documents([text])
        assert document.n_bytes.sum() == len(text.encode())
    ours.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == ours.fingerprint
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert all(again(text, add_special_tokens=False)["input_ids"] == ours.encode(text) for text in texts)
    assert open_tokenizer(model_file).fingerprint == ours.fingerprint


def test_files_that_are_no_models(tmp_path):
    file = tmp_path / "some.model"
    with pytest.raises(FileNotFoundError, match=r"some\.model"):
        open_tokenizer(file)
    for raw in (b"", b"not a model at all"):
        file.write_bytes(raw)
        with pytest.raises(ValueError, match=r"some\.model is not a SentencePiece model"):
            load_sentencepiece(file)
