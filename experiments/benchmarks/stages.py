"""Where the time of a long convolution goes on a CPU, and what share of it has to be: `longconv bench stages`.

The floor of a convolution by FFT is its transforms: one of every row there and one back, one of every filter, in
place, in cache, with their set-up kept, and for long rows the outer matrix products. The rest (turning real rows to
complex ones, the product of spectra, cutting the result out, the loop in Python) is what could be saved.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from longconv.functional import fft_conv
from longconv.kernels.fftconv import blocked
from longconv.kernels.fftconv.fft import fft_, ifft_
from longconv.kernels.fftconv.plan import CircularPlan, MonarchPlan, make_plan

from .fftconv import choose_shape
from .harness import cpu_threads
from .report import Shape

try:
    from rich import box
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error

STAGES = ("outer product", "FFT", "turn", "spectra product", "inverse FFT", "outer inverse", "turn back", "cut out")
#: What no convolution by FFT can do without.
FLOOR = ("outer product", "FFT", "inverse FFT", "outer inverse")


@dataclass(frozen=True)
class Profile:
    """Milliseconds of one forward call.

    Attributes:
        shape: its sizes.
        plan: the transform that was chosen, with its number of points.
        stages: by name, measured alone on one block and multiplied by the number of blocks; filters included.
        floor: sum of those in `FLOOR`.
        call: the whole call, median.
    """

    shape: Shape
    plan: str
    stages: dict[str, float]
    floor: float
    call: float

    @property
    def share(self) -> float:
        """The part of the call that is the floor."""
        return self.floor / self.call


def run(
    lengths: tuple[int, ...] = (256, 1024, 4096, 16384, 65536, 262144, 1048576),
    elements: int = 2**21,
    repeats: int = 20,
    threads: int | None = None,
) -> list[Profile]:
    """Take the causal convolution of u (B, D, L) with k (D, L), float32, on the CPU, apart into its stages.

    Args:
        lengths: sequence lengths L.
        elements: about B * D * L.
        repeats: timed calls; medians count.
        threads: CPU threads; by default what torch chooses.

    Returns:
        A profile for every length.

    Raises:
        ValueError: a number below 1.
    """
    shortest = min(lengths, default=0)
    for name, value in (("elements", elements), ("repeats", repeats), ("threads", threads), ("lengths", shortest)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    console = Console()
    with cpu_threads(threads), torch.no_grad():
        profiles = [profile(choose_shape(L, elements, None), repeats) for L in lengths]
    table = Table(title="ms of a forward call, by stage; * is part of the floor", box=box.SIMPLE_HEAD)
    table.add_column("L =", no_wrap=True)
    for p in profiles:
        table.add_column(f"{p.shape.L}", justify="right", no_wrap=True)
    for name in STAGES:
        cells = [f"{p.stages[name]:.2f}" if name in p.stages else "" for p in profiles]
        table.add_row(name + ("*" if name in FLOOR else ""), *cells)
    table.add_section()
    table.add_row("sum", *(f"{sum(p.stages.values()):.2f}" for p in profiles))
    table.add_row("whole call", *(f"{p.call:.2f}" for p in profiles))
    table.add_row("floor", *(f"{p.floor:.2f}" for p in profiles))
    table.add_row("floor / call", *(f"{p.share:.0%}" for p in profiles))
    console.print(table)
    return profiles


def profile(shape: Shape, repeats: int) -> Profile:
    """Measure one length; see `run`."""
    B, D, L, _ = shape
    u, k = torch.randn(B, D, L), torch.randn(D, L)
    plan = make_plan(L, False, torch.float32, torch.device("cpu"))
    assert not isinstance(plan, CircularPlan)
    rows = min(D, max(1, blocked.BLOCK_POINTS["cpu"] // plan.n))
    x, y = torch.randn(rows, L), torch.empty(rows, L)
    X = torch.randn(rows, plan.n, dtype=torch.complex64)
    ones = torch.ones_like(X)  # factors that let repeated products neither grow nor vanish
    there, back = (B + 1) * D / rows, B * D / rows  # blocks that are transformed, filters included; and brought back
    calls: dict[str, tuple[float, Callable[[], object]]] = {"spectra product": (back, lambda: X.mul_(ones))}
    if isinstance(plan, MonarchPlan):
        z = X.view(rows, plan.N1, plan.N2)
        used = -(-L // plan.N2)
        parts = torch.randn(rows, 2 * plan.N1, plan.N2)
        cut = x[:, : used * plan.N2] if used * plan.N2 == L else torch.nn.functional.pad(x, (0, used * plan.N2 - L))
        real, inverse = plan.matrix[:, :used], plan.matrix_inverse[:used]
        product, turned = torch.empty_like(parts), torch.empty(rows, plan.N1, plan.N2, dtype=X.dtype)
        whole = torch.randn(rows, used * plan.N2, dtype=torch.complex64)
        brought = whole.view(rows, used, plan.N2)
        calls |= {
            "outer product": (
                there,
                lambda: torch.bmm(real.expand(rows, -1, -1), cut.view(rows, used, plan.N2), out=product),
            ),
            "turn": (
                there,
                lambda: torch.complex(parts[:, : plan.N1], parts[:, plan.N1 :], out=turned).mul_(plan.twiddle),
            ),
            "turn back": (back, lambda: z.conj_physical_().mul_(plan.twiddle)),
            "outer inverse": (back, lambda: torch.bmm(inverse.expand(rows, -1, -1), z, out=brought)),
        }
    else:
        z = X
        psi = plan.turn(plan.n)
        calls |= {
            "turn": (there, lambda: torch.empty_like(X)[:, :L].copy_(x).mul_(psi[:L])),
            "turn back": (back, lambda: z.mul_(ones)),
        }
        whole = z
    calls |= {
        "FFT": (there, lambda: fft_(z)),
        "inverse FFT": (back, lambda: ifft_(z)),
        "cut out": (back, lambda: y.view(torch.int32).copy_(whole[:, :L].view(torch.int64))),
    }
    stages = {name: count * _median(call, repeats, X.zero_) for name, (count, call) in calls.items()}
    floor = sum(ms for name, ms in stages.items() if name in FLOOR)
    what = f"{type(plan).__name__} of {plan.n} points"
    return Profile(shape, what, stages, floor, _median(lambda: fft_conv(u, k), repeats))


def _median(call: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None) -> float:
    """Median milliseconds of `call`; `before` is called before each, and not timed."""
    samples = []
    for _ in range(repeats + 2):
        before()
        started = time.perf_counter()
        call()
        samples.append((time.perf_counter() - started) * 1e3)
    return statistics.median(samples[2:])
