"""plot_filter draws what the filter is, where it is asked to."""

import math
import sys

import pytest
import torch

from longconv.filters import FreeFormFilter, S4DFilter, plot_filter


def test_taps_and_response(tmp_path):
    f = FreeFormFilter(6, 4)
    with torch.no_grad():
        f.taps[:] = torch.tensor([0.5, 0.5, 0, 0])  # a mean of two samples: |H| = |cos(pi f)|
    figure = plot_filter(f, 4, channels=[1, 5], path=tmp_path / "filter.png")
    assert (tmp_path / "filter.png").stat().st_size > 5000
    in_time, in_frequency = figure.axes
    assert len(in_time.lines) == len(in_frequency.lines) == 2
    assert in_time.lines[0].get_ydata().tolist() == [0.5, 0.5, 0, 0]
    frequency, decibels = in_frequency.lines[0].get_data()
    assert frequency[0] == 0
    assert frequency[-1] == 0.5
    assert decibels[0] == pytest.approx(0, abs=1e-9)
    quarter = abs(frequency - 0.25).argmin()
    assert decibels[quarter] == pytest.approx(20 * math.log10(math.cos(math.pi / 4)), abs=1e-3)
    assert decibels[-1] == -120
    assert [text.get_text() for text in in_time.get_legend().get_texts()] == ["channel 1", "channel 5"]


def test_into_given_axes_and_default_channels():
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots(2, 2)
    assert plot_filter(S4DFilter(9, 4), 50, ax=axes[1]) is figure
    assert len(axes[1][0].lines) == 4
    assert not axes[0][0].lines
    assert len(plot_filter(S4DFilter(1, 4), 1).axes[0].lines) == 1


def test_errors(monkeypatch):
    f = FreeFormFilter(2, 4)
    with pytest.raises(ValueError, match=r"channels must be in 0\.\.1, got 2"):
        plot_filter(f, 4, channels=[0, 2])
    with pytest.raises(ValueError, match="ax must be two axes, got 1"):
        plot_filter(f, 4, ax=[None])
    with pytest.raises(ValueError, match="max_length = 4"):
        plot_filter(f, 5)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"longconv\[train\]"):
        plot_filter(f, 4)
