"""ListOps as a task: generated, or read from the released files."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from longconv.tasks import cache
from longconv.tasks.lra import listops
from longconv.tasks.lra.classification import FORMAT, SPLITS, check_sizes, write_rows
from longconv.tasks.lra.random import Stream
from longconv.tasks.lra.sources import RELEASE_URL, StrPath, find, fingerprint
from longconv.tasks.lra.tokens import Tokens, token_batches

FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
_FETCH = (
    f"fetch {RELEASE_URL}, unpack it, and give the folder it is unpacked in, or its listops-1000, as data_dir; "
    "without data_dir the data are generated here"
)


class ListOps(Tokens):
    """ListOps: what a nested expression of about 1,000 tokens evaluates to, 0 … 9.

    sizes: rows of train, validation and test that are generated; default those of the published data.
    seed: what is generated depends on it and on the settings, on nothing else.
    config: which expressions, a `ListOpsConfig` or a mapping of its fields; default those of the Long Range Arena.
    data_dir: read the released files instead, ``listops-1000/basic_{train,val,test}.tsv`` at any depth of
        ``lra_release``; then `sizes` and `seed` cannot be chosen, and of `config` only the length counts.
    Other options: see `Classification`.

    Rows have ``input_ids``, with the end-of-text token at the end, and ``label``; no generated expression is there
    twice. Raises ValueError for wrong options.
    """

    name = "lra/listops"
    n_classes = listops.N_CLASSES
    vocab_size = len(listops.VOCABULARY)
    default_sizes = (96_000, 2_000, 2_000)

    def __init__(
        self,
        *,
        sizes: Sequence[int] | None = None,
        seed: int = 0,
        config: listops.ListOpsConfig | Mapping[str, int] | None = None,
        data_dir: StrPath | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.sizes = check_sizes(sizes, self.default_sizes)
        Stream(seed)  # raises for a seed that is none
        self.seed = seed
        self.config = config if isinstance(config, listops.ListOpsConfig) else listops.ListOpsConfig(**(config or {}))
        self.data_dir = None if data_dir is None else Path(data_dir)
        if data_dir is not None and sizes is not None:
            raise ValueError(f"sizes are those of generated data; data_dir {data_dir} has its own")

    @property
    def length(self) -> int:
        """The longest sequence: ``max_length - 1`` tokens and the end-of-text token."""
        return self.config.max_length

    @property
    def source(self) -> str:
        """The seed, or the folder."""
        return f"seed {self.seed}, generated" if self.data_dir is None else str(self.data_dir)

    def prepare(self, *, verify: bool = False) -> dict[str, list[Path]]:
        """See `Classification`. What is generated is one piece of work: no expression may be there twice."""
        if self.data_dir is not None:
            folder = find(self.data_dir, ("listops-1000", "listops"), list(FILES.values()), _FETCH)
            return {split: [self._read(folder / file, split, verify)] for split, file in FILES.items()}
        key = cache.make_key(FORMAT, asdict(self.config), self.seed, self.sizes)
        folder = cache.fetch(self.cache_dir / f"listops-{key}", self._generate, verify=verify)
        return {split: [folder / f"{split}.arrow"] for split in SPLITS}

    def _generate(self, folder: Path) -> None:
        total = sum(self.sizes.values())
        parts = listops.generate_parts(total, self.seed, config=self.config, workers=self.workers)
        rows = (
            ((np.append(part[i][0], np.uint8(listops.EOS)),), part[i][1]) for part in parts for i in range(len(part))
        )
        for split, size in self.sizes.items():
            with self._bar(split, size) as bar:
                some = (row for _, row in zip(range(size), rows, strict=False))
                write_rows(folder / f"{split}.arrow", token_batches(some, False, np.uint8, bar))

    def _read(self, file: Path, split: str, verify: bool) -> Path:
        def batches() -> Iterator[Any]:
            with self._bar(split, None) as bar:
                yield from token_batches(read_expressions(file, self.length), False, np.uint8, bar)

        key = ["released", fingerprint(file.parent, [file]), self.length]
        return self._stored(f"listops-{split}", key, batches, verify)


_PLACEHOLDERS = {operator.encode(): bytes([128 + i]) for i, operator in enumerate(listops.OPERATORS)}
# Every byte to the id of the token that it is, or that it stands for; 255 for what is no token.
_IDS = bytearray([255] * 256)
for _i, _token in enumerate(listops.VOCABULARY):
    if len(_token) == 1:
        _IDS[ord(_token)] = _i
    elif _token in listops.OPERATORS:
        _IDS[_PLACEHOLDERS[_token.encode()][0]] = _i
_TWO_DIGITS = re.compile(rb"\d\d")


def read_expressions(file: StrPath, length: int) -> Iterator[tuple[tuple[Any], int]]:
    """Rows of a released file: tokens and end-of-text token (uint8), and the label.

    A line is ``( ( ( [MED 1 ) 5 ) ] )``, a tab and the value; the first line names the columns. Parentheses are
    dropped, as the Long Range Arena does.

    Raises ValueError, with file and line, for what is no such line and for more than `length` tokens.
    """
    end = bytes([listops.EOS])
    with open(file, "rb") as stream:
        if (header := stream.readline().rstrip(b"\r\n")) != b"Source\tTarget":
            raise ValueError(f"{os.fspath(file)} must begin with the line Source<tab>Target, got {header[:60]!r}")
        for number, line in enumerate(stream, start=2):
            source, tab, target = line.rstrip(b"\r\n").partition(b"\t")
            ids = source
            for operator, placeholder in _PLACEHOLDERS.items():
                ids = ids.replace(operator, placeholder)
            ids = ids.translate(_IDS, b"() ") + end
            if not line.isascii() or not tab or 255 in ids or len(ids) == 1 or len(target) != 1 or not target.isdigit():
                raise ValueError(f"{os.fspath(file)}, line {number}: no expression and its value: {line[:80]!r}")
            if _TWO_DIGITS.search(source):
                raise ValueError(f"{os.fspath(file)}, line {number}: a number of two digits")
            if len(ids) > length:
                raise ValueError(f"{os.fspath(file)}, line {number}: {len(ids)} tokens, more than {length}")
            yield (np.frombuffer(ids, np.uint8),), int(target)
