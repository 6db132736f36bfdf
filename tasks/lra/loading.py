"""How fast rows come: to see that a model does not wait for them."""

import time
from typing import Any

import numpy as np


def rate(task: Any, split: str = "train", batch_size: int = 64, seconds: float = 1.0) -> float:
    """Rows of `split` per second that one core reads in random order and makes into batches.

    task: from `longconv.tasks.get`. It runs for `seconds`, after a batch that is not counted.
    Raises ValueError for a split that does not exist, a batch size below 1, or no time.
    """
    if batch_size < 1 or seconds <= 0:
        raise ValueError(f"batch_size must be at least 1 and seconds more than 0, got {batch_size} and {seconds}")
    splits = task.splits()
    if split not in splits:
        raise ValueError(f"no split {split!r}, there are: {', '.join(splits)}")
    rows, random = splits[split], np.random.RandomState(0)
    n, started = 0, 0.0
    while not started or time.perf_counter() - started < seconds:
        task.collate(rows.__getitems__(random.randint(len(rows), size=batch_size).tolist()))
        if started:
            n += batch_size
        else:
            started = time.perf_counter()
    return n / (time.perf_counter() - started)
