"""Diagonal (modal) linear recurrences: the kernel, the scan, the final state, one step. Imports torch only.

The definition is in `reference.py`, the kernel in `kernel.py`, the chunk-parallel rest in `scan.py`. Equivalent to a
convolution of u with `modal_kernel(poles, residues, passthrough, L)`, but with a state of N complex numbers per channel
to carry on with.
"""

from .kernel import modal_kernel
from .reference import modal_kernel_reference, modal_scan_reference
from .scan import modal_scan, modal_state, modal_step

__all__ = [
    "modal_kernel",
    "modal_kernel_reference",
    "modal_scan",
    "modal_scan_reference",
    "modal_state",
    "modal_step",
]
