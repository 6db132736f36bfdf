import hashlib
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longconv.tasks.lm import Document, open_corpus
from longconv.tasks.lm.splitting import SPLITS, cap, cut_one_file, drop_duplicates, split_by_name


def _document(name: str, content: str = "", size: int = 1) -> Document:
    return Document(name, Path(name), 0, size, hashlib.sha256((content or name).encode()).hexdigest())


def _where(splits):
    return {document.name: split for split, documents in splits.items() for document in documents}


def test_the_split_of_a_name_is_fixed_for_ever():
    # Written down from the first release: a change moves test documents into everybody's training set.
    names = ["a.py", "b.py", "json/decoder.py", "os.py", "README.md", "x/y/z.txt", "ünï.txt", "c.py"]
    splits = _where(split_by_name([_document(name) for name in names], 0.25, 0.25))
    assert splits == {
        **dict.fromkeys(["a.py", "os.py", "README.md", "x/y/z.txt", "c.py"], "train"),
        **dict.fromkeys(["b.py", "ünï.txt"], "validation"),
        "json/decoder.py": "test",
    }


def test_adding_files_moves_none():
    names = [f"{i}.txt" for i in range(300)]
    few = _where(split_by_name([_document(name) for name in names[:100]], 0.2, 0.2))
    many = _where(split_by_name([_document(name) for name in names], 0.2, 0.2))
    assert few == {name: many[name] for name in few}


def test_fractions_are_met_and_zero_means_no_split():
    documents = [_document(str(i)) for i in range(4000)]
    splits = split_by_name(documents, 0.05, 0.1)
    assert list(splits) == list(SPLITS)
    assert len(splits["validation"]) / 4000 == pytest.approx(0.05, abs=0.01)
    assert len(splits["test"]) / 4000 == pytest.approx(0.1, abs=0.015)
    assert list(split_by_name(documents, 0, 0.1)) == ["train", "test"]
    assert list(split_by_name(documents, 0, 0)) == ["train"]


def test_no_content_in_two_splits(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "corpus")
    for i, file in enumerate(sorted(root.rglob("*.py"))):
        shutil.copy(file, root / f"copy{i}.py")
    corpus = open_corpus(root, validation=0.3, test=0.3)
    contents = [{document.digest for document in documents} for documents in corpus.documents.values()]
    paths = [{document.path for document in documents} for documents in corpus.documents.values()]
    for sets in (contents, paths):
        assert sum(map(len, sets)) == len(set.union(*sets)) == 60
    assert len(corpus.left_out["duplicate"]) == 60


def test_duplicates_stay_in_the_last_split():
    splits = {
        "train": [_document("a", "1"), _document("b", "2"), _document("c", "2"), _document("d", "3")],
        "validation": [_document("e", "3"), _document("f", "4")],
        "test": [_document("g", "4"), _document("h", "1")],
    }
    kept, dropped = drop_duplicates(splits)
    assert list(kept) == list(splits)
    assert {split: [d.name for d in documents] for split, documents in kept.items()} == {
        "train": ["b"],
        "validation": ["e"],
        "test": ["g", "h"],
    }
    assert sorted(dropped) == ["a", "c", "d", "f"]


@given(
    text=st.text(st.sampled_from("ab\n\r é数"), min_size=1, max_size=60),
    fractions=st.sampled_from([(0.1, 0.1), (0.3, 0.4), (0.0, 0.5), (0.5, 0.0)]),
)
def test_one_file_is_cut_without_a_gap(tmp_path_factory, text, fractions):
    file = tmp_path_factory.mktemp("one") / "text"
    raw = text.encode()
    file.write_bytes(raw)
    whole = Document("text", file, 0, len(raw), hashlib.sha256(raw).hexdigest())
    splits = cut_one_file([whole], *fractions)
    assert list(splits) == [s for s, f in zip(SPLITS, (1, *fractions), strict=True) if f]
    parts = [document.text() for documents in splits.values() for document in documents]
    assert "".join(parts) == text


def test_one_file_is_cut_at_line_ends(tmp_path):
    file = tmp_path / "enwik"
    lines = [f"line {i} of a long file\r\n" for i in range(1000)]
    file.write_bytes("".join(lines).encode())
    corpus = open_corpus(file, validation=0.05, test=0.05)
    texts = {split: "".join(corpus.texts(split)) for split in corpus.documents}
    assert "".join(texts.values()) == "".join(lines)
    assert all(text.startswith("line ") and text.endswith("\r\n") for text in texts.values())
    assert len(texts["validation"]) == pytest.approx(0.05 * file.stat().st_size, abs=30)
    assert len(texts["test"]) == pytest.approx(0.05 * file.stat().st_size, abs=30)


def test_cap_takes_whole_documents_in_proportion():
    splits = {
        split: [_document(f"{split}{i}", size=size) for i in range(n)]
        for split, n, size in (("train", 900, 100), ("validation", 50, 100), ("test", 50, 100))
    }
    for max_bytes in (2_000, 10_050, 99_999):
        capped = cap(splits, max_bytes)
        sizes = {split: sum(d.n_bytes for d in documents) for split, documents in capped.items()}
        assert sum(sizes.values()) <= max_bytes
        for split in SPLITS:
            assert 0 <= max_bytes * {"train": 0.9}.get(split, 0.05) - sizes[split] < 100
            assert {d.name for d in capped[split]} <= {d.name for d in splits[split]}
    assert _where(cap(splits, 100_000)) == _where(splits)
    # The same documents whatever their order, and not simply the first ones.
    backwards = {split: documents[::-1] for split, documents in splits.items()}
    assert _where(cap(backwards, 10_000)) == _where(cap(splits, 10_000))
    assert {d.name for d in cap(splits, 2_000)["test"]} != {"test0"}


def test_cap_that_empties_a_split():
    splits = {"train": [_document(str(i), size=10) for i in range(100)], "test": [_document("a", size=1000)]}
    with pytest.raises(ValueError, match="max_bytes=500 leaves 250 bytes for test, whose smallest file has 1,000"):
        cap(splits, 500)
