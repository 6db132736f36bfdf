"""A small corpus and a small run, shared by the tests of training, distillation and the command line."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small files of repetitive source code: something a tiny model learns in seconds."""
    folder = tmp_path_factory.mktemp("corpus")
    for n in range(40):
        lines = [f"def function_{n}_{i}(x, y):\n    return x + y * {i % 7}\n\n" for i in range(30)]
        (folder / f"file_{n}.py").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep tokenised data out of the user's cache."""
    import os

    os.environ["LONGCONV_CACHE"] = str(tmp_path_factory.mktemp("cache"))
