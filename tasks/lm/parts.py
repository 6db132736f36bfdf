"""Where texts come from, in parts that can be read one without the other, in any process: each part becomes one shard.

A part of a file is described by its name, size and time, and read only when its shard is made.
"""

import gzip
import hashlib
import io
import itertools
import json
import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from longconv.tasks.extras import require
from longconv.tasks.lm.corpus import Document

COMPRESSED = (".gz", ".zst", ".zip")
# Bytes on disk that make one part: small enough that a killed build loses little, large enough to have few files.
PART_BYTES = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Part(ABC):
    """Documents that are read one after the other.

    split: the split they all belong to, or None where a hash of each text says it (`Records.split_of`).
    limit: at most so many bytes of text: reading ends before the first document that would be too much.
    """

    split: str | None = None
    limit: int | None = None

    def texts(self) -> Iterator[str]:
        """The documents in their order; empty ones are left out."""
        left = self.limit
        for text in self._read():
            if not text:
                continue
            if left is not None:
                left -= len(text.encode("utf-8"))
                if left < 0:
                    return
            yield text

    @abstractmethod
    def _read(self) -> Iterator[str]:
        """All documents."""

    @abstractmethod
    def identity(self) -> list[Any]:
        """What decides the texts, besides `limit`; JSON-able."""

    @property
    @abstractmethod
    def size(self) -> int:
        """About how much there is to read, in bytes: what `max_bytes` is shared out by."""


@dataclass(frozen=True)
class File:
    """A file as it was when the corpus was opened; `name` is its path below the folder that was given."""

    path: Path
    name: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> "File":
        """Look at the file at `path`."""
        stat = path.stat()
        return cls(path, path.name if name is None else name, stat.st_size, stat.st_mtime_ns)

    def identity(self) -> list[Any]:
        """Changes when the file does."""
        return [self.name, self.size, self.mtime_ns]

    def open(self) -> BinaryIO:
        """Open for reading, unpacked. ValueError if it is not what it was, or an archive of several files."""
        stat = self.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.size, self.mtime_ns):
            raise ValueError(f"{self.path} has changed since the corpus was opened")
        return open_unpacked(self.path)


def open_unpacked(path: Path) -> BinaryIO:
    """Open `path` for reading bytes; ``.gz``, ``.zst`` and ``.zip`` files are unpacked on the way.

    Raises ValueError for an archive that has not exactly one file.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".zst":
        stream = require("pyarrow").input_stream(os.fspath(path), compression="zstd")
        return io.BufferedReader(stream, 1 << 20)
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) != 1:
                raise ValueError(f"{path} holds {len(members)} files: unpack it, and give the folder")
            return cast(BinaryIO, archive.open(members[0]))
    return path.open("rb")


@dataclass(frozen=True, kw_only=True)
class DocumentsPart(Part):
    """Documents of a `Corpus`, known by their contents."""

    documents: tuple[Document, ...]

    def _read(self) -> Iterator[str]:
        return (document.text() for document in self.documents)

    def identity(self) -> list[Any]:
        """The hash of the contents."""
        return ["documents", hashlib.sha256("".join(d.digest for d in self.documents).encode()).hexdigest()]

    @property
    def size(self) -> int:
        """See `Part.size`."""
        return sum(document.n_bytes for document in self.documents)


@dataclass(frozen=True, kw_only=True)
class TextsPart(Part):
    """Text files, each one document, perhaps packed."""

    files: tuple[File, ...]

    def _read(self) -> Iterator[str]:
        for file in self.files:
            with file.open() as stream:
                yield decode(stream.read(), file.path)

    def identity(self) -> list[Any]:
        """Names, sizes and times."""
        return ["texts", *(file.identity() for file in self.files)]

    @property
    def size(self) -> int:
        """See `Part.size`."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class CutPart(Part):
    """Bytes `start` to `stop` of one text (unpacked) as one document."""

    file: File
    start: int
    stop: int

    def _read(self) -> Iterator[str]:
        with self.file.open() as stream:
            # Not seek: of a packed stream that may not work, and would read as much.
            left = self.start
            while left and (skipped := len(stream.read(min(left, 1 << 24)))):
                left -= skipped
            yield decode(stream.read(self.stop - self.start), self.file.path)

    def identity(self) -> list[Any]:
        """The file and the place."""
        return ["cut", self.file.identity(), self.start, self.stop]

    @property
    def size(self) -> int:
        """See `Part.size`."""
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class JsonLinesPart(Part):
    """One JSON object a line, its text in `field`: the lines that begin in bytes `start` to `stop` (None: all)."""

    file: File
    field: str
    start: int = 0
    stop: int | None = None

    def _read(self) -> Iterator[str]:
        with self.file.open() as stream:
            if self.start:
                # The line that begins before `start` belongs to the part before.
                stream.seek(self.start - 1)
                stream.readline()
            position = stream.tell() if self.stop is not None else 0
            while self.stop is None or position < self.stop:
                line = stream.readline()
                if not line:
                    return
                if line.strip():
                    yield self._text(line, position)
                position += len(line)

    def _text(self, line: bytes, position: int) -> str:
        where = f"{self.file.path}, byte {position:,}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where}: not a line of JSON ({error})") from error
        if not isinstance(row, dict) or self.field not in row:
            there = ", ".join(map(repr, row)) if isinstance(row, dict) else type(row).__name__
            raise ValueError(f"{where}: no field {self.field!r} (text_field); there is: {there}")
        return text_of(row[self.field], self.field, where)

    def identity(self) -> list[Any]:
        """The file, the place and the field."""
        return ["json", self.file.identity(), self.start, self.stop, self.field]

    @property
    def size(self) -> int:
        """See `Part.size`."""
        return (self.file.size if self.stop is None else self.stop) - self.start


