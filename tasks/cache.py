"""Results kept on disk. A folder in the cache is either whole or not there; a damaged one is built again."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_MANIFEST = "manifest.json"


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """`cache_dir`, else the environment's ``LONGCONV_CACHE``, else ``~/.cache/longconv``."""
    return Path(cache_dir or os.environ.get("LONGCONV_CACHE") or "~/.cache/longconv").expanduser()


def make_key(*parts: Any) -> str:
    """A short hash of JSON-able `parts`: the name of what was computed from them."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]


def fetch(folder: Path, build: Callable[[Path], None], *, verify: bool = False) -> Path:
    """Return `folder` with the files that `build(temporary_folder)` writes; `build` runs only if they are not there.

    The files are written beside `folder` and renamed into place with a manifest of sizes, checksums and times, so a
    killed run leaves nothing half-done, and two processes that build at once both end up with one whole folder. A file
    whose size and time are those of the manifest is taken to be whole, so that tens of gigabytes open at once; the
    checksum of any other is read back, and with `verify` that of every file. A damaged folder gives a warning and is
    built again.
    """
    if folder.exists():
        if _is_whole(folder, verify):
            return folder
        warnings.warn(f"{folder} is damaged and is built again", stacklevel=2)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".building-", dir=folder.parent))
    try:
        build(temporary)
        _write_manifest(temporary, {file.name: _checksum(file) for file in sorted(temporary.iterdir())})
        _install(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _install(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, which another process may have filled in the meantime."""
    if folder.exists():
        if _is_whole(folder, verify=True):
            return
        # A rename first: nobody ever sees the folder half deleted.
        grave = Path(tempfile.mkdtemp(prefix=".damaged-", dir=folder.parent))
        folder.rename(grave / folder.name)
        shutil.rmtree(grave, ignore_errors=True)
    try:
        temporary.rename(folder)
    except OSError:
        if not _is_whole(folder, verify=True):
            raise


def _checksum(file: Path) -> list[int]:
    """Size and CRC-32."""
    crc = 0
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return [file.stat().st_size, crc]


def _write_manifest(folder: Path, checksums: Mapping[str, list[int]]) -> None:
    """Replace the manifest of `folder`: size, CRC-32 and time of modification of each of its files."""
    entries = {name: [*checksum, (folder / name).stat().st_mtime_ns] for name, checksum in checksums.items()}
    handle, temporary = tempfile.mkstemp(prefix=_MANIFEST, dir=folder)
    try:
        with os.fdopen(handle, "w") as stream:
            json.dump(entries, stream)
        os.replace(temporary, folder / _MANIFEST)
    except BaseException:
        os.unlink(temporary)
        raise


def _is_whole(folder: Path, verify: bool) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        stats = {name: (folder / name).stat() for name in manifest}
        # Sizes first: a truncated file is seen without reading gigabytes.
        if any(stats[name].st_size != size for name, (size, *_) in manifest.items()):
            return False
        # A manifest of before times were kept has none.
        changed = [name for name, (_, _, *time) in manifest.items() if time != [stats[name].st_mtime_ns]]
        if any(_checksum(folder / name) != manifest[name][:2] for name in (manifest if verify else changed)):
            return False
    except (OSError, ValueError, AttributeError, TypeError):
        return False
    if changed:
        # Only new times, such as a copy's: the next opening need not read it all again. In a cache that cannot be
        # written to, it has to.
        with contextlib.suppress(OSError):
            _write_manifest(folder, {name: entry[:2] for name, entry in manifest.items()})
    return True
