"""A small corpus of made-up source files, and a cache that is not the user's."""

import random
from pathlib import Path

import pytest

WORDS = ["self", "return", "value", "import", "compute", "stream", "window", "kernel", "length", "naïve", "数据"]


def make_corpus(root: Path, n_files: int = 60, seed: int = 0) -> Path:
    """`n_files` files of indented lines with tabs, empty lines, non-ASCII letters and both kinds of line ends."""
    draw = random.Random(seed)
    for i in range(n_files):
        end = "\r\n" if i % 7 == 0 else "\n"
        lines = [
            draw.choice(["", "    ", "        ", "\t", "\t\t"]) + " ".join(draw.choices(WORDS, k=draw.randint(0, 8)))
            for _ in range(draw.randint(5, 40))
        ]
        file = root / f"package{i % 5}" / f"module{i}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((f"# file {i}{end}" + end.join(lines) + (end if i % 3 else "")).encode())
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))
