"""Memory for intermediate results that is kept from call to call.

What the C library's allocator gets back it may give back to the system; then the next call pays for every page anew,
and finds none of it in cache. What a block needs are a few megabytes, the same in every call: each thread keeps them.
"""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

# Bytes that are kept for one slot: a block of blocked.py in complex128. More is allocated, and freed.
MOST_BYTES = 2**23


class _Kept(threading.local):
    def __init__(self) -> None:
        self.by_slot: dict[str, Tensor] = {}


_kept = _Kept()


def empty(
    slot: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device, most_bytes: int = MOST_BYTES
) -> Tensor:
    """A contiguous tensor nobody has written. On a CPU it is valid until the same thread asks for `slot` again.

    Beyond `most_bytes` nothing is kept.
    """
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or size > most_bytes:
        return torch.empty(tuple(shape), dtype=dtype, device=device)
    memory = _kept.by_slot.get(slot)
    if memory is None or memory.numel() < size:
        with torch.inference_mode(False):  # or it could not be written outside that mode later
            memory = _kept.by_slot[slot] = torch.empty(size, dtype=torch.uint8, device="cpu")
    return memory[:size].view(dtype).view(tuple(shape))


def forget() -> None:
    """Free what the present thread keeps."""
    _kept.by_slot.clear()
