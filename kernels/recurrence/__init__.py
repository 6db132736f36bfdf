"""Diagonal (modal) linear recurrences: the kernel, the scan, the final state, one step. Imports torch, and triton
lazily.

The definition is in `reference.py`, the kernel in `kernel.py`, the chunk-parallel scan and final state in `scan.py`,
steps in `step.py`, fused with what a layer has around it in `hyena.py` and `multi_hyena.py`, on a GPU in
`triton_step.py` and `triton_multi_hyena.py`; `layout.py` is for channels with different numbers of modes. Equivalent to
a convolution of u with `modal_kernel(poles, residues, passthrough, L)`, but with a state of N complex numbers per
channel to carry on with.
"""

from .hyena import hyena_step_
from .kernel import modal_kernel
from .layout import ModeLayout, mode_layout
from .multi_hyena import multi_hyena_step_
from .reference import (
    hyena_step_reference,
    modal_kernel_reference,
    modal_scan_reference,
    multi_hyena_step_reference,
)
from .scan import modal_scan, modal_state
from .step import modal_step, modal_step_

__all__ = [
    "ModeLayout",
    "hyena_step_",
    "hyena_step_reference",
    "modal_kernel",
    "modal_kernel_reference",
    "modal_scan",
    "modal_scan_reference",
    "modal_state",
    "modal_step",
    "modal_step_",
    "mode_layout",
    "multi_hyena_step_",
    "multi_hyena_step_reference",
]
