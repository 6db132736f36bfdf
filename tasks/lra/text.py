"""Text of the Long Range Arena: is a film review, read byte by byte, for or against the film (IMDB)?"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from longconv.tasks import cache
from longconv.tasks.lra.classification import FORMAT, SPLITS, permutation
from longconv.tasks.lra.sources import StrPath, find, fingerprint, hub
from longconv.tasks.lra.tokens import Tokens, token_batches

PAD, UNKNOWN, EOS = 0, 1, 2
FIRST_BYTE = 3
N_BYTE_IDS = FIRST_BYTE + 256
LABELS = ("neg", "pos")
_HUB = "stanfordnlp/imdb"
_FETCH = (
    "fetch https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz, unpack it, and give its folder aclImdb as "
    "data_dir"
)
# S4's, configs/dataset/imdb.yaml: characters that are rarer than this in the training texts are <unk>.
_MIN_FREQUENCY = 15


def encode_bytes(text: bytes, length: int) -> NDArray[np.uint16]:
    """Ids of at most `length` - 1 bytes, each 3 more than the byte, and the end-of-text token."""
    ids = np.frombuffer(text[: length - 1], np.uint8).astype(np.uint16) + np.uint16(FIRST_BYTE)
    return np.append(ids, np.uint16(EOS))


class Text(Tokens):
    """Text: 50,000 film reviews of IMDB, half of them for training; label 1 for a good one.

    data_dir: the folder ``aclImdb``, or the one it lies in; default the Hub's ``stanfordnlp/imdb``.
    level: ``"byte"``: padding 0, ``<unk>`` (never used) 1, end-of-text 2 and 256 bytes, 259 ids: the benchmark's task.
        ``"char"``: what S4's code and those that follow it do: characters that are in the training texts 15 times or
        more, from the most frequent one on, about 135 ids; others are 1.
    validation: share of the training texts that is held out. 0, as in the Long Range Arena and in S4's code: the test
        texts are the validation split too, so that a model chosen by it is chosen by its test accuracy.
    Other options: see `Classification`.

    A text is cut to 4,095 bytes or characters, and the end-of-text token follows. Rows have ``input_ids`` and
    ``label``.

    Raises ValueError for wrong options, and FileNotFoundError, when rows are asked for, if there are no data.
    """

    name = "lra/text"
    n_classes = 2

    def __init__(
        self,
        *,
        data_dir: StrPath | None = None,
        level: Literal["byte", "char"] = "byte",
        validation: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if level not in ("byte", "char"):
            raise ValueError(f'level must be "byte" or "char", got {level!r}')
        if not 0 <= validation < 1:
            raise ValueError(f"validation must be at least 0 and less than 1, got {validation}")
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.level, self.validation = level, validation

    @property
    def length(self) -> int:
        """4,096, the end-of-text token included."""
        return 4096

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        """259; for characters as many as there are, which reads the training texts."""
        return N_BYTE_IDS if self.level == "byte" else len(self.vocabulary)

    @property
    def source(self) -> str:
        """The folder or the data set, and what validates."""
        origin = f"the Hub's {_HUB}" if self.data_dir is None else str(self.data_dir)
        return origin + ("; validation is on the test texts" if not self.validation else "")

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Ids of characters, for ``level="char"``; kept in the cache."""

        def count(folder: Path) -> None:
            counts: Counter[str] = Counter()
            for text, _ in self._texts("train"):
                counts.update(text.decode()[: self.length - 1])
            # Equally frequent ones by their code, as torchtext has them.
            known = sorted((char for char in counts if counts[char] >= _MIN_FREQUENCY), key=lambda c: (-counts[c], c))
            ids = {char: FIRST_BYTE + i for i, char in enumerate(known)}
            (folder / "vocabulary.json").write_text(json.dumps(ids), encoding="utf-8")

        folder = self.cache_dir / f"text-vocabulary-{cache.make_key(FORMAT, self._key('train'), _MIN_FREQUENCY)}"
        ids = json.loads((cache.fetch(folder, count) / "vocabulary.json").read_text(encoding="utf-8"))
        return {"<pad>": PAD, "<unk>": UNKNOWN, "<eos>": EOS, **ids}

    def prepare(self, *, verify: bool = False) -> dict[str, list[Path]]:
        """See `Classification`."""
        files = {}
        for split in SPLITS if self.validation else ("train", "test"):
            held_out = self.validation if split != "test" else 0
            # Characters have the numbers that the training texts give them.
            texts = {"test" if split == "test" else "train", *(["train"] if self.level == "char" else [])}
            key = [self.level, held_out, *(self._key(part) for part in sorted(texts))]
            files[split] = [self._stored(f"text-{split}", key, partial(self._batches, split), verify)]
        return {split: files.get(split, files["test"]) for split in SPLITS}

    def _batches(self, split: str) -> Iterator[Any]:
        texts = list(self._texts("test" if split == "test" else "train"))
        if split != "test":
            order = permutation(len(texts))
            n_train = len(texts) - int(self.validation * len(texts))
            kept = np.sort(order[:n_train] if split == "train" else order[n_train:])
            texts = [texts[i] for i in kept]
        with self._bar(split, len(texts)) as bar:
            yield from token_batches((((self._encode(text),), label) for text, label in texts), False, np.uint16, bar)

    def _encode(self, text: bytes) -> NDArray[np.uint16]:
        if self.level == "byte":
            return encode_bytes(text, self.length)
        get = self.vocabulary.get
        return np.array([*(get(char, UNKNOWN) for char in text.decode()[: self.length - 1]), EOS], np.uint16)

    def _folder(self) -> Path:
        assert self.data_dir is not None
        needed = [f"{split}/{label}" for split in ("train", "test") for label in LABELS]
        return find(self.data_dir, ("aclImdb",), needed, _FETCH)

    def _files(self, part: str) -> list[tuple[Path, int]]:
        """Texts of ``"train"`` or ``"test"`` and their labels."""
        folder = self._folder() / part
        files = [(file, label) for label, name in enumerate(LABELS) for file in sorted((folder / name).glob("*.txt"))]
        if not files:
            raise FileNotFoundError(f"no .txt files in {folder / LABELS[0]} and {folder / LABELS[1]}; {_FETCH}")
        return files

    def _key(self, part: str) -> list[str]:
        if self.data_dir is None:
            return ["hub", _HUB, part]
        return ["folder", fingerprint(self._folder(), [file for file, _ in self._files(part)])]

    def _texts(self, part: str) -> Iterator[tuple[bytes, int]]:
        if self.data_dir is None:
            for row in hub(_HUB, part, self.name, _FETCH):
                yield row["text"].encode(), row["label"]
        else:
            for file, label in self._files(part):
                yield file.read_bytes(), label
