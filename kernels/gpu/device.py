"""What a device can do, asked of the device itself, never of its name."""

import contextlib
import importlib.util
import os

import torch
from torch import Tensor

# The smallest shared memory of a supported GPU, for a driver that does not say what one block may have.
SMALLEST_SHARED_MEMORY = 48 * 1024
# Below, Triton's dot products and bfloat16 are missing or emulated.
LEAST_CAPABILITY = (8, 0)


def interpreting() -> bool:
    """Whether Triton runs kernels in its interpreter: `TRITON_INTERPRET=1` at the time they were defined."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def triton_unavailable(device: torch.device) -> str | None:
    """Say why Triton kernels cannot run on tensors of this device, in words that follow "because"; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreting():
        return None if device.type in ("cpu", "cuda") else f"Triton's interpreter takes no {device.type} tensors"
    if device.type == "cpu":
        return "Triton runs on a CPU only in its interpreter (TRITON_INTERPRET=1)"
    if device.type != "cuda":
        return f"Triton kernels run on cuda devices (NVIDIA or AMD), not on {device.type}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        found, least = (".".join(map(str, c)) for c in (torch.cuda.get_device_capability(device), LEAST_CAPABILITY))
        return f"it needs compute capability {least} or newer, and {device} has {found}"
    return None


def triton_available(device: torch.device) -> bool:
    """Whether Triton kernels can run on tensors of this device."""
    return triton_unavailable(device) is None


# What `torch.compiler.assume_constant_result` does, which would import all of dynamo now: the answers are constants
# of a compiled graph, like the device.
interpreting._dynamo_marked_constant = True  # type: ignore[attr-defined]
triton_unavailable._dynamo_marked_constant = True  # type: ignore[attr-defined]


def shared_memory_limit(device: torch.device) -> int:
    """Return the shared memory (LDS on AMD) that one block may use on this device, in bytes.

    A CPU, where the interpreter runs, has no such limit; it answers with that of an H100, so that the same
    configurations are tested.
    """
    if device.type == "cpu":
        return 227 * 1024
    properties = torch.cuda.get_device_properties(device)
    for name in ("shared_memory_per_block_optin", "shared_memory_per_block"):
        limit = getattr(properties, name, 0)  # on AMD, and in older versions of torch, the first is missing or 0
        if limit:
            return int(limit)
    return SMALLEST_SHARED_MEMORY


def on_device_of(x: Tensor) -> contextlib.AbstractContextManager:
    """Make the device of x the current one: Triton launches on the current device and its current stream."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else contextlib.nullcontext()
