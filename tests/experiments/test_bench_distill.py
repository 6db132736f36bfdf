"""`longconv bench distill`: rows, table and plot of a tiny run; trained filters; mistakes."""

import itertools

import pytest
import torch

from longconv.experiments.benchmarks import distill
from longconv.experiments.benchmarks.report import read_rows
from longconv.models import LongConvConfig, LongConvForCausalLM

TINY = {
    "orders": (2, 4), "taps": 100, "filters": 2, "layer_filters": 4, "repeats": 1, "gradient_steps": 20,
    "methods": ("best", "gradient"),
}  # fmt: skip


def test_rows_table_and_plot(tmp_path, capsys):
    config = LongConvConfig(
        vocab_size=8, hidden_size=4, num_hidden_layers=2, mixers="hyena", max_position_embeddings=50
    )
    LongConvForCausalLM(config).save_pretrained(tmp_path / "models" / "small" / "model")
    output = tmp_path / "distill.csv"
    rows = distill.run(families=("sgconv",), folder=tmp_path / "models", output=output, **TINY)
    assert read_rows(output, distill.DistillRow) == rows
    assert [(row.family, row.trained, row.order, row.method) for row in rows] == [
        (family, trained, order, method)
        for family, trained in (("sgconv", False), ("small", True))
        for order in (2, 4)
        for method in ("best", "gradient")
    ]
    for best, gradient in zip(rows[::2], rows[1::2], strict=True):
        assert best.bound_mean <= best.error_mean <= gradient.error_mean <= gradient.error_max
    assert all((row.layer_seconds is None) == row.trained for row in rows)
    assert rows[1].layer_seconds > 0
    assert {row.taps for row in rows} == {100, 50}
    printed = capsys.readouterr().out
    assert "sgconv" in printed
    assert "seconds for 4 filters" in printed
    assert output.with_suffix(".png").stat().st_size > 10_000


def test_gradient_is_timed_by_a_few_steps(monkeypatch):
    asked = []
    monkeypatch.setattr(distill, "distill_filter", lambda *args, **options: asked.append(options))
    monkeypatch.setattr(distill.time, "perf_counter", itertools.count().__next__)
    seconds = distill._time_layer(torch.zeros(3, 10), ("best", "gradient"), 4, 2, 1000)
    assert [options.get("steps") for options in asked] == [None, 5, None, 5]
    assert seconds == {"best": [1.0, 1.0], "gradient": [200.0, 200.0]}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"taps": 0}, "taps must be at least 1"),
        ({"methods": ("magic",)}, "methods: unknown magic; known: "),
        ({"families": ("x", "s4d")}, "families: unknown x; known: "),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(ValueError, match=match):
        distill.run(**options)
