"""Optional packages, imported when first needed."""

import importlib
from typing import Any


def require(module: str, extra: str = "train") -> Any:
    """Import and return `module`, or raise an ImportError that names the extra which brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        # A package that is there but broken must say so itself.
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ImportError(f'{module} is missing: pip install "longconv[{extra}]"') from error
