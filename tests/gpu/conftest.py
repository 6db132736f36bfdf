"""Makes `import gpu_cases` work, as the conftest.py above does for `numerics`."""

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("gpu_cases", Path(__file__).with_name("gpu_cases.py"))
assert _spec is not None
assert _spec.loader is not None
sys.modules["gpu_cases"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["gpu_cases"])
