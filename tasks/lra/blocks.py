"""Work in blocks, on any number of cores: what comes out is the same, in the same order."""

import os
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TypeVar

T = TypeVar("T")


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def blocks(make: Callable[[int], T], workers: int | None = None, first: int = 0) -> Generator[T, None, None]:
    """``make(first), make(first + 1), …`` without end, computed ahead by `workers` threads (default: one per core).

    `make` must depend on its argument alone. It should spend its time in numpy, which lets other threads run meanwhile.
    Closing the iterator, or no longer holding it, ends the threads.

    Raises ValueError for fewer than one worker.
    """
    workers = cores() if workers is None else workers
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if workers == 1:
        yield from map(make, count(first))
        return
    pool = ThreadPoolExecutor(workers)
    waiting: deque[Future[T]] = deque()
    try:
        for block in count(first):
            waiting.append(pool.submit(make, block))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
