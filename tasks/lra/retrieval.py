"""Retrieval of the Long Range Arena: does one of two papers of the ACL anthology network (AAN) cite the other?"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.lra.classification import SPLITS
from longconv.tasks.lra.sources import RELEASE_URL, StrPath, find, fingerprint
from longconv.tasks.lra.text import N_BYTE_IDS, encode_bytes
from longconv.tasks.lra.tokens import Tokens, token_batches

FILES = {split: f"new_aan_pairs.{name}.tsv" for split, name in zip(SPLITS, ("train", "eval", "test"), strict=True)}
_FETCH = (
    f"fetch {RELEASE_URL}, unpack it, and give the folder it is unpacked in, or its tsv_data, as data_dir; the Hub's "
    "data set OpenNLPLab/lra has copies of these files in data/aan"
)


class Retrieval(Tokens):
    """Retrieval: pairs of papers, each read byte by byte up to 4,000 steps; label 1 if one cites the other.

    data_dir: the folder with ``new_aan_pairs.{train,eval,test}.tsv``, or one that has it as ``tsv_data``, at any depth
        of ``lra_release``. It has to be given: the data are on the Hub only as a copy by others.
    Other options: see `Classification`.

    Ids are those of `Text` at the level of bytes. A text is cut to 3,999 bytes, and the end-of-text token follows. S4's
    code has 98 ids, 95 characters and three special ones: the released texts are printable ASCII, so that bytes are
    characters. Rows have ``input_ids_1``, ``input_ids_2`` and ``label``; there are 147,086 for training.

    Raises FileNotFoundError, when rows are asked for, if there are no data.
    """

    name = "lra/retrieval"
    n_classes = 2
    vocab_size = N_BYTE_IDS
    is_pair = True

    def __init__(self, *, data_dir: StrPath | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.data_dir = None if data_dir is None else Path(data_dir)

    @property
    def length(self) -> int:
        """4,000, the end-of-text token included."""
        return 4000

    @property
    def source(self) -> str:
        """The folder."""
        return str(self.data_dir)

    def prepare(self, *, verify: bool = False) -> dict[str, list[Path]]:
        """See `Classification`."""
        if self.data_dir is None:
            raise FileNotFoundError(f"{self.name} needs its data: no data_dir was given; {_FETCH}")
        folder = find(self.data_dir, ("tsv_data", "aan"), list(FILES.values()), _FETCH)
        return {split: [self._read(folder / file, split, verify)] for split, file in FILES.items()}

    def _read(self, file: Path, split: str, verify: bool) -> Path:
        def batches() -> Iterator[Any]:
            with self._bar(split, None) as bar:
                yield from token_batches(read_pairs(file, self.length), True, np.uint16, bar)

        return self._stored(f"retrieval-{split}", [fingerprint(file.parent, [file]), self.length], batches, verify)


def read_pairs(file: StrPath, length: int) -> Iterator[tuple[tuple[NDArray[np.uint16], NDArray[np.uint16]], int]]:
    """Rows of a released file: the ids of both texts, and the label.

    A line is label, two ids of papers and their texts, with tabs between; there is no line of names. Quotation marks
    are part of the text, as the Long Range Arena has it.

    Raises ValueError, with file and line, for what is no such line.
    """
    with open(file, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            fields = line.rstrip(b"\r\n").split(b"\t")
            label = {b"0": 0, b"0.0": 0, b"1": 1, b"1.0": 1}.get(fields[0])
            if len(fields) != 5 or label is None:
                raise ValueError(
                    f"{os.fspath(file)}, line {number}: expected label, id, id, text and text with tabs between, got "
                    f"{len(fields)} fields, the first {fields[0][:40]!r}"
                )
            yield (encode_bytes(fields[3], length), encode_bytes(fields[4], length)), label
