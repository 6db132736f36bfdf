"""What every Triton kernel here needs: limits of the device, a choice of configuration, compilation without a GPU.

    device.py   what a device can do, asked of the device, and whether Triton can run there
    choose.py   which configuration a kernel takes: by the device's limits, a shipped table, a cache on disk
    aot.py      compiling kernels for GPUs that are not there, with what they need: shared memory, registers, spills

Triton is imported when it is needed, so that importing this folder needs torch alone.
"""

from .aot import TARGETS, Case, CompileReport, Target, case_of, compile_all, compile_kernel, table
from .choose import Config, bucket, choose
from .device import interpreting, on_device_of, shared_memory_limit, triton_available, triton_unavailable

__all__ = [
    "TARGETS",
    "Case",
    "CompileReport",
    "Config",
    "Target",
    "bucket",
    "case_of",
    "choose",
    "compile_all",
    "compile_kernel",
    "interpreting",
    "on_device_of",
    "shared_memory_limit",
    "table",
    "triton_available",
    "triton_unavailable",
]
