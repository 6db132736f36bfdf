"""A corpus: local UTF-8 text files, found, read and split.

Text is never changed: line endings, tabs and byte-order marks stay, so that bytes counted are bytes on disk.
"""

import hashlib
import os
import sysconfig
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from longconv.tasks.lm.splitting import SPLITS, cap, cut_one_file, drop_duplicates, split_by_name

StrPath = str | os.PathLike[str]
Data = StrPath | Sequence[StrPath] | Mapping[str, StrPath | Sequence[StrPath]] | None

DEFAULT_SUFFIXES = (".txt", ".md", ".py")
_PACKAGE_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}
# Files written to be unreadable (foreign encodings, broken syntax): input of CPython's tests, not text.
_BROKEN_ON_PURPOSE = {"lib2to3/tests/data", "test/test_lib2to3/data", "test/tokenizedata", "test/encoded_modules"}


@dataclass(frozen=True)
class Document:
    """One document: bytes `start` to `stop` of the file at `path`, valid UTF-8 with the SHA-256 `digest`."""

    name: str  # path below the folder that was given, with "/" on every system
    path: Path
    start: int
    stop: int
    digest: str

    @property
    def n_bytes(self) -> int:
        """Number of UTF-8 bytes."""
        return self.stop - self.start

    def text(self) -> str:
        """Read the text. ValueError if the file has changed since the corpus was opened."""
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            raw = stream.read(self.n_bytes)
        if hashlib.sha256(raw).hexdigest() != self.digest:
            raise ValueError(f"{self.path} has changed since the corpus was opened")
        return raw.decode("utf-8")


@dataclass(frozen=True)
class Corpus:
    """Documents by split (in the order of their names), and the names of the files that were left out, by reason."""

    source: str
    documents: dict[str, tuple[Document, ...]]
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self.documents)

    def bytes_in(self, split: str) -> int:
        """Number of UTF-8 bytes of text in `split`."""
        return sum(document.n_bytes for document in self.documents[split])

    def texts(self, split: str) -> Iterator[str]:
        """The documents of `split` as strings, one at a time."""
        return (document.text() for document in self.documents[split])

    def fingerprint(self, split: str) -> str:
        """Hash of the contents of `split` in their order; the same on every machine with the same documents."""
        return hashlib.sha256("".join(document.digest for document in self.documents[split]).encode()).hexdigest()


def open_corpus(
    data: Data = None,
    *,
    suffixes: Sequence[str] | None = None,
    validation: float = 0.05,
    test: float = 0.05,
    max_bytes: int | None = None,
) -> Corpus:
    """Find, check and split the files of a corpus.

    data: - None: the source of Python's standard library, with its tests (they are 60 % of it, and ordinary code; an
            installation that lacks them gives a smaller corpus), without installed packages. Numbers on it compare only
            between equal Python versions.
          - a folder (recursive; hidden folders and links to folders left out), a file, or a list of them. Files are
            split by a hash of their path below the folder, so a file keeps its split on every machine and when others
            are added. A corpus of one single file is cut in three instead, at line ends: first train, last test.
          - a mapping ``{"train": …, "validation": …, "test": …}`` of such paths: splits that are given.
    suffixes: endings of the files read from folders (default ``.txt .md .py``; ``.py`` for None as data).
    validation, test: fractions of the files, in [0, 1); a split of fraction 0 does not exist.
    max_bytes: at most so many bytes of text in all, shared out over the splits in proportion; whole files only, in an
        order that depends on their names alone.

    Files with equal contents are kept once, in a given mapping in test rather than train. Empty files are left out.
    Files that are not UTF-8 or cannot be read are left out with a warning; `Corpus.left_out` has every name.

    Raises FileNotFoundError for a path that is not there, and ValueError when nothing matches or a split is empty.
    """
    if validation < 0 or test < 0 or validation + test >= 1:
        raise ValueError(f"validation={validation} and test={test} must be at least 0 and add up to less than 1")
    if max_bytes is not None and max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
    left_out: dict[str, list[str]] = {}
    given: dict[str, list[Document]] = {}
    if data is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        found = _read_all([("", root)], suffixes or (".py",), left_out, _outside_standard_library)
        source = f"Python {sysconfig.get_python_version()} standard library, {root}"
    elif isinstance(data, Mapping):
        if unknown := set(data) - set(SPLITS):
            raise ValueError(f"unknown split {min(unknown)!r} in data; the splits are {', '.join(SPLITS)}")
        if "train" not in data:
            raise ValueError("data has no 'train' split")
        for split in SPLITS:
            if split in data:
                given[split] = _read_all(_roots(data[split]), suffixes or DEFAULT_SUFFIXES, left_out)
        source = ", ".join(f"{split}: {path}" for split, path in data.items())
    else:
        roots = _roots(data)
        found = _read_all(roots, suffixes or DEFAULT_SUFFIXES, left_out)
        source = ", ".join(str(path) for _, path in roots)

    if data is not None:
        _warn(left_out, source)
    if given:
        splits, duplicates = drop_duplicates(given)
    else:
        unique, duplicates = drop_duplicates({"all": found})
        one_file = len(unique["all"]) == 1 and len(found) == 1
        splits = (cut_one_file if one_file else split_by_name)(unique["all"], validation, test)
    left_out["duplicate"] = duplicates
    for split, documents in splits.items():
        if not documents:
            raise ValueError(
                f"no file for the {split} split of {source}: give more files, a larger fraction, "
                "or the splits themselves as data={'train': …, 'validation': …, 'test': …}"
            )
    if max_bytes is not None:
        splits = cap(splits, max_bytes)
    return Corpus(
        source,
        {split: tuple(documents) for split, documents in splits.items()},
        {reason: tuple(names) for reason, names in left_out.items() if names},
    )


