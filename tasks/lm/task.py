"""`LanguageModelling`: corpus, tokenizer, packed splits, loss and metrics under one name."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longconv.tasks import cache
from longconv.tasks.extras import require
from longconv.tasks.lm.corpus import Data, open_corpus
from longconv.tasks.lm.metrics import LanguageModelMetrics, evaluate, mean_loss, token_nll
from longconv.tasks.lm.packing import Collator, blocks_of, read_blocks, read_stream, write_blocks, write_stream
from longconv.tasks.lm.sentencepiece import train_sentencepiece
from longconv.tasks.lm.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer

# Part of every cache key: raise it when the meaning of what is stored changes.
_FORMAT = 1
_DEFAULT_VOCABULARY = 4096
_LEARN_FROM_BYTES = 1 << 25


class LanguageModelling:
    """Next-token prediction on local text.

    data, suffixes, validation, test, max_bytes: which files, and how they are split; see `open_corpus`.
        The default is the source of Python's standard library.
    tokenizer: ``"bytes"``, ``"sentencepiece"`` (learned on the train split only), or a `Tokenizer`, such as the one
        that `load_tokenizer` finds beside a trained model.
    vocab_size: number of ids of ``"sentencepiece"``, special tokens included (default 4096).
    length: tokens in a block. Blocks share one token, so that each asks for `length` - 1 predictions and every token is
        predicted once (`longconv.tasks.lm.packing`).
    eval_context: tokens that every prediction in validation and test sees before it; at 1 a block's first predictions
        see almost nothing, `length // 2` costs twice the time and shows what the model does within a long text.
    cache_dir: where tokenised splits are kept; default ``$LONGCONV_CACHE`` or ``~/.cache/longconv``.

    Opening the task reads the corpus once; tokenising waits until `splits` or `tokenizer` is asked for.
    Raises ValueError or FileNotFoundError in one line for anything wrong in the options or the data.
    """

    def __init__(
        self,
        data: Data = None,
        *,
        tokenizer: str | Tokenizer = "bytes",
        vocab_size: int | None = None,
        length: int = 1024,
        eval_context: int = 1,
        cache_dir: str | os.PathLike[str] | None = None,
        suffixes: Sequence[str] | None = None,
        validation: float = 0.05,
        test: float = 0.05,
        max_bytes: int | None = None,
    ) -> None:
        if isinstance(tokenizer, str) and tokenizer not in ("bytes", "sentencepiece"):
            raise ValueError(f"unknown tokenizer {tokenizer!r}, known: bytes, sentencepiece, or a Tokenizer")
        if vocab_size is not None and tokenizer != "sentencepiece":
            raise ValueError('vocab_size can be chosen for tokenizer="sentencepiece" only')
        blocks_of(1, length, eval_context)  # raises for lengths that make no sense
        self.length = length
        self.eval_context = eval_context
        self.cache_dir = cache.cache_root(cache_dir) / "lm"
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size or _DEFAULT_VOCABULARY
        self.corpus = open_corpus(data, suffixes=suffixes, validation=validation, test=test, max_bytes=max_bytes)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; ``"sentencepiece"`` learns here, from the train split, and is kept in the cache."""
        if isinstance(self._tokenizer, Tokenizer):
            return self._tokenizer
        if self._tokenizer == "bytes":
            return ByteTokenizer()
        version = require("sentencepiece").__version__
        key = cache.make_key(_FORMAT, version, self.corpus.fingerprint("train"), self._vocab_size)

        def learn(folder: Path) -> None:
            stride = math.ceil(self.bytes_in("train") / _LEARN_FROM_BYTES)
            train_sentencepiece(self.corpus.texts("train"), self._vocab_size, stride).save(folder)

        return load_tokenizer(cache.fetch(self.cache_dir / f"tokenizer-{key}", learn))

    def stream(self, split: str) -> Any:
        """All tokens of `split` in one array (n_tokens,), memory-mapped; the first is the end-of-text token.

        Raises ValueError for a split that does not exist.
        """
        return read_stream(self._stream_folder(split))

    def splits(self) -> dict[str, Any]:
        """``train``, ``validation``, ``test``: each a `datasets.Dataset` of blocks for `collate`.

        A short last block is kept in validation and test, where every byte counts, and left out of train, so that all
        training batches have one shape.
        """
        return {split: self._blocks(split) for split in self.corpus.documents}

    @property
    def collate(self) -> Collator:
        """Rows of a split to a batch: ``input_ids`` and ``labels`` (B, length), ``attention_mask`` with padding."""
        return Collator(self.tokenizer.pad_id, self.length)

    def bytes_in(self, split: str) -> int:
        """UTF-8 bytes of text in `split`: what bits per byte divides by. ValueError if the split does not exist."""
        self._require(split)
        return self.corpus.bytes_in(split)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean nats per predicted token, a scalar: logits (B, L, V), labels (B, L) not shifted, -100 ignored."""
        return mean_loss(logits, labels)

    def metrics(self) -> LanguageModelMetrics:
        """An empty accumulator of loss, perplexity and bits per byte."""
        return LanguageModelMetrics(self.tokenizer.token_bytes)

    def evaluate(
        self,
        model: Callable[..., Any],
        split: str = "validation",
        *,
        batch_size: int = 8,
        max_batches: int | None = None,
        device: torch.device | str | None = None,
    ) -> dict[str, float]:
        """``loss``, ``perplexity`` and ``bits_per_byte`` of `model` on `split`, or on its first `max_batches` batches.

        `model(input_ids=…[, attention_mask=…])` returns logits (B, L, V) or an object that has them as ``.logits``.
        device: where the batches go; default that of the model's first parameter, else the CPU.
        """
        if device is None:
            first = next(iter(model.parameters()), None) if isinstance(model, torch.nn.Module) else None
            device = "cpu" if first is None else first.device
        batches = self.batches(split, batch_size=batch_size, max_batches=max_batches, device=device)
        return evaluate(model, batches, self.tokenizer.token_bytes)

    def batches(
        self,
        split: str,
        *,
        batch_size: int = 8,
        max_batches: int | None = None,
        device: torch.device | str = "cpu",
        doing: str = "evaluate",
    ) -> Iterator[dict[str, Tensor]]:
        """Collated batches of the blocks of `split`, in order, or the first `max_batches` of them.

        `doing` is what the progress bar says, which appears on a terminal.
        """
        blocks = self._blocks(split)
        batches: Iterable[dict[str, Tensor]] = torch.utils.data.DataLoader(
            blocks, batch_size=batch_size, collate_fn=self.collate
        )
        count = -(-len(blocks) // batch_size)
        count = count if max_batches is None else min(count, max_batches)
        bar = require("tqdm").tqdm(batches, total=count, desc=f"{doing} {split}", disable=None, leave=False)
        for _, batch in zip(range(count), bar, strict=False):
            yield {name: tensor.to(device) for name, tensor in batch.items()}

    def preprocess_logits_for_metrics(self, logits: Any, labels: Tensor) -> Tensor:
        """For `transformers.Trainer`, with `compute_metrics`: keep one number per token instead of V logits."""
        return token_nll(logits[0] if isinstance(logits, tuple) else logits, labels)

    def compute_metrics(self, prediction: Any) -> dict[str, float]:
        """For `transformers.Trainer`: metrics from what `preprocess_logits_for_metrics` kept."""
        metrics = self.metrics()
        metrics.update(torch.as_tensor(prediction.predictions), torch.as_tensor(prediction.label_ids))
        return metrics.compute()

    def describe(self) -> str:
        """Files, bytes, tokens and blocks of each split, and what was left out, in a few lines."""
        kind = "bytes" if isinstance(self.tokenizer, ByteTokenizer) else "SentencePiece"
        lines = [
            f"lm: {self.corpus.source}",
            f"tokenizer: {kind}, {self.tokenizer.vocab_size:,} ids; blocks of {self.length:,} tokens",
            f"{'split':<12}{'files':>9}{'bytes':>16}{'tokens':>16}{'blocks':>10}{'bytes/token':>13}",
        ]
        for split, dataset in self.splits().items():
            n_bytes, n_tokens = self.bytes_in(split), len(self.stream(split)) - 1
            n_files = len(self.corpus.documents[split])
            row = f"{split:<12}{n_files:>9,}{n_bytes:>16,}{n_tokens:>16,}{len(dataset):>10,}"
            lines.append(f"{row}{n_bytes / n_tokens:>13.2f}")
        if self.corpus.left_out:
            counts = ", ".join(f"{len(names):,} {reason}" for reason, names in self.corpus.left_out.items())
            lines.append(f"files left out: {counts}")
        return "\n".join(lines)

    def _require(self, split: str) -> None:
        if split not in self.corpus.documents:
            raise ValueError(f"no split {split!r}, there are: {', '.join(self.corpus.documents)}")

    def _stream_key(self, split: str) -> str:
        return cache.make_key(_FORMAT, self.corpus.fingerprint(split), self.tokenizer.fingerprint)

    def _stream_folder(self, split: str) -> Path:
        self._require(split)

        def write(folder: Path) -> None:
            write_stream(folder, self.corpus.texts(split), self.tokenizer, self.bytes_in(split), f"tokenise {split}")

        return cache.fetch(self.cache_dir / f"stream-{self._stream_key(split)}", write)

    def _blocks(self, split: str) -> Any:
        self._require(split)
        train = split == "train"
        context = 1 if train else self.eval_context
        key = cache.make_key(_FORMAT, self._stream_key(split), self.length, context, train)

        def write(folder: Path) -> None:
            write_blocks(folder, self.stream(split), self.length, context, keep_tail=not train)

        return read_blocks(cache.fetch(self.cache_dir / f"blocks-{key}", write))
