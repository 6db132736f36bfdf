"""Fourier transforms over the last dimension, with their set-up kept from call to call.

`torch.fft` sets a transform up at every call, which on a CPU takes 15 us at 4,096 points, 37 at 8,192 and 120 at
32,768: as long as transforming one to two rows. PyTorch's builds for x86 carry Intel MKL; where its interface is found
in PyTorch's library, descriptors are kept and called directly, complex transforms in place. Everywhere else, and with
``LONGCONV_MKL=0`` in the environment, `torch.fft` does the work.

No transform here is scaled: an inverse of n points returns n times the signal.
"""

import ctypes
import itertools
import os
import threading
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

# Of MKL's header mkl_dfti.h: configuration parameters, then values.
_NUMBER_OF_TRANSFORMS, _CONJUGATE_EVEN_STORAGE, _PLACEMENT, _INPUT_DISTANCE, _OUTPUT_DISTANCE = 7, 10, 11, 14, 15
_COMPLEX, _REAL, _COMPLEX_COMPLEX, _INPLACE, _NOT_INPLACE = 32, 33, 39, 43, 44

_Key = tuple[str, int, int, bool, int]  # kind, points, rows, whether double, distance between the rows of real data


def fft_(z: Tensor) -> Tensor:
    """Forward DFT of z (..., n), complex and contiguous. Overwrites z where it can; use what it returns."""
    mkl = _mkl_for(z)
    if mkl is None:
        return torch.fft.fft(z)
    mkl.compute("fft", z, z, z.shape[-1])
    return z


def ifft_(z: Tensor) -> Tensor:
    """Inverse DFT of z (..., n), unscaled, complex and contiguous. Overwrites z where it can; use what it returns."""
    mkl = _mkl_for(z)
    if mkl is None:
        return torch.fft.ifft(z, norm="forward")
    mkl.compute("ifft", z, z, z.shape[-1])
    return z


