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


def shown(row: SyntheticRow | None) -> str:
    if row is None:
        return ""
    return f"{100 * row.test:.1f}" + ("" if row.steps == 4_000 else f" ({row.steps:,})")


def test_what_was_reached():
    found = {(row.task.partition("/")[2], row.mixer): row for row in ROWS if row.length == 256}
    said = table("reached")
    for name, *cells, _ in said:
        assert cells == [shown(found.get((name.partition(",")[0], mixer))) for mixer in MIXERS]
    assert sum(cell != "" for _, *cells, _ in said for cell in cells) == len(found) >= 19
    # The known ordering: Arora et al. 2023, Poli et al. 2023.
    recall = {mixer: found["recall", mixer].test for mixer in MIXERS}
    assert min(recall["attention"], recall["hyena"], recall["hyena-attention"]) >= 0.99
    assert recall["sgconv"] < 0.2


def test_what_was_reached_by_length():
    found = {(row.length, row.mixer): row for row in ROWS if row.task == "synthetic/recall"}
    said = table("lengths")
    assert [int(length) for length, *_ in said] == [64, 128, 256, 512]
    for length, *cells in said:
        assert cells == [shown(found[int(length), mixer]) for mixer in MIXERS]


def test_rows_are_of_the_recipes_as_they_are():
    for row in ROWS:
        config = synthetic.configuration(row.task.partition("/")[2], row.mixer, row.length)
        assert row.recipe_hash == recipe_hash(config)
        assert row.steps == config.steps or row.validation >= config.stop_accuracy
