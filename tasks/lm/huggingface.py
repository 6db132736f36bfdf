"""Any fast tokenizer of Hugging Face as a `Tokenizer`, with an exact count of the bytes that its tokens stand for.

What a token stands for is not always told by its id: an unknown token may be any word, a byte of a character has no
text of its own, and normalisation and the cutting into words drop spaces and letters. So the bytes of a document are
counted where they are, from the places in the text that the tokenizer gives for each token.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from longconv.tasks.extras import require
from longconv.tasks.lm.tokenizers import Encoded, Tokenizer, in_batches

# What `transformers.AutoTokenizer` can begin with, beside tokenizer.json.
FILES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Between two words, the usual place where no token reaches across; whether that is so here is tried out.
_SEAM = re.compile(r"(?<=[a-zA-Z])(?= [a-zA-Z])")
_SEAMS_TRIED, _AROUND = 16, 256


class HuggingFaceTokenizer(Tokenizer):
    """A fast tokenizer of `transformers`, its ids exactly.

    Text is text: what looks like a special token in a document is encoded letter by letter, and no special token is
    put around it. A document ends with the tokenizer's end-of-sequence token, or else with its separator or beginning.

    Args:
        tokenizer: a `transformers.PreTrainedTokenizerFast`, such as `AutoTokenizer.from_pretrained` gives.

    Raises:
        TypeError: it is not a fast tokenizer.
        ValueError: it has no token that could end a document.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or not hasattr(backend, "encode_batch_fast"):
            raise TypeError(
                f"tokenizer must be a fast one of Hugging Face, with a tokenizer.json; got {type(tokenizer).__name__}"
            )
        self._original = tokenizer
        rust = require("tokenizers").Tokenizer.from_str(backend.to_str())
        rust.no_padding()
        rust.no_truncation()
        self._spec: str = rust.to_str()
        ends = (getattr(tokenizer, f"{role}_token_id", None) for role in ("eos", "sep", "bos", "cls"))
        end = next((i for i in ends if i is not None), None)
        if end is None:
            raise ValueError("the tokenizer has no token that could end a document: set its eos_token")
        self.bos_id = self.eos_id = int(end)
        pad = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = self.eos_id if pad is None else int(pad)

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> "HuggingFaceTokenizer":
        """The tokenizer in a folder, or the one of that name on the hub (or in its cache).

        Raises ValueError if there is none, if it is damaged, or if it has no token that could end a document.
        """
        transformers, here = require("transformers"), Path(name).is_dir()
        try:
            if here and not Path(name, "tokenizer_config.json").is_file() and Path(name, "tokenizer.json").is_file():
                found = transformers.PreTrainedTokenizerFast(tokenizer_file=str(Path(name, "tokenizer.json")))
            else:
                found = transformers.AutoTokenizer.from_pretrained(str(name))
        except Exception as error:  # the Rust library raises nothing more special
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if here:
                raise ValueError(f"{Path(name, 'tokenizer.json')} is not a tokenizer file: {reason}") from error
            raise ValueError(
                f"unknown tokenizer {str(name)!r}, known: bytes, sentencepiece, a folder with a tokenizer, or one of "
                f"the Hugging Face hub ({reason})"
            ) from error
        try:
            return cls(found)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error

    @cached_property
    def _rust(self) -> Any:
        rust = require("tokenizers").Tokenizer.from_str(json.dumps(_without_special_words(json.loads(self._spec))))
        rust.encode_special_tokens = True
        return rust

    @cached_property
    def _byte_level(self) -> bool:
        return "ByteLevel" in _types(json.loads(self._spec).get("decoder"))

    @property
    def name(self) -> str:
        """See `Tokenizer.name`."""
        return f"Hugging Face {json.loads(self._spec)['model'].get('type', '')}".strip()

    @cached_property
    def vocab_size(self) -> int:
        """See `Tokenizer.vocab_size`: one more than the largest id."""
        return 1 + max(self._rust.get_vocab(with_added_tokens=True).values())

    @cached_property
    def fingerprint(self) -> str:
        """See `Tokenizer.fingerprint`."""
        return hashlib.sha256(json.dumps([self._spec, self.eos_id]).encode()).hexdigest()

    @cached_property
    def pieces_of_bytes(self) -> Sequence[bytes]:
        """See `Tokenizer.pieces_of_bytes`; an unknown token stands for none."""
        spec, added = json.loads(self._spec), self._rust.get_added_tokens_decoder()
        byte_fallback = bool(spec["model"].get("byte_fallback"))
        unknown, alphabet = _unknown(spec["model"]), byte_alphabet()
        table, others = [b""] * self.vocab_size, []
        for token, i in self._rust.get_vocab(with_added_tokens=True).items():
            if i in added:
                table[i] = b"" if added[i].special else added[i].content.encode()
            elif self._byte_level:
                known = all(letter in alphabet for letter in token)
                table[i] = bytes(alphabet[letter] for letter in token) if known else token.encode()
            elif byte_fallback and (match := _BYTE.fullmatch(token)):
                table[i] = bytes([int(match[1], 16)])
            elif token != unknown:
                others.append(i)
        for i, text in zip(others, self._within_text(others), strict=True):
            table[i] = text.encode()
        return table

    def _within_text(self, ids: Sequence[int]) -> list[str]:
        """What each of `ids` adds to a text that has begun: its letters, and the space that belongs to it."""
        if not ids:
            return []
        anchor = next((i for i in ids if self._rust.id_to_token(i).isascii()), ids[0])
        begun = self._rust.decode([anchor], skip_special_tokens=False)
        texts = self._rust.decode_batch([[anchor, i] for i in ids], skip_special_tokens=False)
        return [text.removeprefix(begun) for text in texts]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text as int32, on every core."""
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        for batch in in_batches(texts, self._cut):
            encodings = self._rust.encode_batch_fast([part for _, part in batch], add_special_tokens=False)
            for (which, _), encoding in zip(batch, encodings, strict=True):
                ids[which].append(np.array(encoding.ids, dtype=np.int32))
        return [np.concatenate(parts) if parts else np.zeros(0, np.int32) for parts in ids]

    def encode_documents(self, texts: Sequence[str]) -> list[Encoded]:
        """See `Tokenizer.encode_documents`."""
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        counts: list[list[np.ndarray]] = [[] for _ in texts]
        left, verbatim = [0] * len(texts), [True] * len(texts)
        for batch in in_batches(texts, self._cut):
            encodings = self._rust.encode_batch([part for _, part in batch], add_special_tokens=False)
            for (which, part), encoding in zip(batch, encodings, strict=True):
                n_bytes, rest, same = self._count(part, encoding)
                if len(n_bytes):
                    n_bytes[0] += left[which]
                    left[which] = 0
                left[which] += rest
                verbatim[which] = verbatim[which] and same
                ids[which].append(np.array(encoding.ids, dtype=np.int32))
                counts[which].append(n_bytes)
        documents = []
        for which, text in enumerate(texts):
            tokens = np.concatenate([*ids[which], [self.eos_id]]).astype(np.int32)
            n_bytes = np.concatenate([*counts[which], [left[which]]]).astype(np.int64)
            assert n_bytes.sum() == len(text.encode()), (n_bytes.sum(), len(text.encode()))
            # Two texts may have the same words, one of them with a space in front: the one that comes back counts.
            lossless = verbatim[which] if self._byte_level else self.decode(tokens[:-1].tolist()) == text
            documents.append(Encoded(tokens, n_bytes, lossless))
        return documents

    def _count(self, text: str, encoding: Any) -> tuple[np.ndarray, int, bool]:
        """Bytes of `text` for each token, bytes behind the last, and whether the tokens are the text to the byte."""
        table, raw = self.pieces_of_bytes, text.encode()
        own = self.token_bytes[np.array(encoding.ids, dtype=np.int64)]
        if b"".join([table[i] for i in encoding.ids]) == raw:
            return own, 0, True
        if not len(own):
            return own, len(raw), False
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        widths = 1 + (codes >= 1 << 7) + (codes >= 1 << 11) + (codes >= 1 << 16)
        ends = np.concatenate([[0], np.cumsum(widths)])[np.array(encoding.offsets, dtype=np.int64)[:, 1]]
        reached = np.maximum.accumulate(ends)
        counts = np.diff(reached, prepend=0)
        # Tokens that share a character end at the same place: the first has it all, unless their bytes are known.
        group = np.cumsum(counts > 0)
        known = np.bincount(group, own) == np.bincount(group, counts)
        return np.where(known[group], own, counts), len(raw) - int(reached[-1]), False

    def decode(self, ids: Sequence[int]) -> str:
        """Text that `ids` stand for, as Hugging Face puts it together, without special tokens."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"token id {i} is outside the vocabulary of {self.vocab_size}")
        return self._rust.decode(ids, skip_special_tokens=True)

    def to_transformers(self) -> Any:
        """The tokenizer that was given, as it is.

        It may put special tokens around a text, which training does not: call it with ``add_special_tokens=False``.
        """
        return self._original

    def _cut(self, text: str, size: int) -> Iterator[str]:
        """Parts of about `size` characters that give the ids of the whole, or one longer part where no cut is safe."""
        start = 0
        while len(text) - start > 2 * size:
            seam = next(filter(lambda at: self._is_seam(text, at), _seams(text, start + size)), None)
            if seam is None:
                break
            yield text[start:seam]
            start = seam
        if start < len(text):
            yield text[start:]

    def _is_seam(self, text: str, at: int) -> bool:
        """Whether a cut there changes no id, as far as the text around it tells."""
        before, behind = text[max(0, at - _AROUND) : at], text[at : at + _AROUND]
        encodings = self._rust.encode_batch_fast([before, behind, before + behind], add_special_tokens=False)
        left, right, whole = (encoding.ids for encoding in encodings)
        return left + right == whole