def rfft(x: Tensor, room: Tensor | None = None) -> Tensor:
    """Forward DFT of real x (..., n): (..., n // 2 + 1) points. Rows may overlap, as those of `Tensor.unfold` do.

    The result may be written into `room`, a contiguous tensor of its shape and dtype; use what is returned.
    """
    n, mkl = x.shape[-1], _mkl_for(x)
    if mkl is None or n < 2:
        return torch.fft.rfft(x)
    distance = _row_distance(x)
    if distance is None:
        x, distance = x.contiguous(), n
    shape = (*x.shape[:-1], n // 2 + 1)
    X = torch.empty(shape, dtype=x.dtype.to_complex(), device=x.device) if room is None else room
    mkl.compute("rfft", x, X, distance)
    return X


def irfft(X: Tensor, n: int, room: Tensor | None = None) -> Tensor:
    """Inverse DFT, unscaled, of the first n // 2 + 1 points X of a spectrum (contiguous): n real samples.

    The result may be written into `room`, a contiguous tensor of its shape and dtype; use what is returned.
    """
    mkl = _mkl_for(X)
    if mkl is None or n < 2:
        return torch.fft.irfft(X, n, norm="forward")
    shape = (*X.shape[:-1], n)
    x = torch.empty(shape, dtype=X.dtype.to_real(), device=X.device) if room is None else room
    mkl.compute("irfft", X, x, n)
    return x


def keeps_setup(device: torch.device) -> bool:
    """Whether transforms on `device` keep their set-up, so that long rows are cheap to transform whole."""
    return device.type == "cpu" and _mkl() is not None


class _Descriptor:
    """A committed DFTI descriptor; freed when nobody uses it any more."""

    def __init__(self, library: ctypes.CDLL, key: _Key) -> None:
        kind, n, rows, double, distance = key
        self._free = library.DftiFreeDescriptor
        self.handle = ctypes.c_void_p()
        create = library.DftiCreateDescriptor_d_1d if double else library.DftiCreateDescriptor_s_1d
        real = kind in ("rfft", "irfft")
        self._check(create(ctypes.byref(self.handle), ctypes.c_int(_REAL if real else _COMPLEX), ctypes.c_long(n)))
        settings: dict[int, ctypes.c_long | ctypes.c_int] = {_NUMBER_OF_TRANSFORMS: ctypes.c_long(rows)}
        if real:
            signal, spectrum = ctypes.c_long(distance), ctypes.c_long(n // 2 + 1)
            settings[_PLACEMENT] = ctypes.c_int(_NOT_INPLACE)
            settings[_CONJUGATE_EVEN_STORAGE] = ctypes.c_int(_COMPLEX_COMPLEX)
            settings[_INPUT_DISTANCE] = signal if kind == "rfft" else spectrum
            settings[_OUTPUT_DISTANCE] = spectrum if kind == "rfft" else signal
        else:
            settings[_PLACEMENT] = ctypes.c_int(_INPLACE)
            settings[_INPUT_DISTANCE] = settings[_OUTPUT_DISTANCE] = ctypes.c_long(n)
        for parameter, value in settings.items():
            self._check(library.DftiSetValue(self.handle, ctypes.c_int(parameter), value))
        self._check(library.DftiCommitDescriptor(self.handle))

    @staticmethod
    def _check(status: int) -> None:
        if status != 0:
            raise RuntimeError(f"MKL's DFTI returned status {status}")

    def __del__(self) -> None:
        if self.handle:
            self._free(ctypes.byref(self.handle))


class _MKL:
    """The DFTI functions of a library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        pointers = [ctypes.c_void_p] * 3
        self._forward, self._backward = self._library.DftiComputeForward, self._library.DftiComputeBackward
        self._forward.argtypes = self._backward.argtypes = pointers
        # A descriptor belongs to a thread: it holds that thread's number of threads, and nobody else computes with it.
        self._kept = threading.local()

    def compute(self, kind: str, source: Tensor, target: Tensor, distance: int) -> None:
        """Transform all rows of `source` into `target` (for complex kinds the same); rows of reals `distance` apart."""
        if source.numel() == 0:
            return
        n = source.shape[-1] if kind != "irfft" else target.shape[-1]
        double = source.dtype in (torch.float64, torch.complex128)
        descriptor = self._descriptor(
            (kind, n, source.numel() // source.shape[-1], double, distance), torch.get_num_threads()
        )
        run = self._backward if kind in ("ifft", "irfft") else self._forward
        if run(descriptor.handle, source.data_ptr(), target.data_ptr()) != 0:
            raise RuntimeError(f"MKL could not transform {tuple(source.shape)} ({kind})")

    def _descriptor(self, key: _Key, threads: int) -> _Descriptor:
        if not hasattr(self._kept, "get"):
            self._kept.get = lru_cache(maxsize=32)(lambda key, threads: _Descriptor(self._library, key))
        return self._kept.get(key, threads)


def _mkl_for(x: Tensor) -> _MKL | None:
    return _mkl() if x.is_cpu else None


@lru_cache(maxsize=1)
def _mkl() -> _MKL | None:
    """MKL's interface, if PyTorch's library has it and it computes what it should."""
    if os.environ.get("LONGCONV_MKL", "1") == "0" or not torch.backends.mkl.is_available():
        return None
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        mkl = _MKL(path)
        for dtype in (torch.float32, torch.float64):
            x = torch.arange(24, dtype=dtype).view(2, 12).cos()
            X, z = torch.zeros(2, 7, dtype=dtype.to_complex()), x.to(dtype.to_complex())
            mkl.compute("rfft", x, X, 12)
            mkl.compute("fft", z, z, 12)
            back = torch.zeros_like(x)
            right = torch.allclose(X, torch.fft.rfft(x)) and torch.allclose(z, torch.fft.fft(x))
            mkl.compute("irfft", X, back, 12)
            mkl.compute("ifft", z, z, 12)
            if not (right and torch.allclose(back, 12 * x) and torch.allclose(z.real, 12 * x)):
                return None
    except (OSError, AttributeError, RuntimeError):  # no such library, no such function, or it refused
        return None
    return mkl


def _row_distance(x: Tensor) -> int | None:
    """Elements from each row of x to the next, if that is the same everywhere, not 0, and rows are contiguous."""
    if x.stride(-1) != 1:
        return None
    leading = [(size, stride) for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size != 1]
    for (_, outer), (size, inner) in itertools.pairwise(leading):
        if outer != size * inner:
            return None
    if not leading:
        return x.shape[-1]
    return leading[-1][1] or None  # MKL refuses rows that are all the same one
