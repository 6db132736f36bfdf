"""The Triton kernels of fft_conv, compiled for GPUs that are not there: shared memory, registers, spills."""

import pytest
import torch

from longconv.kernels.gpu import TARGETS, Config, case_of, compile_all, table

pytest.importorskip("triton")
from longconv.kernels.fftconv.monarch import (
    configs,
    fused_run,
    long_run,
    nested_run,
    triton_fused,
    triton_long,
    triton_nested,
)

# Bytes of a thread that may go through local memory, by element size. All gradients at once need the most: two spectra,
# the filter's and a sum of spectra; float32 products take three times the operands. What cannot be placed takes more.
SPILL_BUDGET = {"convolve": (160, 800), "correlate": (64, 1800), "backward": (640, 1300), "inner": (700, 2100)}
SPILL_BUDGET |= {"outer": (160, 200), "outer_inverse": (64, 200), "nested": (440, 64), "nested_correlate": (160, 64)}
KERNELS = [
    (triton_fused, "convolve_kernel"),
    (triton_fused, "correlate_kernel"),
    (triton_fused, "backward_kernel"),
    (triton_nested, "nested_kernel"),
    (triton_nested, "nested_correlate_kernel"),
    (triton_long, "outer_kernel"),
    (triton_long, "inner_kernel"),
    (triton_long, "outer_inverse_kernel"),
]
B, D = 64, 768
recorded = pytest.mark.skipif(torch.cuda.is_available(), reason="tensors on a GPU are launched, not recorded")
# Constants that a label need not name.
COMMON = {"HAS_PRE", "HAS_POST", "HAS_SKIP", "ONE_PIECE"}


class Recorder:
    """Stands in for a kernel and notes what is launched."""

    def __init__(self, kernel, cases, label):
        self.kernel, self.cases, self.label = kernel, cases, label

    def __getitem__(self, grid):
        def launch(*arguments, num_warps, num_stages):
            named = dict(zip(self.kernel.arg_names, arguments, strict=True))
            name = self.kernel.fn.__name__.removesuffix("_kernel")
            flags = " ".join(k.lower() for k, v in named.items() if v is True and k not in COMMON)
            label = f"{name} {self.label} {flags}".strip()
            self.cases.append(case_of(self.kernel, named, Config({}, num_warps, num_stages), label))

        return launch


@pytest.fixture
def record(monkeypatch):
    def record(dtype, run, label, target):
        cases = []
        for module, name in KERNELS:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name), cases, f"{label} {str(dtype)[6:]}"))
        if target.backend == "hip":
            for module in (fused_run, long_run, nested_run):
                monkeypatch.setattr(module, "precision", lambda dtype: "ieee")
        run()
        monkeypatch.undo()
        return cases

    return record


def rows_of(L, dtype):
    """A tensor without memory, of which only type, strides and alignment count."""
    return torch.empty(B, D, L, dtype=dtype, device="meta")


def fused_cases(record, tile, dtype, target, cut=None):
    cut = cut or configs.whole_row(tile)
    L = cut.count * cut.hop
    taps = (torch.zeros(D, 1, device="meta"), torch.zeros(D, 0, device="meta"))
    label = f"{tile.N1}x{tile.R}x{tile.N2}" + (" pieces" if cut.pieces > 1 else "" if cut.whole else " frames")

    def run():
        u = pre = post = dy = y = rows_of(L, dtype)
        rows = fused_run.Rows(B, L)
        fused_run.forward(rows, cut, taps, u, pre, y, post)
        if cut.whole and tile.one_pass:
            kf, scale = fused_run.spectra(*taps, cut, dtype)
            fused_run.backward_of_rows(rows, tile, kf, scale, u, pre, dy, post, y, y, y, True)
        elif cut.whole:
            kf, scale = fused_run.spectra(*taps, cut, dtype)
            for outputs in ((y, y, None, False), (None, None, y, False), (None, None, None, True)):
                fused_run.backward_of_rows(rows, tile, kf, scale, u, pre, dy, post, *outputs)
        else:
            fused_run.convolve(
                rows, cut, *fused_run.spectra(*taps, cut, dtype), dy, post, [(y, pre), (y, u)], adjoint=True
            )
            fused_run.correlate(rows, cut, u, pre, dy, post, dtype)

    return record(dtype, run, label, target)