def _seams(text: str, start: int) -> Iterator[int]:
    for _, match in zip(range(_SEAMS_TRIED), _SEAM.finditer(text, start), strict=False):
        yield match.start()


def _types(decoder: Any) -> set[str]:
    """The types of a decoder and of those that it is a sequence of."""
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*(_types(part) for part in decoder.get("decoders", ())))


def _without_special_words(spec: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer that never finds its special tokens in a text: their names are what no text has.

    The unknown token keeps its name: it is found by that, and stands for text. So do pieces that are special by name
    only, which merges lead to or from.
    """
    model = spec["model"]
    merges = (merge.split(" ") if isinstance(merge, str) else merge for merge in model.get("merges", ()))
    kept = {_unknown(model)}.union(*((a, b, a + b) for a, b in merges))
    names = {
        token["content"]: f"\U0010fffe{token['content']}\U0010ffff"
        for token in spec["added_tokens"]
        if token["special"] and token["content"] not in kept
    }
    added = [{**token, "content": names.get(token["content"], token["content"])} for token in spec["added_tokens"]]
    if isinstance(model["vocab"], dict):
        vocabulary: Any = {names.get(token, token): i for token, i in model["vocab"].items()}
    else:
        vocabulary = [[names.get(token, token), score] for token, score in model["vocab"]]
    return {**spec, "added_tokens": added, "model": {**model, "vocab": vocabulary}, "post_processor": None}


def _unknown(model: dict[str, Any]) -> str | None:
    """The unknown token of a model, which stands for whatever the vocabulary lacks."""
    if model.get("unk_id") is not None:
        return str(model["vocab"][model["unk_id"]][0])
    return model.get("unk_token")


def byte_alphabet() -> dict[str, int]:
    """The printable characters that stand for the 256 bytes in byte-level vocabularies (Radford et al. 2019, GPT-2).

    A byte that is a printable character of Latin-1 is that character; the others are numbered from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}
