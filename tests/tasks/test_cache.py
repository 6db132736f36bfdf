import json
import os
import shutil
from pathlib import Path

import pytest

from longconv.tasks import cache


class Builder:
    def __init__(self, text: str = "content") -> None:
        self.text, self.runs = text, 0

    def __call__(self, folder: Path) -> None:
        self.runs += 1
        (folder / "a").write_text(self.text)
        (folder / "b").write_text("b" * 10)


def test_builds_once(tmp_path):
    build = Builder()
    for _ in range(3):
        folder = cache.fetch(tmp_path / "deep" / "result", build)
        assert (folder / "a").read_text() == "content"
    assert build.runs == 1
    assert [path.name for path in folder.parent.iterdir()] == ["result"]


def _truncate(folder: Path) -> None:
    (folder / "a").write_text("cont")


def _flip(folder: Path) -> None:
    (folder / "a").write_text("Content")


def _lose(folder: Path) -> None:
    (folder / "b").unlink()


def _lose_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _spoil_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2")


def _other_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps([1]))


@pytest.mark.parametrize("damage", [_truncate, _flip, _lose, _lose_manifest, _spoil_manifest, _other_manifest])
def test_damage_is_seen_and_repaired(tmp_path, damage):
    build = Builder()
    folder = cache.fetch(tmp_path / "result", build)
    damage(folder)
    with pytest.warns(UserWarning, match="is damaged and is built again"):
        cache.fetch(folder, build)
    assert build.runs == 2
    assert (folder / "a").read_text() == "content"
    assert cache.fetch(folder, build) == folder
    assert build.runs == 2
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fetch(tmp_path / "result", build)
    assert not list(tmp_path.iterdir())


def test_the_first_of_two_builders_wins(tmp_path):
    target = tmp_path / "result"

    def build(folder: Path) -> None:
        cache.fetch(target, Builder("the other process"))
        Builder("this process")(folder)

    assert (cache.fetch(target, build) / "a").read_text() == "the other process"
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


def test_key_depends_on_every_part():
    parts = [1, "bytes", 258]
    keys = {cache.make_key(*parts), cache.make_key(2, *parts[1:]), cache.make_key(1, "byte", 258), cache.make_key(1)}
    assert len(keys) == 4
    assert cache.make_key(*parts) == cache.make_key(*parts)


def test_root(monkeypatch, tmp_path):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path))
    assert cache.cache_root() == tmp_path
    assert cache.cache_root(tmp_path / "x") == tmp_path / "x"
    monkeypatch.delenv("LONGCONV_CACHE")
    assert cache.cache_root() == Path.home() / ".cache" / "longconv"


def test_the_folder_appears_whole(tmp_path):
    built = {}

    def build(folder: Path) -> None:
        assert not (tmp_path / "result").exists()
        Builder()(folder)
        built["inode"] = (folder / "a").stat().st_ino

    # A rename keeps the file; a copy would be visible half done.
    assert (cache.fetch(tmp_path / "result", build) / "a").stat().st_ino == built["inode"]


def test_a_copied_cache_is_whole(tmp_path):
    folder = cache.fetch(tmp_path / "result", Builder())
    build = Builder()
    cache.fetch(shutil.copytree(folder, tmp_path / "copy"), build)
    assert build.runs == 0


def _count_checksums(monkeypatch) -> list[str]:
    read, checksum = [], cache._checksum
    monkeypatch.setattr(cache, "_checksum", lambda file: read.append(file.name) or checksum(file))
    return read


def test_opening_reads_no_file(tmp_path, monkeypatch):
    folder = cache.fetch(tmp_path / "result", Builder())
    read = _count_checksums(monkeypatch)
    cache.fetch(folder, Builder())
    assert read == []
    cache.fetch(folder, Builder(), verify=True)
    assert read == ["a", "b"]


def test_a_file_of_another_time_is_read_once(tmp_path, monkeypatch):
    folder, build = cache.fetch(tmp_path / "result", Builder()), Builder()
    os.utime(folder / "a", ns=(1, 1))
    read = _count_checksums(monkeypatch)
    for _ in range(2):
        cache.fetch(folder, build)
    assert (read, build.runs) == (["a"], 0)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "manifest.json"]


def test_a_manifest_without_times_is_whole(tmp_path, monkeypatch):
    """As it was written before there were any."""
    folder, build = cache.fetch(tmp_path / "result", Builder()), Builder()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({name: entry[:2] for name, entry in manifest.items()}))
    read = _count_checksums(monkeypatch)
    for _ in range(2):
        cache.fetch(folder, build)
    assert (read, build.runs) == (["a", "b"], 0)


def test_damage_that_keeps_size_and_time_is_seen_by_verify(tmp_path):
    folder, build = cache.fetch(tmp_path / "result", Builder()), Builder()
    time = (folder / "a").stat().st_mtime_ns
    _flip(folder)
    os.utime(folder / "a", ns=(time, time))
    cache.fetch(folder, build)
    assert build.runs == 0
    with pytest.warns(UserWarning, match="is damaged and is built again"):
        cache.fetch(folder, build, verify=True)
    assert (folder / "a").read_text() == "content"
