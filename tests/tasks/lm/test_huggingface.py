"""Tokenizers of Hugging Face, built here: their ids exactly, and every byte of text counted once."""

import json
import pickle

import numpy as np
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from longconv.tasks import get
from longconv.tasks.lm import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    TokenStream,
    load_tokenizer,
    open_tokenizer,
    tokenizers,
)
from longconv.tasks.lm.huggingface import byte_alphabet

TEXTS = [
    "",
    " ",
    "\n\n  \n",
    "def compute(self):\n\treturn  value\t# naïve\n",
    "   leading and trailing   ",
    "▁ is not a space ▁▁x",
    "<|endoftext|> and [SEP] </s> <unk> are text here",
    "naïve 数据 🤗 👩‍👩‍👧 e\u0301 \u2028 \u3000 \x85",
    "UPPER case, punctuation: don't!",
    "nul \0 bell \a bom \ufeff",
    "x" * 300 + "\n" * 30 + " " * 70,
]


def byte_level(texts):
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    tokenizer.post_processor = hf.processors.ByteLevel(trim_offsets=True)
    trainer = hf.trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>")


def words(texts):
    """BPE over words, unknown characters as <unk>, between the tokens of a template."""
    tokenizer = hf.Tokenizer(hf.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(
        [text.encode("ascii", "ignore").decode() for text in texts],
        hf.trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"]),
    )
    tokenizer.post_processor = hf.processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def wordpiece(texts):
    tokenizer = hf.Tokenizer(hf.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hf.decoders.WordPiece()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        [text.encode("ascii", "ignore").decode() for text in texts],
        hf.trainers.WordPieceTrainer(vocab_size=200, special_tokens=specials),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def unigram(texts):
    tokenizer = hf.Tokenizer(hf.models.Unigram())
    tokenizer.normalizer = hf.normalizers.NFKC()
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Metaspace()
    tokenizer.decoder = hf.decoders.Metaspace()
    trainer = hf.trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", "</s>", "<pad>"], unk_token="<unk>")
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", pad_token="<pad>")


def byte_fallback(texts):
    """As Llama's: a space in front, spaces as ▁, and bytes for what no piece covers."""
    pieces = ["▁", "r", "e", "t", "u", "n", "v", "re", "tu", "rn", "▁re", "turn", "▁return"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    vocabulary |= {piece: 259 + n for n, piece in enumerate(pieces)}
    merges = [("r", "e"), ("t", "u"), ("r", "n"), ("▁", "re"), ("tu", "rn"), ("▁re", "turn")]
    tokenizer = hf.Tokenizer(hf.models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = hf.normalizers.Sequence([hf.normalizers.Prepend("▁"), hf.normalizers.Replace(" ", "▁")])
    tokenizer.decoder = hf.decoders.Sequence(
        [hf.decoders.Replace("▁", " "), hf.decoders.ByteFallback(), hf.decoders.Fuse(), hf.decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


KINDS = {make.__name__: make for make in (byte_level, words, wordpiece, unigram, byte_fallback)}


@pytest.fixture(scope="module")
def originals(folder):
    texts = [file.read_bytes().decode() for file in sorted(folder.rglob("*.py"))]
    return {name: make(texts) for name, make in KINDS.items()}


@pytest.fixture(scope="module", params=sorted(KINDS))
def pair(request, originals):
    """The tokenizer of transformers, and ours of it."""
    return originals[request.param], HuggingFaceTokenizer(originals[request.param])


@pytest.fixture(scope="module")
def gpt2_like(originals):
    return HuggingFaceTokenizer(originals["byte_level"])


def test_ids_are_those_of_transformers(pair, folder):
    original, tokenizer = pair
    texts = [text for text in TEXTS if "<" not in text]
    texts += [file.read_bytes().decode() for file in sorted(folder.rglob("*.py"))]
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert ids.tolist() == original(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text) == ids.tolist()
        assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.encode_batch([]) == []
    assert tokenizer.vocab_size == len(original)


def test_special_tokens_in_a_text_are_text(pair):
    _, tokenizer = pair
    specials = {
        i for i, token in tokenizer._rust.get_added_tokens_decoder().items() if token.content not in ("<unk>", "[UNK]")
    }
    assert tokenizer.eos_id in specials
    ids = tokenizer.encode("a <|endoftext|> [SEP] [PAD] <s> </s> <pad> b")
    assert not specials & set(ids)


@pytest.mark.parametrize("text", TEXTS)
def test_every_byte_is_counted_once(pair, text):
    _, tokenizer = pair
    (document,) = tokenizer.encode_documents([text])
    assert document.ids.tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    assert document.n_bytes.shape == document.ids.shape
    assert (document.n_bytes >= 0).all()
    assert document.n_bytes.sum() == len(text.encode())
    assert document.lossless == (tokenizer.decode(document.ids) == text)


@settings(max_examples=100)
@given(text=st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("\t\n\r ▁é数ab"), max_size=40))
def test_every_byte_of_any_text_is_counted_once(pair, text):
    _, tokenizer = pair
    (document,) = tokenizer.encode_documents([text])
    assert document.n_bytes.sum() == len(text.encode())
    assert document.ids[:-1].tolist() == tokenizer.encode(text)


def test_parts_of_characters_have_their_bytes(gpt2_like, originals):
    text = "é🤗 数 return"
    (document,) = gpt2_like.encode_documents([text])
    assert document.lossless
    assert gpt2_like.decode_bytes(document.ids) == text.encode()
    assert document.n_bytes.tolist() == [len(gpt2_like.pieces_of_bytes[i]) for i in document.ids]
    assert document.n_bytes.tolist()[2:6] == [1, 1, 1, 1]  # the face, of which the vocabulary has only bytes
    llama_like = HuggingFaceTokenizer(originals["byte_fallback"])
    (document,) = llama_like.encode_documents(["return é return"])
    tokens = originals["byte_fallback"].convert_ids_to_tokens(document.ids.tolist())
    assert tokens == ["▁return", "▁", "<0xC3>", "<0xA9>", "▁return", "</s>"]
    assert document.n_bytes.tolist() == [6, 1, 1, 1, 7, 0]
    assert document.lossless
    # A literal "▁" comes back as a space: no code for the text any more, but its three bytes are counted.
    (document,) = llama_like.encode_documents(["a▁"])
    assert document.n_bytes.sum() == 4
    assert not document.lossless


def test_unknown_words_and_dropped_spaces_by_hand():
    vocabulary = {"[UNK]": 0, "[SEP]": 1, "hello": 2, "wor": 3, "##ld": 4, "!": 5}
    rust = hf.Tokenizer(hf.models.WordPiece(vocabulary, unk_token="[UNK]"))
    rust.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    rust.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    rust.decoder = hf.decoders.WordPiece()
    rust.add_special_tokens(["[UNK]", "[SEP]"])
    tokenizer = HuggingFaceTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", sep_token="[SEP]")
    )
    (document,) = tokenizer.encode_documents(["Hello  WORLD 数é!\n"])
    assert document.ids.tolist() == [2, 3, 4, 0, 0, 5, 1]
    # "Hello", "  WOR", "LD", " 数" (an ideograph is a word of its own), "é", "!", and the newline is the end's.
    assert document.n_bytes.tolist() == [5, 5, 2, 4, 2, 1, 1]
    assert not document.lossless
    assert tokenizer.pieces_of_bytes == [b"", b"", b" hello", b" wor", b"ld", b"!"]
    assert tokenizer.eos_id == tokenizer.bos_id == tokenizer.pad_id == 1
    (empty,) = tokenizer.encode_documents(["  \n"])
    assert (empty.ids.tolist(), empty.n_bytes.tolist()) == ([1], [3])


def test_saved_beside_a_model_and_loaded_again(pair, tmp_path):
    original, tokenizer = pair
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "not-known-to-transformers"}))
    tokenizer.save(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert again(text)["input_ids"] == original(text)["input_ids"]
    for loaded in (load_tokenizer(tmp_path), open_tokenizer(tmp_path), open_tokenizer(str(tmp_path))):
        assert isinstance(loaded, HuggingFaceTokenizer)
        assert loaded.fingerprint == tokenizer.fingerprint
        assert (loaded.eos_id, loaded.pad_id, loaded.vocab_size) == (
            tokenizer.eos_id,
            tokenizer.pad_id,
            tokenizer.vocab_size,
        )
        assert all(loaded.encode(text) == tokenizer.encode(text) for text in TEXTS)


def test_long_texts_are_cut_where_it_changes_nothing(pair, folder, monkeypatch):
    _, tokenizer = pair
    text = "".join(file.read_bytes().decode() for file in sorted(folder.rglob("*.py")))
    ids, (document,) = tokenizer.encode(text), tokenizer.encode_documents([text])
    monkeypatch.setattr(tokenizers, "_BATCH_CHARACTERS", 64 * 100)
    parts = list(tokenizer._cut(text, 100))
    assert "".join(parts) == text
    assert tokenizer.encode(text) == ids
    (cut,) = tokenizer.encode_documents([text])
    assert cut.ids.tolist() == document.ids.tolist()
    assert cut.n_bytes.sum() == document.n_bytes.sum() == len(text.encode())
    assert len(parts) > 50 or not tokenizer._byte_level


def test_bytes_per_token_of_a_split_is_the_same_text_for_all(originals, folder):
    sizes = set()
    for original in (*originals.values(), None):
        tokenizer = ByteTokenizer() if original is None else HuggingFaceTokenizer(original)
        task = get("lm", data=folder, tokenizer=tokenizer, length=64, validation=0.2, test=0.2)
        stream = TokenStream.of(task.corpus.texts("test"), tokenizer)
        assert stream.ids.tolist() == task.stream("test").tolist()
        assert stream.n_bytes.sum() == task.bytes_in("test")
        sizes.add(int(stream.n_bytes.sum()))
    assert len(sizes) == 1


def test_a_task_by_the_folder_of_a_tokenizer(gpt2_like, folder, tmp_path):
    gpt2_like.save(tmp_path)
    task = get("lm", data=folder, tokenizer=str(tmp_path), length=64)
    assert task.tokenizer.fingerprint == gpt2_like.fingerprint
    assert "Hugging Face BPE" in task.describe()
    stream = task.stream("train")
    assert stream[0] == stream[-1] == gpt2_like.eos_id
    assert gpt2_like.decode(stream) == "".join(task.corpus.texts("train"))


def test_a_copy_in_another_process_gives_the_same_ids(pair):
    _, tokenizer = pair
    ids = tokenizer.encode(TEXTS[6])
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode(TEXTS[6]) == ids
    assert copy.fingerprint == tokenizer.fingerprint


def test_alphabet_of_bytes():
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert set(alphabet) == set(hf.pre_tokenizers.ByteLevel.alphabet())
    assert (alphabet["Ġ"], alphabet["Ċ"], alphabet["A"]) == (0x20, 0x0A, 0x41)


def test_decode_refuses_unknown_ids(pair):
    _, tokenizer = pair
    for wrong in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode([wrong])
        with pytest.raises(ValueError, match=f"token id {wrong} is outside the vocabulary of {tokenizer.vocab_size}"):
            tokenizer.decode_bytes(np.array([wrong]))


def test_errors(originals, tmp_path):
    with pytest.raises(TypeError, match=r"tokenizer must be a fast one .* got int"):
        HuggingFaceTokenizer(3)
    endless = PreTrainedTokenizerFast(tokenizer_object=originals["byte_level"].backend_tokenizer)
    with pytest.raises(ValueError, match="no token that could end a document: set its eos_token"):
        HuggingFaceTokenizer(endless)
    endless.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no token that could end a document"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=r"unknown tokenizer 'no/such', known: bytes, sentencepiece, a folder"):
        open_tokenizer("no/such")
    assert isinstance(open_tokenizer("bytes"), ByteTokenizer)
