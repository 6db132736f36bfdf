"""docs/synthetic.md: the accuracies on the page are those of the file."""

from pathlib import Path

from longconv.experiments.benchmarks import report
from longconv.experiments.benchmarks.synthetic import SyntheticRow
from longconv.experiments.recipes import synthetic
from longconv.experiments.results import recipe_hash

ROOT = Path(__file__).resolve().parents[1]
ROWS = report.read_rows(ROOT / "experiments/benchmarks/results/synthetic.csv", SyntheticRow)
MIXERS = ("attention", "hyena", "sgconv", "hyena-attention")


def table(mark: str) -> list[list[str]]:
    """The cells of a table of the page, without its heading."""
    page = (ROOT / "docs/synthetic.md").read_text(encoding="utf-8")
    lines = page.partition(f"<!-- {mark}: begin -->")[2].partition(f"<!-- {mark}: end -->")[0].strip().splitlines()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def shown(task: str, mixer: str, length: int = 256) -> str:
    """Test accuracies of the seeds in percent, and how many updates where a run ended before the last one."""
    rows = [row for row in ROWS if (row.task, row.mixer, row.length) == (f"synthetic/{task}", mixer, length)]
    planned = synthetic.configuration(task, mixer, length).steps
    return ", ".join(f"{100 * row.test:.1f}" + ("" if row.steps == planned else f" ({row.steps:,})") for row in rows)


def test_what_was_reached():
    said = table("reached")
    for name, *cells, _ in said:
        assert cells == [shown(name.partition(",")[0], mixer) for mixer in MIXERS]
    assert len([cell for _, *cells, _ in said for cell in cells if cell]) >= 19
    # The known ordering: Arora et al. 2023, Poli et al. 2023.
    recall = [row for row in ROWS if (row.task, row.length) == ("synthetic/recall", 256)]
    assert {row.mixer for row in recall} == set(MIXERS)
    assert all(row.test < 0.2 if row.mixer == "sgconv" else row.test >= 0.99 for row in recall)
    assert len([row for row in recall if row.mixer == "hyena"]) == 3


def test_what_was_reached_by_length():
    said = table("lengths")
    assert [int(length) for length, *_ in said] == [64, 128, 256, 512]
    for length, *cells in said:
        assert cells == [shown("recall", mixer, int(length)) for mixer in MIXERS]
        assert all(cells)


def test_rows_are_of_the_recipes_as_they_are():
    for row in ROWS:
        config = synthetic.configuration(row.task.partition("/")[2], row.mixer, row.length)
        assert row.recipe_hash == recipe_hash(config)
        assert row.steps == config.steps or row.validation >= config.stop_accuracy
