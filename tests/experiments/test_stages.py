"""The profile of a convolution: its stages are all there. Nothing here asserts a speed."""

import pytest
import torch

from longconv.experiments.benchmarks import stages
from longconv.kernels.fftconv import native
from longconv.kernels.native import build


@pytest.fixture(autouse=True)
def _compiled():
    if not build.possible():
        pytest.skip("no C compiler, or not Linux")


@pytest.mark.parametrize("L", [100, 270_001])
def test_every_stage_is_measured(L, capsys):
    (profile,) = stages.run(lengths=(L,), elements=2 * L, repeats=1, threads=1)
    assert set(profile.stages) == set(native.STAGES)
    assert all(ms > 0 for ms in profile.stages.values())
    assert profile.floor == pytest.approx(profile.stages["filter"] + profile.stages["transform"])
    assert profile.points >= L
    assert profile.call > 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*native.STAGES, "floor / call", "GFLOP/s"))


def test_bad_arguments():
    for kwargs in ({"lengths": ()}, {"lengths": (0,)}, {"elements": 0}, {"repeats": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            stages.run(**kwargs)
    assert torch.get_num_threads() == 1


def test_without_the_c_code_it_says_so(no_native):
    with pytest.raises(RuntimeError, match="cannot be built here"):
        stages.run(lengths=(64,))