def long_cases(record, tile, dtype, target):
    P, taps = 256, (torch.empty(D, 1, device="meta"), torch.empty(D, 0, device="meta"))

    def run():
        tables = long_run.outer_tables(tile, P, dtype, torch.device("meta"))
        passes = long_run.Pass(fused_run.Rows(B, P * tile.N), tables, dtype)
        u = y = rows_of(P * tile.N, dtype)
        d, b = slice(0, D), slice(0, B)
        kf, scale = long_run.TwoSided(taps, tables).planes(d, dtype)
        s = z = passes.outer_dft(u, u, d, b)
        passes.inner(d, b, s, None, kf, None, convolve=True)
        passes.inner_backward(d, b, s, z, kf, passes.room_for_gradient(d), convolve=True, adjoint=True)
        passes.outer_inverse(s, scale, scale, u, u, [(y, u), (y, u)], d, b)

    return record(dtype, run, f"{tile.N1}x{tile.R}x{tile.N2}", target)


def nested_cases(record, cut, dtype, target):
    tile, L = cut.tile, cut.P * cut.tile.N
    taps = (torch.empty(D, 1, device="meta"), torch.empty(D, 0, device="meta"))

    def run():
        outer = long_run.outer_tables(tile, cut.P, torch.float32, torch.device("meta"))
        u = y = rows_of(L, dtype)
        rows = fused_run.Rows(B, L)
        filter = long_run.TwoSided(taps, outer)
        nested_run.forward(rows, filter, u, u, y, u)
        kf, scale = filter.planes(slice(0, D), dtype)
        nested_run.convolve(rows, outer, kf, scale, u, u, [(y, u), (y, u)], adjoint=True)
        nested_run.correlate(rows, outer, u, u, u, u)

    return record(dtype, run, f"{cut.P}x{tile.N1}x{tile.N2} w{tile.warps}", target)


def check(cases_of_targets):
    reports = []
    for target, cases in cases_of_targets:
        reports += compile_all(cases, [target])
    print("\n" + table(sorted(reports, key=lambda r: (r.label, str(r.target)))))
    for report in reports:
        assert report.fits, table([report])
        assert report.matmuls > 0, table([report])
        budget = SPILL_BUDGET[report.label.split()[0]]["float32" in report.label]
        assert report.spill_bytes <= budget, table([report])


def cases_for(record, target, dtype, largest_only=False):
    """Everything that is launched on a target in some dtype, or with its largest tiles only."""
    fitting = configs.tiles(dtype, target.shared_limit)
    inner = configs.tiles(dtype, target.shared_limit, configs.INNER_TILES)
    nested = {}  # for each P, what is taken on that target
    for tile, P in configs.NESTED[dtype.itemsize]:
        if tile.shared <= target.shared_limit:
            nested.setdefault(P, configs.Nested(tile, P))
    cases = []
    for P in sorted(nested)[-1:] if largest_only else sorted(nested):
        cases += nested_cases(record, nested[P], dtype, target)
    for tile in fitting[-1:] if largest_only else fitting:
        cases += fused_cases(record, tile, dtype, target)
    for tile in inner[-1:] if largest_only else inner:
        cases += long_cases(record, tile, dtype, target)
    if not largest_only:
        for K in (100, 3 * fitting[-2].N):
            cases += fused_cases(record, fitting[-2], dtype, target, configs.frames(fitting[-2], 10**5, K, 20))
    return cases


@recorded
@pytest.mark.parametrize("target", TARGETS)
def test_the_largest_tiles_fit(target, record):
    check([(TARGETS[target], cases_for(record, TARGETS[target], torch.float16, largest_only=True))])


@recorded
def test_every_configuration_fits_an_h100(record):
    check([(TARGETS["sm_90"], cases_for(record, TARGETS["sm_90"], torch.float16))])


@recorded
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_every_configuration_fits(target, dtype, record):
    check([(TARGETS[target], cases_for(record, TARGETS[target], dtype))])
