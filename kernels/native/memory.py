"""Memory and dtypes as C wants them."""

import ctypes

import torch
from torch import Tensor

from .. import scratch

#: `enum Type` of samples.h.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: Channels of a tile (tiles.h).
GROUP = 16
# So many bytes are kept for the next call.
KEPT_BYTES = 2**27


class Array(ctypes.Structure):
    """`Array` of tiles.h: a tensor (B, D, L), by its strides."""

    _fields_ = (("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("batch", "channel", "sample")))


def numbers(slot: str, count: int) -> Tensor:
    """Room for `count` float32 numbers from a multiple of 64 bytes on, as `scratch.empty` keeps it."""
    room = scratch.empty(slot, (count + 15,), torch.float32, torch.device("cpu"), KEPT_BYTES)
    return aligned(room)


def aligned(memory: Tensor) -> Tensor:
    """The part of a float32 vector that starts at a multiple of 64 bytes; it may be 15 numbers shorter."""
    return memory[-memory.data_ptr() // 4 % 16 :]
