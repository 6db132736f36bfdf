"""Text to token ids and back without loss: bytes, or bytes and learned pieces of text.

Both tokenizers share one layout of ids, so that a byte has the same id in either:

    0 … 255   the byte of that value
    256       <|endoftext|>: ends every document and so stands before the next one; both `bos_id` and `eos_id`
    257       <|pad|>
    258 …     learned pieces of text, the most frequent merge first

Special tokens are never read out of text: a document that contains the characters ``<|endoftext|>`` is encoded letter
by letter. The same holds for the Hugging Face tokenizer that `save` writes, which gives the same ids as this one.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from longconv.tasks.extras import require

END_OF_TEXT, PAD = "<|endoftext|>", "<|pad|>"
FIRST_PIECE = 258
# Pieces never cross the start of a run of spaces or the end of a run of newlines, so text may be cut there.
UNIT_PATTERN = r" *[^ \n]*\n+| *[^ \n]+| +"
_BATCH_CHARACTERS = 1 << 22


class Tokenizer(ABC):
    """What both tokenizers do. `pieces`: the learned pieces of text, the ids from 258 on."""

    bos_id = eos_id = 256
    pad_id = 257

    def __init__(self, pieces: Sequence[str] = ()) -> None:
        self.pieces = tuple(pieces)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included: the size of a model's embedding."""
        return FIRST_PIECE + len(self.pieces)

    @cached_property
    def _bytes_of(self) -> list[bytes]:
        """Bytes of text that each id stands for; none for special tokens."""
        return [bytes([b]) for b in range(256)] + [b"", b""] + [piece.encode("utf-8") for piece in self.pieces]

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 (vocab_size,): number of bytes of text that each token stands for, 0 for special tokens."""
        return np.array([len(raw) for raw in self._bytes_of], dtype=np.int64)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides the ids."""
        return hashlib.sha256(json.dumps(self.pieces).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, no special token among them; `decode` gives exactly `text` back."""
        return self.encode_batch([text])[0].tolist()

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text as an integer array; the same ids as `encode`, faster."""

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes that `ids` stand for; special tokens stand for none. ValueError for an id outside the vocabulary."""
        table = self._bytes_of
        raw = []
        for i in map(int, ids):
            if not 0 <= i < len(table):
                raise ValueError(f"token id {i} is outside the vocabulary of {len(table)}")
            raw.append(table[i])
        return b"".join(raw)

    def decode(self, ids: Sequence[int]) -> str:
        """Text that `ids` stand for; bytes that are not UTF-8 (a generated half character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_transformers(self) -> Any:
        """The same tokenizer for Hugging Face's `generate` and pipelines: a `PreTrainedTokenizerFast`, padding left."""
        return require("transformers").PreTrainedTokenizerFast(
            tokenizer_object=_rust_tokenizer(self.pieces),
            bos_token=END_OF_TEXT,
            eos_token=END_OF_TEXT,
            pad_token=PAD,
            padding_side="left",
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
            model_input_names=["input_ids", "attention_mask"],
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``tokenizer.json`` and ``tokenizer_config.json`` into `folder`, which may hold a model already.

        `load_tokenizer` reads them, and so does `transformers.AutoTokenizer`.
        """
        self.to_transformers().save_pretrained(folder)


class ByteTokenizer(Tokenizer):
    """One token per UTF-8 byte, its id the byte's value: 258 ids, nothing to learn."""

    def __init__(self) -> None:
        super().__init__()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text as uint8."""
        return [np.frombuffer(text.encode("utf-8"), dtype=np.uint8) for text in texts]


class SentencePieceTokenizer(Tokenizer):
    """Pieces learned by SentencePiece (`train_sentencepiece`), single bytes where no piece fits.

    SentencePiece learns, Hugging Face's `tokenizers` encodes: SentencePiece itself takes a literal "▁" for a space.
    """

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids of each text as int32, on every core."""
        ids: list[list[np.ndarray]] = [[] for _ in texts]
        for batch in _in_batches(texts):
            # The fast variant leaves out the character offsets, most of the memory.
            encodings = self._rust.encode_batch_fast([part for _, part in batch], add_special_tokens=False)
            for (which, _), encoding in zip(batch, encodings, strict=True):
                ids[which].append(np.array(encoding.ids, dtype=np.int32))
        return [np.concatenate(parts) if parts else np.zeros(0, np.int32) for parts in ids]

    @cached_property
    def _rust(self) -> Any:
        return _rust_tokenizer(self.pieces)


def _in_batches(texts: Sequence[str]) -> Iterator[list[tuple[int, str]]]:
    """(index of text, part of it) in batches of bounded size; long texts are cut where no piece can span the cut."""
    batch: list[tuple[int, str]] = []
    held = 0
    for which, text in enumerate(texts):
        for part in _parts(text, _BATCH_CHARACTERS // 64):
            batch.append((which, part))
            held += len(part)
            if held >= _BATCH_CHARACTERS:
                yield batch
                batch, held = [], 0
    if batch:
        yield batch


def _parts(text: str, size: int) -> Iterator[str]:
    """Parts of about `size` characters, cut after a run of newlines, or one longer part where there is none."""
    start = 0
    while start < len(text):
        stop = text.find("\n", start + size)
        while 0 <= stop < len(text) and text[stop] == "\n":
            stop += 1
        stop = len(text) if stop < 0 else stop
        yield text[start:stop]
        start = stop


def _rust_tokenizer(pieces: Sequence[str]) -> Any:
    """Byte-pair encoding over `pieces` in the module's layout of ids, bytes for what no piece covers."""
    hf = require("tokenizers")
    vocabulary = {f"<0x{b:02X}>": b for b in range(256)} | {END_OF_TEXT: 256, PAD: 257}
    for i, piece in enumerate(pieces, start=FIRST_PIECE):
        if vocabulary.setdefault(piece, i) != i:
            raise ValueError(f"the piece {piece!r} is in the vocabulary twice or is a special token")
    known = frozenset(pieces)
    # A piece is what it merges from; all ways to put it together have its rank, as in SentencePiece's own encoder.
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]
    tokenizer = hf.Tokenizer(hf.models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Split(hf.Regex(UNIT_PATTERN), behavior="isolated")
    tokenizer.decoder = hf.decoders.Sequence([hf.decoders.ByteFallback(), hf.decoders.Fuse()])
    tokenizer.add_special_tokens([END_OF_TEXT, PAD])
    tokenizer.encode_special_tokens = True
    return tokenizer


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """Read what `Tokenizer.save` wrote, also after a round through `AutoTokenizer`.

    Raises FileNotFoundError if there is no ``tokenizer.json`` and ValueError if it is not one of these tokenizers.
    """
    file = Path(folder, "tokenizer.json")
    if not file.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {folder}: expected a folder written by Tokenizer.save")
    try:
        vocabulary: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        ours = [vocabulary[token] for token in tokens] == list(range(len(tokens)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a tokenizer file: {error!r}") from error
    layout = [f"<0x{b:02X}>" for b in range(256)] + [END_OF_TEXT, PAD]
    if not ours or tokens[:FIRST_PIECE] != layout:
        raise ValueError(f"{file} is a tokenizer of another kind: expected one written by Tokenizer.save")
    pieces = tokens[FIRST_PIECE:]
    return SentencePieceTokenizer(pieces) if pieces else ByteTokenizer()
