"""Build of C sources, once for each machine, and the libraries it gives.

When a process first needs one, it is compiled by the C compiler that Triton and `torch.compile` use too (``CC``, cc,
gcc or clang), which takes a second; the result stays in the cache folder (``LONGCONV_CACHE``, or ``longconv`` in the
user's cache) for all later ones. Without a compiler, without the OpenMP library that PyTorch has loaded, or with
``LONGCONV_NATIVE=0``, there are no such libraries, and PyTorch's operators do the work.
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
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from ..gpu.choose import cache_folder

# Vectors as wide as the processor's; nothing that would reorder sums, or change what NaN and infinity do.
PROCESSOR = "-march=native" if platform.machine() in ("x86_64", "AMD64", "i686") else "-mcpu=native"
FLAGS = ("-O3", PROCESSOR, "-fno-math-errno", "-fno-trapping-math", "-std=gnu11", "-fPIC", "-shared")
SECONDS = 120
SHARED = Path(__file__).parent  # its headers are every source's
#: Why there is no library.
MISSING = "there is no compiled library (no C compiler, another system than Linux, or LONGCONV_NATIVE=0)"


class Native:
    """A library of one C file, compiled and tried out when it is first asked for.

    Args:
        source: the C file; it may include what stands beside it, and the headers of this folder.
        job: the structure its functions take.
        right: whether the library computes what it should, on a small example.
    """

    def __init__(self, source: Path, job: type[ctypes.Structure], right: Callable[[ctypes.CDLL], bool]) -> None:
        self.source, self._job, self._right = source, job, right
        self._found: tuple[ctypes.CDLL | None] | None = None

    def library(self) -> ctypes.CDLL | None:
        """The library, or None where there can be none; a warning says so if it cannot be built or is wrong."""
        if self._found is None:
            self._found = (self._find(),)
        return self._found[0]

    def needed(self) -> ctypes.CDLL:
        """The library, by somebody who has asked `unavailable` before."""
        library = self.library()
        assert library is not None
        return library

    def unavailable(self, dtype: torch.dtype) -> str:
        """Why tensors of this dtype cannot be computed; empty if they can."""
        library = self.library()
        if library is None:
            return MISSING
        if dtype == torch.float16 and not library.longconv_has_float16():
            return "the C compiler has no float16"
        return ""

    def _find(self) -> ctypes.CDLL | None:
        compiler = find_compiler()
        if compiler is None or not possible():
            return None
        try:
            library = ctypes.CDLL(str(build(self.source, compiler)))
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", "") or ""
            _warn(f"could not be built, so convolutions are slower: {error}\n{output}")
            return None
        if library.longconv_size_of_job() != ctypes.sizeof(self._job) or not self._right(library):
            _warn("computes wrong results here, and is not used")
            return None
        return library


def parallel() -> ctypes.c_void_p:
    """What a library runs its threads with."""
    return ctypes.c_void_p(openmp())


def possible() -> bool:
    """Whether there is all that a build needs, and it is wanted."""
    wanted = os.environ.get("LONGCONV_NATIVE", "1") != "0"
    return wanted and sys.platform.startswith("linux") and find_compiler() is not None and openmp() is not None


def find_compiler() -> str | None:
    """The path of a C compiler."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((path for name in names if name and (path := shutil.which(name))), None)


def build(source: Path, compiler: str) -> Path:
    """Compile a source, unless that has been done, and return the library's path.

    Raises:
        OSError: no folder to write to.
        subprocess.SubprocessError: the compiler failed, or took too long.
    """
    digest = hashlib.sha256()
    texts = [path.read_text() for folder in (source.parent, SHARED) for path in sorted(folder.glob("*.[ch]"))]
    for part in (compiler, *FLAGS, _processor(), source.name, *texts):
        digest.update(part.encode() + b"\0")
    name = f"{source.stem}-{digest.hexdigest()[:16]}.so"
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
        command = [compiler, *FLAGS, f"-I{SHARED}", "-o", part_file, str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
            os.replace(part_file, path)  # whole or not at all, also when several processes build it
        finally:
            Path(part_file).unlink(missing_ok=True)
        return path
    raise OSError("no cache folder can be written to")


@lru_cache(maxsize=1)
def openmp() -> int | None:
    """The address of GOMP_parallel in the OpenMP library that PyTorch runs its threads with, if it is one that has it.

    Other packages may have loaded such libraries of their own, whose threads would wait for PyTorch's and these for
    them: what is asked is PyTorch's library, which answers for those it depends on.
    """
    try:
        pytorch = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(pytorch.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


def _warn(what: str) -> None:
    warnings.warn(f"longconv: its C code {what}", stacklevel=4)


def _cache_folders() -> list[Path]:
    """Where to look and to write, in this order: a folder that was asked for is meant, but a home may be read-only."""
    if "LONGCONV_CACHE" in os.environ:
        return [cache_folder()]
    temporary = Path(tempfile.gettempdir()) / f"longconv-{os.getuid()}"
    try:
        return [cache_folder(), temporary]
    except RuntimeError:  # this user has no home
        return [temporary]


def _ours(folder: Path) -> bool:
    """Whether it is not for anybody to put a library there: what is found in it is run."""
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & 0o002


def _processor() -> str:
    """What code for this processor depends on: a cache folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    told = {line for line in lines if line.split(":")[0].strip() in ("model name", "flags", "Features", "CPU part")}
    return platform.machine() + "".join(sorted(told))
