"""Which configuration a kernel takes on a device: by the device's limits, and by measurements made before.

In this order: what was measured on this machine (a cache on disk), what was measured for such devices and is shipped
(tuned.json), the first candidate that the device has room for. Nothing is measured unless `LONGCONV_TUNE=1` asks for
it. Lengths count in buckets, so that a new length neither measures nor compiles anew; devices by their limits.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .device import shared_memory_limit

SHIPPED = Path(__file__).with_name("tuned.json")
# What the files of the cache hold, None where there is none: read once in a process, kept if it cannot be written.
_measured: dict[tuple[str | None, str, str], dict[str, Any] | None] = {}


@dataclass(frozen=True)
class Config:
    """One way to launch a kernel: its constants, warps and stages, and the shared memory (bytes) that it needs."""

    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    shared_bytes: int = 0

    def launch(self) -> dict[str, Any]:
        """Return keyword arguments for the launch."""
        return {**self.constants, "num_warps": self.num_warps, "num_stages": self.num_stages}


def bucket(length: int) -> int:
    """Return the power of two that is at least `length`: all lengths of a bucket share a configuration."""
    return 1 << max(0, length - 1).bit_length()


def choose(
    kernel: str,
    length: int,
    traits: Sequence[str | int | bool],
    candidates: Sequence[Config],
    device: torch.device,
    run: Callable[[Config], object] | None = None,
    timer: Callable[[Callable[[], object]], float] | None = None,
) -> Config:
    """Choose among candidates; the answer is the same for as long as the process lives.

    Args:
        kernel: name under which measurements are kept.
        length: samples; all lengths of a `bucket` get the same answer.
        traits: what else decides, few values each: dtype, order, whether there are gates.
        candidates: the preferred one first.
        device: where the kernel is to run.
        run: launches the kernel with a configuration; called only to measure.
        timer: returns the time of a call, in any unit; default `triton.testing.do_bench`.

    Raises:
        ValueError: if the device has too little shared memory for every candidate.
    """
    limit = shared_memory_limit(device)
    fitting = [config for config in candidates if config.shared_bytes <= limit]
    if not fitting:
        least = min(config.shared_bytes for config in candidates)
        raise ValueError(f"{kernel} needs {least} bytes of shared memory, and {device} has {limit} for a block")
    if len(fitting) == 1:
        return fitting[0]
    place = device_key(device)
    entry = "-".join(map(str, (kernel, *traits, bucket(length))))
    key = (os.environ.get("LONGCONV_CACHE"), place, entry)
    if key not in _measured:
        _measured[key] = _read(_path(place, entry), entry)
    known = _measured[key]
    if known is None and os.environ.get("LONGCONV_TUNE") == "1" and run is not None and not _capturing(device):
        known = _measured[key] = _describe(_fastest(fitting, run, timer or _bench))
        _write(_path(place, entry), {"entry": entry, "config": known})
    if known is None:
        known = _shipped().get(place, {}).get(entry)
    return next((config for config in fitting if _describe(config) == known), fitting[0])


@functools.cache
def device_key(device: torch.device) -> str:
    """Name a kind of device by what it can do: backend, capability, number of processors, shared memory in KB."""
    if device.type == "cpu":
        return "cpu"
    properties = torch.cuda.get_device_properties(device)
    backend = "cuda" if torch.version.hip is None else "hip"
    kind = f"{backend}-{properties.major}.{properties.minor}"
    return f"{kind}-{properties.multi_processor_count}-{shared_memory_limit(device) // 1024}"


def cache_folder() -> Path:
    """Return where measurements are kept: $LONGCONV_CACHE, or longconv/ among the user's caches."""
    if folder := os.environ.get("LONGCONV_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "longconv")


def _describe(config: Config) -> dict[str, Any]:
    return {"constants": dict(config.constants), "num_warps": config.num_warps, "num_stages": config.num_stages}


def _fastest(
    candidates: Sequence[Config], run: Callable[[Config], object], timer: Callable[[Callable[[], object]], float]
) -> Config:
    times = [timer(functools.partial(run, config)) for config in candidates]
    best = min(range(len(times)), key=lambda i: times[i] if math.isfinite(times[i]) else math.inf)
    return candidates[best]


def _bench(call: Callable[[], object]) -> float:
    from triton.testing import do_bench

    return float(do_bench(call, return_mode="median"))


def _capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded, in which nothing can be measured."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


@functools.cache
def _shipped() -> dict[str, Any]:
    return json.loads(SHIPPED.read_text())


def _read(path: Path, entry: str) -> dict[str, Any] | None:
    """Read what was measured; a file that cannot be read is one that is not there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text())
        if found["entry"] == entry:
            return found["config"]
    return None


def _path(place: str, entry: str) -> Path:
    return cache_folder() / place / (hashlib.sha256(entry.encode()).hexdigest()[:24] + ".json")


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a file under its name only when it is whole; where that is not allowed, nothing is kept."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
            json.dump(content, file)
        os.replace(file.name, path)
