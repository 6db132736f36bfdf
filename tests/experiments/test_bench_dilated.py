"""The benchmark of dilated convolutions and multiresolution trees. Nothing here asserts a speed."""

import csv

import pytest
import torch
from numerics import TOLERANCE

from longconv.experiments.benchmarks import BENCHMARKS, dilated, harness
from longconv.experiments.benchmarks.report import Shape


def test_run_end_to_end(tmp_path):
    path = tmp_path / "rows.csv"
    rows = BENCHMARKS["dilated"](
        lengths=(96,), taps=(2, 3), dilations=(1, 16), tree_taps=(2,), elements=600, repeats=2, threads=1, device="cpu",
        output=path,
    )  # fmt: skip
    assert len(rows) == 2 * (2 * 2 * 2 + 2)
    assert {row.status for row in rows} == {"ok"}
    assert {row.implementation for row in rows if "tree" not in row.implementation} == {
        f"{name}, dilation {d}" for name in ("longconv", "conv1d") for d in (1, 16)
    }
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    for name in ("rows.png", "rows-multires.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("L", [40, 65])
def test_contestants_are_right(L, dtype):
    shape = Shape(2, 3, L, 3)
    case, tree = dilated.make_case(shape, dtype, "cpu"), dilated.make_tree_case(shape, dtype, "cpu")
    case = dilated.with_dilation(case, 16)
    for contestants, of in ((dilated.implementations(16), case), (dilated.tree_implementations(), tree)):
        expected = harness.expected_results(of)
        for contestant in contestants:
            harness.check_against_oracle(contestant, of, "forward+backward", expected)


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch):
    right = dilated.implementations

    def implementations(dilation):
        ours, other = right(dilation)
        return [ours, harness.Implementation(other.name, lambda u, k: 1.001 * other.call(u, k))]

    options = {"lengths": (64,), "taps": (2,), "dilations": (4,), "tree_taps": (), "elements": 200, "repeats": 1}
    monkeypatch.setattr(dilated, "implementations", implementations)
    rows = dilated.run(**options, device="cpu", output=tmp_path / "rows.csv")
    assert [row.status for row in rows] == ["ok", "wrong"] * 2
    monkeypatch.setattr(dilated, "implementations", lambda dilation: implementations(dilation)[::-1])
    with pytest.raises(harness.DisagreementError, match="conv1d, dilation 4"):
        dilated.run(**options, device="cpu", output=tmp_path / "rows.csv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (0,)}, "lengths must be at least 1"),
        ({"dilations": (0,)}, "dilations must be at least 1"),
        ({"tree_taps": (1,)}, "tree_taps must be at least 2"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        *([] if torch.cuda.is_available() else [({"device": "cuda"}, "device 'cuda'")]),
    ],
)
def test_errors_name_the_argument(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dilated.run(**options, output=tmp_path / "rows.csv")
