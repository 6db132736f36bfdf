"""docs/fft_conv.md and README.md: their tables of fft_conv are those of the recorded benchmarks."""

import csv
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/fft_conv.md").read_text() + (ROOT / "README.md").read_text()
RESULTS = ROOT / "experiments/benchmarks/results"
BOTH = ("forward", "forward+backward")


def length(L):
    return f"{L >> 20}M" if L >= 1 << 20 else f"{L >> 10}k" if L >= 1 << 10 else str(L)


def expected(name, K, columns, memory):
    """The lines of a table: for each L the milliseconds of each contestant, in brackets the multiple of ours."""
    with (RESULTS / name).open() as file:
        found = {(r["mode"], int(r["K"]), int(r["L"]), r["implementation"]): r for r in csv.DictReader(file)}
    for L in sorted({L for _, k, L, _ in found if (k == K < L if K else k == L)}):
        cells = [length(L)]
        for mode, names in zip(BOTH, columns, strict=True):
            rows = [found[mode, K or L, L, implementation] for implementation in names]
            cells.append(f"**{float(rows[0]['ms_median']):.1f}**")
            cells += [f"{float(r['ms_median']):.1f} ({float(r['ratio']):.2f}×)" for r in rows[1:]]
        for mode in BOTH if memory else ():
            ours, pair = (found[mode, K or L, L, name]["peak_extra_MB"] for name in ("longconv", "torch rfft"))
            cells.append(f"{float(ours):.0f} / {float(pair):.0f}")
        yield f"| {' | '.join(cells)} |"


FORWARD = ("longconv", "torch rfft", "scipy", "julius", "fft-conv-pytorch")
BACKWARD = ("longconv", "torch rfft", "julius", "fft-conv-pytorch")


@pytest.mark.parametrize(
    ("name", "of", "K", "columns", "memory"),
    [
        ("long", "fftconv.csv", 0, (FORWARD, BACKWARD), True),
        ("1024", "fftconv.csv", 1024, (FORWARD, BACKWARD), True),
        ("64", "fftconv.csv", 64, (FORWARD, BACKWARD), True),
        ("speed", "fftconv.csv", 0, (FORWARD[:4], BACKWARD[:3]), False),
        ("fresh", "fftconv-fresh.csv", 0, (FORWARD[:3], BACKWARD[:2]), False),
    ],
)
def test_tables_are_those_of_the_files(name, of, K, columns, memory):
    table = re.search(f"<!-- {name}: begin -->\n(.*)\n<!-- {name}: end -->", PAGE, re.S)
    assert table.group(1).splitlines()[2:] == list(expected(of, K, columns, memory))
