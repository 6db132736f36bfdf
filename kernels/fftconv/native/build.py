"""Build of the C sources in this folder, once for each machine, and the library it gives.

At the first convolution of a process that could use them, the sources are compiled by the C compiler that Triton and
`torch.compile` use too (``CC``, cc, gcc or clang), which takes a second; the result stays in the cache folder
(``LONGCONV_CACHE``, or ``longconv`` in the user's cache) for all later ones. Without a compiler, without the OpenMP
library that PyTorch has loaded, or with ``LONGCONV_NATIVE=0``, there is no such library, and convolutions are computed
by PyTorch's operators.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import lru_cache
from pathlib import Path

from ...gpu.choose import cache_folder

# Vectors as wide as the processor's; nothing that would reorder sums, or change what NaN and infinity do.
PROCESSOR = "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"
FLAGS = ("-O3", PROCESSOR, "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-fPIC", "-shared")
SOURCES = ("rows.c", "transform.h", "samples.h")
SECONDS = 120


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled library, or None where there can be none; a warning says so if the compiler fails."""
    if os.environ.get("LONGCONV_NATIVE", "1") == "0" or not sys.platform.startswith("linux"):
        return None
    compiler = find_compiler()
    if compiler is None or openmp() is None:
        return None
    try:
        return ctypes.CDLL(str(build(compiler)))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", "") or ""
        warnings.warn(
            f"longconv: its C code could not be built, so convolutions are slower: {error}\n{output}", stacklevel=2
        )
        return None


def find_compiler() -> str | None:
    """The path of a C compiler."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def build(compiler: str) -> Path:
    """Compile the sources, unless that has been done, and return the library's path.

    Raises:
        OSError: no folder to write to.
        subprocess.SubprocessError: the compiler failed, or took too long.
    """
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for part in (compiler, *FLAGS, _processor(), *((folder / name).read_text() for name in SOURCES)):
        digest.update(part.encode() + b"\0")
    name = f"rows-{digest.hexdigest()[:16]}.so"
    for cache in _cache_folders():
        path = cache / name
        try:
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours(cache):
                continue
            if path.exists():
                return path
            handle, part_file = tempfile.mkstemp(".so", dir=cache)
        except OSError:
            continue  # cannot be made or written to
        os.close(handle)
        command = [compiler, *FLAGS, "-o", part_file, str(folder / SOURCES[0])]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
            os.replace(part_file, path)  # whole or not at all, also when several processes build it
        finally:
            Path(part_file).unlink(missing_ok=True)
        return path
    raise OSError("no cache folder can be written to")


@lru_cache(maxsize=1)
def openmp() -> int | None:
    """The address of GOMP_parallel in the OpenMP library that PyTorch runs its threads with, if it is loaded."""
    try:
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    except OSError:
        return None
    for path in sorted(mapped):
        if any(name in Path(path).name for name in ("gomp", "iomp5", "libomp")):
            try:
                return ctypes.cast(ctypes.CDLL(path).GOMP_parallel, ctypes.c_void_p).value
            except (OSError, AttributeError):
                continue
    return None


def _cache_folders() -> list[Path]:
    """Where to look and to write, in this order: a home may be read-only, but a folder that was asked for is meant."""
    asked_for = "LONGCONV_CACHE" in os.environ
    return [cache_folder(), *([] if asked_for else [Path(tempfile.gettempdir()) / f"longconv-{os.getuid()}"])]


def _ours(folder: Path) -> bool:
    """Whether it is not for anybody to put a library there: what is found in it is run."""
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o002


def _processor() -> str:
    """What -march=native depends on: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    told = {line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part")}
    return platform.machine() + "".join(sorted(told))
