"""Results kept on disk. A folder in the cache is either whole or not there; a damaged one is built again."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MANIFEST = "manifest.json"


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """`cache_dir`, else the environment's ``LONGCONV_CACHE``, else ``~/.cache/longconv``."""
    return Path(cache_dir or os.environ.get("LONGCONV_CACHE") or "~/.cache/longconv").expanduser()


def make_key(*parts: Any) -> str:
    """A short hash of JSON-able `parts`: the name of what was computed from them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def fetch(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder` with the files that `build(temporary_folder)` writes; `build` runs only if they are not there.

    The files are written beside `folder` and renamed into place with a manifest of sizes and checksums, so a killed run
    leaves nothing half-done, and two processes that build at once both end up with one whole folder. The checksums are
    read back at every call: a damaged folder gives a warning and is built again.
    """
    if folder.exists():
        if _is_whole(folder):
            return folder
        warnings.warn(f"{folder} is damaged and is built again", stacklevel=2)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        build(temporary)
        manifest = {file.name: _checksum(file) for file in sorted(temporary.iterdir())}
        (temporary / _MANIFEST).write_text(json.dumps(manifest))
        _install(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _install(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, which another process may have filled in the meantime."""
    if folder.exists():
        if _is_whole(folder):
            return
        # A rename first: nobody ever sees the folder half deleted.
        grave = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
        folder.rename(grave / folder.name)
        shutil.rmtree(grave, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _checksum(file: Path) -> list[int]:
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return [file.stat().st_size, crc]


def _is_whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        # Sizes first: a truncated file is seen without reading gigabytes.
        return all((folder / name).stat().st_size == size for name, (size, _) in manifest.items()) and all(
            _checksum(folder / name) == expected for name, expected in manifest.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False
