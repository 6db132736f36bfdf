"""Packing: a split as one stream of tokens, and the stream as blocks of one length, both kept on disk.

The stream of documents d1 … dn is ``E d1 E d2 E … dn E`` with E the end-of-text token. The first E is never predicted,
everything after it is: every byte of text and every document's end.

A block holds `length` tokens. A causal model shifts the labels itself (position t predicts t + 1), so a block asks for
`length` - 1 predictions, and the next block starts with the token that this one ended on: no prediction is lost at a
seam and none is made twice. With `context` > 1 blocks overlap by that much, and the labels of the overlap are -100:
every prediction then sees at least `context` tokens before it (but for the first ones of the stream).
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longconv.tasks.extras import require
from longconv.tasks.lm.metrics import IGNORE
from longconv.tasks.lm.tokenizers import Tokenizer

_TOKENS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Block:
    """Tokens `start` to `stop` of the stream; the first `context` of them are seen but not predicted."""

    start: int
    stop: int
    context: int


def blocks_of(n_tokens: int, length: int, context: int = 1) -> list[Block]:
    """Blocks of a stream of `n_tokens`: each token but the first is predicted in exactly one. The last may be short.

    Raises ValueError unless `length` >= 2 and 1 <= `context` < `length`.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, a token and the one it predicts, not {length}")
    if not 1 <= context < length:
        raise ValueError(f"context must be at least 1 and below length={length}, not {context}")
    blocks = [Block(0, min(length, n_tokens), 1)]
    while blocks[-1].stop < n_tokens:
        start = blocks[-1].stop - context
        blocks.append(Block(start, min(start + length, n_tokens), context))
    return blocks


def write_stream(folder: Path, texts: Iterable[str], tokenizer: Tokenizer, n_bytes: int, name: str) -> None:
    """Tokenise `texts` (`n_bytes` of UTF-8 in all, for the progress bar called `name`) into files in `folder`."""
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    end = np.array([tokenizer.eos_id], dtype)
    n_tokens = 1
    progress = require("tqdm").tqdm(total=n_bytes, unit="B", unit_scale=True, desc=name, disable=None, leave=False)
    with progress, (folder / "tokens.bin").open("wb") as file:
        end.tofile(file)
        for batch in _batches(texts):
            encoded = tokenizer.encode_batch(batch)
            stream = np.concatenate([part for ids in encoded for part in (ids.astype(dtype), end)])
            stream.tofile(file)
            n_tokens += len(stream)
            progress.update(sum(int(tokenizer.token_bytes[ids].sum()) for ids in encoded))
    (folder / "stream.json").write_text(json.dumps({"dtype": np.dtype(dtype).name, "tokens": n_tokens}))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    held = 0
    for text in texts:
        batch.append(text)
        held += len(text)
        if held >= _TOKENS_AT_ONCE:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def read_stream(folder: Path) -> np.ndarray:
    """The stream that `write_stream` left in `folder`: (n_tokens,) uint16 or int32, memory-mapped read-only."""
    header = json.loads((folder / "stream.json").read_text())
    return np.memmap(folder / "tokens.bin", header["dtype"], "r", shape=(header["tokens"],))


def write_blocks(folder: Path, stream: np.ndarray, length: int, context: int = 1, keep_tail: bool = True) -> None:
    """Write the blocks of `stream` as an Arrow file for `read_blocks`; bounded memory whatever the stream's size.

    Columns: ``input_ids``, lists of `length` integers (the last block may be shorter), for `context` > 1 ``labels``.
    Without `keep_tail` a short last block is left out, unless it is the only one.
    """
    pa = require("pyarrow")
    blocks = blocks_of(len(stream), length, context)
    if not keep_tail and len(blocks) > 1 and blocks[-1].stop - blocks[-1].start < length:
        blocks.pop()
    columns = {"input_ids": pa.from_numpy_dtype(stream.dtype)} | ({"labels": pa.int32()} if context > 1 else {})
    schema = pa.schema([(name, pa.list_(value)) for name, value in columns.items()])
    at_once = max(1, _TOKENS_AT_ONCE // length)
    with pa.OSFile(os.fspath(folder / "blocks.arrow"), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for first in range(0, len(blocks), at_once):
            group = blocks[first : first + at_once]
            offsets = np.cumsum([0] + [block.stop - block.start for block in group], dtype=np.int32)
            values = [np.concatenate([stream[block.start : block.stop] for block in group])]
            if context > 1:
                labels = values[0].astype(np.int32)
                for block, offset in zip(group, offsets, strict=False):
                    labels[offset : offset + block.context] = IGNORE
                values.append(labels)
            writer.write_batch(pa.record_batch([pa.ListArray.from_arrays(offsets, v) for v in values], schema=schema))


def read_blocks(folder: Path) -> Any:
    """The `datasets.Dataset` that `write_blocks` left in `folder`, memory-mapped, giving int64 tensors."""
    return require("datasets").Dataset.from_file(os.fspath(folder / "blocks.arrow")).with_format("torch")


@dataclass(frozen=True)
class Collator:
    """Rows of a split to one batch of tensors, all of them (B, `length`), whatever the length of the last block.

    ``input_ids`` int64, padded right with `pad_id`; ``labels`` int64, the same, not shifted, -100 at padding and where
    a token is only context (the first of each block at least); ``attention_mask`` int64, 1 at tokens and 0 at
    padding, only in a batch that has padding: a mask costs time, and causal models read no padding to the right.
    """

    pad_id: int
    length: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Collate `rows` (with ``input_ids`` and perhaps ``labels``); ValueError for a row longer than `length`."""
        shape = (len(rows), self.length)
        input_ids = torch.full(shape, self.pad_id, dtype=torch.int64)
        labels = torch.full(shape, IGNORE, dtype=torch.int64)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        for i, row in enumerate(rows):
            n = len(row["input_ids"])
            if n > self.length:
                raise ValueError(f"a row of {n} tokens does not fit into blocks of {self.length}")
            input_ids[i, :n] = torch.as_tensor(row["input_ids"])
            labels[i, :n] = torch.as_tensor(row.get("labels", row["input_ids"]))
            attention_mask[i, :n] = 1
        # A block's first token was predicted in the block before it, or is the start of the stream.
        labels[:, 0] = IGNORE
        batch = {"input_ids": input_ids, "labels": labels}
        return batch if bool(attention_mask.all()) else batch | {"attention_mask": attention_mask}
