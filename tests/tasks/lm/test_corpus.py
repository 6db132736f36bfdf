import os
import shutil
import sys
from pathlib import Path

import pytest

from longconv.tasks.lm import Corpus, open_corpus


def _layout(corpus: Corpus) -> dict[str, list[str]]:
    return {split: [document.name for document in documents] for split, documents in corpus.documents.items()}


def _write(root: Path, files: dict[str, bytes]) -> Path:
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw)
    return root


def test_every_file_once_and_unchanged(folder):
    corpus = open_corpus(folder, validation=0.2, test=0.2)
    read = {
        document.name: text.encode()
        for split in corpus.documents
        for document, text in zip(corpus.documents[split], corpus.texts(split), strict=True)
    }
    on_disk = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.py")}
    assert read == on_disk
    assert any(b"\r\n" in raw for raw in read.values())
    assert any(b"\t" in raw for raw in read.values())
    total = sum(corpus.bytes_in(split) for split in corpus.documents)
    assert total == sum(file.stat().st_size for file in folder.rglob("*.py"))
    assert all(names == sorted(names) for names in _layout(corpus).values())


def test_fingerprint_is_of_the_contents_of_one_split(folder, tmp_path):
    first = open_corpus(folder, validation=0.2, test=0.2)
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    assert [open_corpus(copy, validation=0.2, test=0.2).fingerprint(split) for split in first.documents] == [
        first.fingerprint(split) for split in first.documents
    ]
    changed = copy / first.documents["test"][0].name
    changed.write_bytes(changed.read_bytes() + b"!")
    second = open_corpus(copy, validation=0.2, test=0.2)
    assert second.fingerprint("train") == first.fingerprint("train")
    assert second.fingerprint("test") != first.fingerprint("test")


def test_left_out_files_are_named_and_unreadable_text_warned_of(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "corpus")
    _write(root, {"sub/latin.py": "é".encode("latin-1"), "empty.py": b"", "notes.rst": b"x", ".git/a.py": b"hidden"})
    _write(root, {"__pycache__/b.py": b"cached", "twin.py": (root / "package0/module0.py").read_bytes()})
    (root / "dangling.py").symlink_to(root / "nowhere")
    with pytest.warns(UserWarning, match="left out") as caught:
        corpus = open_corpus(root)
    messages = [str(warning.message) for warning in caught]
    assert len(messages) == 2
    assert "not UTF-8 and left out (1): sub/latin.py" in messages[0]
    assert "unreadable and left out (1): dangling.py" in messages[1]
    assert corpus.left_out == {
        "not UTF-8": ("sub/latin.py",),
        "unreadable": ("dangling.py",),
        "empty": ("empty.py",),
        "duplicate": ("twin.py",),
    }
    assert not any("hidden" in text or "cached" in text for split in corpus.documents for text in corpus.texts(split))


def test_suffixes(tmp_path):
    root = _write(tmp_path / "c", {f"{i}.{ext}": f"{i} {ext}\n".encode() for i in range(20) for ext in ("c", "H", "h")})
    with pytest.raises(ValueError, match=r"no file ending in .txt .md .py in .*; files there: .*\.c \(20\)"):
        open_corpus(root)
    corpus = open_corpus(root, suffixes=("h",), test=0.3, validation=0.3)
    assert {Path(name).suffix for names in _layout(corpus).values() for name in names} == {".h", ".H"}
    assert _layout(open_corpus(root, suffixes=".h", test=0.3, validation=0.3)) == _layout(corpus)


def test_a_folder_named_like_a_suffix_is_not_a_match(tmp_path):
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match=r"files there: none"):
        open_corpus(tmp_path)


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a.txt": b""}, {}, r"no text in .*\(1 empty\)"),
        ({"a.txt": b"x", "b.txt": b"y"}, {}, r"no file for the .* split"),
        ({"a.txt": b"x"}, {"validation": 0.6, "test": 0.4}, "add up to less than 1"),
        ({"a.txt": b"x"}, {"validation": -0.1}, "at least 0"),
        ({"a.txt": b"x"}, {"max_bytes": 0}, "max_bytes must be at least 1"),
    ],
)
def test_errors(tmp_path, files, options, message):
    with pytest.raises(ValueError, match=message) as error:
        open_corpus(_write(tmp_path, files), **options)
    assert "\n" not in str(error.value)


def test_undecodable_file_given_by_name(tmp_path):
    file = _write(tmp_path, {"enwik": b"\xff\xfe"}) / "enwik"
    with pytest.raises(ValueError, match="1 not UTF-8"):
        open_corpus(file)


def test_missing_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder .*nowhere: expected UTF-8 text files"):
        open_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="empty list"):
        open_corpus([])


def test_several_paths(folder, tmp_path):
    other = _write(tmp_path / "other", {f"{i}.txt": f"text {i}".encode() for i in range(30)})
    single = _write(tmp_path, {"one.log": b"a log file\n"}) / "one.log"
    corpus = open_corpus([folder, other, single], validation=0.2, test=0.2)
    names = {name for names in _layout(corpus).values() for name in names}
    assert len(names) == 60 + 30 + 1
    assert {"other/0.txt", "one.log", f"{folder.name}/package0/module0.py"} <= names
    with pytest.raises(ValueError, match=r"two files are called other/0.txt"):
        open_corpus([other, shutil.copytree(other, tmp_path / "b" / "other")])


def test_given_splits(tmp_path):
    _write(tmp_path, {"train/a.txt": b"train a", "train/same.txt": b"same", "held/b.txt": b"same", "t.txt": b"test"})
    data = {"test": tmp_path / "t.txt", "train": tmp_path / "train", "validation": [tmp_path / "held"]}
    corpus = open_corpus(data)
    assert {split: list(corpus.texts(split)) for split in corpus.documents} == {
        "train": ["train a"],
        "validation": ["same"],
        "test": ["test"],
    }
    assert list(corpus.documents) == ["train", "validation", "test"]
    assert corpus.left_out == {"duplicate": ("same.txt",)}
    assert list(open_corpus({"train": tmp_path / "train"}).documents) == ["train"]
    with pytest.raises(ValueError, match="unknown split 'dev' in data; the splits are train, validation, test"):
        open_corpus({"train": tmp_path / "train", "dev": tmp_path / "held"})
    with pytest.raises(ValueError, match="data has no 'train' split"):
        open_corpus({"test": tmp_path / "train"})


def test_a_file_that_changes_afterwards_is_noticed(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "corpus")
    corpus = open_corpus(root)
    document = corpus.documents["train"][0]
    document.path.write_bytes(b"?" + document.path.read_bytes()[1:])
    with pytest.raises(ValueError, match="has changed since the corpus was opened"):
        document.text()


@pytest.mark.skipif(os.name == "nt", reason="POSIX file names")
def test_names_that_are_not_text(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "corpus")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.py")).write_bytes(b"odd name")
    assert sum(map(len, _layout(open_corpus(root)).values())) == 61


def test_standard_library_is_the_default():
    corpus = open_corpus(max_bytes=2_000_000)
    names = [name for names in _layout(corpus).values() for name in names]
    assert 1_000_000 < sum(corpus.bytes_in(split) for split in corpus.documents) <= 2_000_000
    assert all(name.endswith(".py") for name in names)
    assert not any("-packages/" in name or "tokenizedata" in name for name in names)
    assert f"Python {sys.version_info.major}.{sys.version_info.minor} standard library" in corpus.source
    assert _layout(open_corpus(max_bytes=2_000_000)) == _layout(corpus)
