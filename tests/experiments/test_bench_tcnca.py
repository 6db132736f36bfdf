"""The benchmark of TCNCA's claim. Nothing here asserts a speed."""

import csv

import pytest
import torch
from numerics import TOLERANCE, assert_close

from longconv.experiments.benchmarks import BENCHMARKS, harness, tcnca
from longconv.experiments.benchmarks.report import Shape
from longconv.layers import TCNCA, Mega


def test_run_end_to_end(tmp_path):
    path = tmp_path / "rows.csv"
    options = {"lengths": (96, 40), "kernel_size": 4, "ndim": 3, "elements": 600, "repeats": 2, "threads": 1}
    rows = BENCHMARKS["tcnca"](**options, device="cpu", output=path)
    assert len(rows) == 2 * 2 * 5
    assert {row.status for row in rows} == {"ok"}
    assert {row.ratio for row in rows if row.implementation == tcnca.OURS} == {1.0}
    assert [row.L for row in rows] == [40] * 10 + [96] * 10
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_contestants_are_right(dtype):
    for entrant, case in tcnca.contestants(Shape(2, 3, 65, 65), 4, 5, dtype, "cpu"):
        expected = harness.expected_results(case)
        harness.check_against_oracle(entrant, case, "forward+backward", expected)


def test_they_are_what_the_layers_do():
    (ours, case), *_, (ema, with_ema), _, _ = tcnca.contestants(Shape(2, 16, 65, 65), 4, 5, torch.float64, "cpu")
    x, weight, bias = case.inputs
    layer = TCNCA(16, num_layers=4, kernel_size=4, dilation_factor=4).double()
    assert tcnca.layers(65, 4) == len(weight) == 4
    assert layer.summary_field >= 65
    layer.load_state_dict({**layer.state_dict(), "weight": weight, "bias": bias})
    assert_close(ours.call(*case.inputs), layer._summarise(x.mT, None, None, None, False)[0].mT.detach())
    mega = Mega(16, ndim=5).double()
    names = ("delta", "alpha", "beta", "gamma")
    parameters = {f"long_filters.0.{name}": p for name, p in zip(names, with_ema.inputs[1:5], strict=True)}
    mega.load_state_dict({**mega.state_dict(), **parameters, "omega": with_ema.inputs[5]})
    assert_close(ema.call(*with_ema.inputs), mega._summarise(x.mT, None, None, None, False)[0].mT.detach())


def test_layers():
    assert [tcnca.layers(L, 8) for L in (1, 8, 9, 64, 65, 131072)] == [1, 1, 2, 2, 3, 6]


def test_what_is_wrong_is_not_timed(tmp_path, monkeypatch):
    right = tcnca.contestants

    def contestants(*args):
        first, (second, case), *others = right(*args)
        return [first, (harness.Implementation(second.name, lambda *x: 1.001 * second.call(*x)), case), *others]

    monkeypatch.setattr(tcnca, "contestants", contestants)
    rows = tcnca.run(lengths=(64,), elements=200, repeats=1, device="cpu", output=tmp_path / "rows.csv")
    assert [row.status for row in rows] == ["ok", "wrong", "ok", "ok", "ok"] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": (0,)}, "lengths must be at least 1"),
        ({"lengths": ()}, "lengths must be at least 1"),
        ({"kernel_size": 1}, "kernel_size must be at least 2"),
        ({"ndim": 0}, "ndim must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        *([] if torch.cuda.is_available() else [({"device": "cuda"}, "device 'cuda'")]),
    ],
)
def test_errors_name_the_argument(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tcnca.run(**options, output=tmp_path / "rows.csv")
