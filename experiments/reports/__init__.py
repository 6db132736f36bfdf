"""What was reached, beside what is published or what else there is; run as `longconv report NAME`.

lra.py       the Long Range Arena, from the tables of runs; pictures: lra_plot.py
effects.py   models of an audio effect, in numbers and sound; pictures: effects_plot.py
wave.py      a model of audio samples: what it makes up, and what n-grams reach
"""

from collections.abc import Callable
from typing import Any

try:
    from . import effects, lra, wave
except ImportError as error:
    raise ImportError(f"reports need {error.name}: pip install 'longconv[bench]'") from error

#: The functions behind `longconv report NAME`.
REPORTS: dict[str, Callable[..., Any]] = {"lra": lra.run, "effects": effects.run, "wave": wave.run}