def _roots(data: StrPath | Sequence[StrPath]) -> list[tuple[str, Path]]:
    """(prefix of the names, path) for each path given; several paths are told apart by their last part."""
    paths = [Path(path).expanduser() for path in ([data] if isinstance(data, str | os.PathLike) else data)]
    if not paths:
        raise ValueError("data is an empty list of paths")
    if len(paths) == 1:
        return [("", paths[0])]
    return [(f"{path.resolve().name}/", path) for path in paths]


def _outside_standard_library(name: str) -> bool:
    return name.rpartition("/")[2] in _PACKAGE_FOLDERS or name in _BROKEN_ON_PURPOSE


def _hidden(name: str) -> bool:
    folder = name.rpartition("/")[2]
    return folder.startswith(".") or folder == "__pycache__"


def _read_all(
    roots: list[tuple[str, Path]],
    suffixes: Sequence[str],
    left_out: dict[str, list[str]],
    skip: Callable[[str], bool] = _hidden,
) -> list[Document]:
    """Every readable, non-empty document below `roots`, sorted by name."""
    wanted = tuple(
        f".{suffix.lower().lstrip('.')}" for suffix in ([suffixes] if isinstance(suffixes, str) else suffixes)
    )
    documents: dict[str, Document] = {}
    for prefix, root in roots:
        if not root.exists():
            raise FileNotFoundError(f"no file or folder {root}: expected UTF-8 text files")
        for relative, path in _files(root, wanted, skip):
            # One spelling of accents, whichever the file system prefers: the name decides the split.
            name = unicodedata.normalize("NFC", relative if prefix and root.is_file() else prefix + relative)
            if name in documents:
                raise ValueError(f"two files are called {name}: {documents[name].path} and {path}")
            try:
                raw = path.read_bytes()
                raw.decode("utf-8")
            except UnicodeDecodeError:
                left_out.setdefault("not UTF-8", []).append(name)
            except OSError:
                left_out.setdefault("unreadable", []).append(name)
            else:
                if raw:
                    documents[name] = Document(name, path, 0, len(raw), hashlib.sha256(raw).hexdigest())
                else:
                    left_out.setdefault("empty", []).append(name)
    if not documents:
        counts = ", ".join(f"{len(names)} {reason}" for reason, names in left_out.items())
        raise ValueError(f"no text in {', '.join(str(path) for _, path in roots)} ({counts})")
    return [documents[name] for name in sorted(documents)]


def _files(root: Path, suffixes: tuple[str, ...], skip: Callable[[str], bool]) -> list[tuple[str, Path]]:
    """(name below root, path) of the matching files; a file that is named itself needs no suffix."""
    if root.is_file():
        return [(root.name, root)]
    files, others = [], Counter[str]()
    for folder, subfolders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        subfolders[:] = sorted(name for name in subfolders if not skip((here / name).as_posix()))
        for name in sorted(names):
            if name.lower().endswith(suffixes):
                files.append(((here / name).as_posix(), Path(folder, name)))
            else:
                others[Path(name).suffix or "no suffix"] += 1
    if not files:
        there = ", ".join(f"{suffix} ({n})" for suffix, n in others.most_common(5)) or "none"
        raise ValueError(f"no file ending in {' '.join(suffixes)} in {root}; files there: {there}")
    return files


def _warn(left_out: dict[str, list[str]], source: str) -> None:
    for reason in ("not UTF-8", "unreadable"):
        if names := left_out.get(reason):
            shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
            warnings.warn(f"files of {source} that are {reason} and left out ({len(names)}): {shown}", stacklevel=3)