@dataclass(frozen=True, kw_only=True)
class ParquetPart(Part):
    """Row groups `first` to `last` of a Parquet file; `bytes` is their share of its size."""

    file: File
    field: str
    first: int
    last: int
    bytes: int

    def _read(self) -> Iterator[str]:
        with self.file.open() as stream:
            table = require("pyarrow.parquet").ParquetFile(stream)
            groups = list(range(self.first, self.last))
            for batch in table.iter_batches(batch_size=256, row_groups=groups, columns=[self.field]):
                for value in batch.column(0).to_pylist():
                    yield text_of(value, self.field, os.fspath(self.file.path))

    def identity(self) -> list[Any]:
        """The file, the place and the field."""
        return ["parquet", self.file.identity(), self.first, self.last, self.field]

    @property
    def size(self) -> int:
        """See `Part.size`."""
        return self.bytes


def decode(raw: bytes, path: Path) -> str:
    """`raw` as UTF-8; ValueError that names the file."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error})") from error


def text_of(value: Any, field: str, where: str) -> str:
    """The text of a record, "" where it is null; ValueError for anything that has no UTF-8."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: field {field!r} holds a {type(value).__name__}, not text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{where}: field {field!r} holds half a character, which has no UTF-8 ({error})") from error
    return value


def kind_of(name: str) -> str | None:
    """What a file with this name holds: "json", "parquet", "text" (packed text), or None for a plain file."""
    lower = name.lower()
    packed = lower.endswith(COMPRESSED)
    stem = lower.rpartition(".")[0] if packed else lower
    if stem.endswith((".jsonl", ".ndjson")) or (packed and stem.endswith(".json")):
        return "json"
    if lower.endswith(".parquet"):
        return "parquet"
    return "text" if packed else None


def parts_of(files: Sequence[File], field: str, split: str | None) -> list[Part]:
    """`files` in parts of about `PART_BYTES`, each with documents of `split` whose text is in `field`."""
    parts: list[Part] = []
    texts: list[File] = []
    for file in files:
        kind = kind_of(file.name)
        if kind == "json":
            parts += _json_parts(file, field, split)
        elif kind == "parquet":
            parts += _parquet_parts(file, field, split)
        else:
            texts.append(file)
            if sum(text.size for text in texts) >= PART_BYTES:
                parts.append(TextsPart(split=split, files=tuple(texts)))
                texts = []
    if texts:
        parts.append(TextsPart(split=split, files=tuple(texts)))
    return parts


def _json_parts(file: File, field: str, split: str | None) -> list[Part]:
    if file.name.lower().endswith(COMPRESSED) or not file.size:
        return [JsonLinesPart(split=split, file=file, field=field)]
    cuts = [*range(0, file.size, PART_BYTES), file.size]
    return [
        JsonLinesPart(split=split, file=file, field=field, start=start, stop=stop)
        for start, stop in itertools.pairwise(cuts)
    ]


def _parquet_parts(file: File, field: str, split: str | None) -> list[Part]:
    metadata = require("pyarrow.parquet").ParquetFile(file.path)
    columns = metadata.schema_arrow.names
    if field not in columns:
        raise ValueError(f"{file.path} has no column {field!r} (text_field); there is: {', '.join(columns)}")
    rows = [metadata.metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    parts: list[Part] = []
    first = held = 0
    for i, n in enumerate(rows):
        held += file.size * n // max(sum(rows), 1)
        if held >= PART_BYTES or i == len(rows) - 1:
            part = ParquetPart(split=split, file=file, field=field, first=first, last=i + 1, bytes=max(held, 1))
            parts.append(part)
            first, held = i + 1, 0
    return parts
