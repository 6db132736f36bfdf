"""The profile of a convolution: its stages are all there. Nothing here asserts a speed."""

import pytest
import torch

from longconv.experiments.benchmarks import stages


@pytest.mark.parametrize("L", [100, 270_001])
def test_every_stage_is_measured(L, capsys):
    (profile,) = stages.run(lengths=(L,), elements=2 * L, repeats=1, threads=1)
    expected = set(stages.STAGES) - (set() if L > 262_144 else {"outer product", "outer inverse"})
    assert set(profile.stages) == expected
    assert all(ms >= 0 for ms in profile.stages.values())
    assert profile.floor == pytest.approx(sum(profile.stages[n] for n in expected & set(stages.FLOOR)))
    assert profile.call > 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*expected, "floor / call"))


def test_bad_arguments():
    for kwargs in ({"lengths": ()}, {"lengths": (0,)}, {"elements": 0}, {"repeats": 0}, {"threads": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            stages.run(**kwargs)
    assert torch.get_num_threads() == 1
