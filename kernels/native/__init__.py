"""What the C code of all families shares: its build (build.py), memory (memory.py), vectors, samples and tiles (*.h).

Each family's C sources stand beside the Python that calls them: `fftconv/native`, `shortconv/native`.
"""

from .build import Native, parallel
from .memory import GROUP, TYPES, Array, aligned, numbers

__all__ = ["GROUP", "TYPES", "Array", "Native", "aligned", "numbers", "parallel"]
