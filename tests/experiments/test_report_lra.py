"""The table of runs, and the report that is drawn from it."""

import dataclasses
import json
import multiprocessing
from types import SimpleNamespace

import pytest
from rich.console import Console

from longconv import cli
from longconv.experiments import recipes, results
from longconv.experiments.recipes.lra.published import PUBLISHED, TASKS
from longconv.experiments.recipes.recipe import planned_steps
from longconv.experiments.reports import lra, lra_plot

VERSIONS = {"torch": "2.0", "python": "3.11", "longconv": "0.1", "transformers": "5"}


def fake_result(config, **changes):
    steps = planned_steps(config)
    values = {
        "metrics": {"accuracy": 0.6, "test_accuracy": 0.5911},
        "steps": steps,
        "planned_steps": steps,
        "sequences": steps * config.batch_size * config.accumulate,
        "complete": True,
        "best_step": 10,
        "parameters": 1234,
        "seconds": 61.25,
        "device": 'a "GPU", with commas',
        "versions": VERSIONS,
    }
    return SimpleNamespace(**values | changes)


def row(recipe="lra.listops.sgconv", config=None, share=1.0, smoke=False, **changes):
    config = config or recipes.get(recipe)
    result = fake_result(config)
    result.sequences = round(share * result.sequences)
    return dataclasses.replace(results.make_row(recipe, config, result, smoke=smoke), **changes)


def test_row_of_a_run_survives_the_file(tmp_path):
    config = dataclasses.replace(recipes.get("lra.listops.sgconv"), seed=7, minutes=2.0)
    path = tmp_path / "a" / "lra.csv"
    assert results.append("lra.listops.sgconv", config, fake_result(config), path=path) == path
    unfinished = fake_result(config, metrics={}, planned_steps=None, complete=False)
    results.append("", config, unfinished, path=path)
    whole, interrupted = results.read(path)
    assert whole == dataclasses.replace(
        row(config=config), date=whole.date, seed=7, seconds=61.2 if whole.seconds == 61.2 else 61.3
    )
    assert (whole.validation_accuracy, whole.test_accuracy) == (60.0, 59.11)
    assert whole.device == 'a "GPU", with commas'
    assert json.loads(whole.changes) == {"minutes": 2.0}
    assert interrupted.test_accuracy is None
    assert interrupted.planned_steps is None
    assert not interrupted.complete
    assert results.read(tmp_path / "none.csv") == []


def append_many(path, seed):
    for _ in range(40):
        results.append_row(path, ROW(seed))


def ROW(seed):
    values = dict.fromkeys((field.name for field in dataclasses.fields(results.Row)), "")
    numbers = {"steps": 1, "planned_steps": 1, "sequences": 1, "best_step": 1, "parameters": 1, "seconds": 1.0}
    accuracies = {"validation_accuracy": 1.0, "test_accuracy": 1.0, "complete": True, "smoke": False}
    return results.Row(**values | numbers | accuracies | {"seed": seed, "changes": "{}", "device": "x" * 3000})


def test_rows_are_whole_whoever_else_appends(tmp_path):
    path = tmp_path / "lra.csv"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(path, seed)) for seed in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = results.read(path)
    assert sorted(found.seed for found in rows) == sorted(40 * [0, 1, 2, 3])
    assert set(rows) == {ROW(seed) for seed in range(4)}
    assert not list(tmp_path.glob(".*"))  # no drafts are left


def test_tables_of_other_columns_are_left_alone(tmp_path):
    path = tmp_path / "lra.csv"
    path.write_text("date,task\n2026,lra/listops\n")
    with pytest.raises(ValueError, match="has columns date, task; these rows have date, task, layer"):
        results.append_row(path, row())
    assert path.read_text() == "date,task\n2026,lra/listops\n"
    with pytest.raises(ValueError, match="line 2 is not a row of results"):
        results.read(path)


def test_where_rows_go(tmp_path, monkeypatch):
    monkeypatch.delenv("LONGCONV_RESULTS", raising=False)
    assert results.default_path() == results.SHIPPED  # the tests run in a checkout
    monkeypatch.setenv("LONGCONV_RESULTS", str(tmp_path))
    config = dataclasses.replace(recipes.get("lra.listops.sgconv"), output=tmp_path / "runs" / "smoke" / "x")
    assert results.append("lra.listops.sgconv", config, fake_result(config)) == tmp_path / "lra.csv"
    smoke = results.append("lra.listops.sgconv", config, fake_result(config), smoke=True)
    assert smoke == tmp_path / "runs" / "smoke" / "lra.csv"
    assert results.read(smoke)[0].smoke


def score(*rows):
    ((_, found),) = lra.scores(rows).items()
    return found


def test_seeds_are_put_together():
    found = score(row(seed=0, test_accuracy=58.0), row(seed=1, test_accuracy=60.0))
    assert str(found) == "59.00 best 60.00 of 2"
    assert found.whole
    assert not found.changed


def test_incomplete_runs_are_marked():
    assert str(score(row(share=0.12, test_accuracy=57.1))) == "57.10* (12%)"
    assert str(score(row(share=0.0123, test_accuracy=57.1))) == "57.10* (1.2%)"
    # Done to the end of its own plan, but the recipe's is longer.
    config = dataclasses.replace(recipes.get("lra.listops.sgconv"), epochs=None, steps=768)
    short = row(config=config, test_accuracy=50.0)
    assert short.complete
    assert str(score(short)) == "50.00* (1%)"
    assert str(score(row(recipe="", config=config, test_accuracy=50.0))) == "50.00"


def test_recipes_that_the_clock_ends_are_whole_when_their_time_is_over():
    name = "lra-small.digits.sgconv"
    assert recipes.get(name).minutes == 1.5

    def timed(seconds):
        result = fake_result(recipes.get(name), seconds=seconds)
        return str(score(results.make_row(name, recipes.get(name), result)))

    assert timed(90.2) == "59.11"
    assert timed(45.0) == "59.11* (50%)"


def test_changed_options_are_marked():
    config = dataclasses.replace(recipes.get("lra.listops.sgconv"), hidden_size=64)
    assert str(score(row(config=config, test_accuracy=58.0))) == "58.00†"
    config = dataclasses.replace(recipes.get("lra.listops.sgconv"), compile=True, evaluate_every=7, data_dir="files")
    assert str(score(row(config=config, test_accuracy=58.0))) == "58.00"


def test_of_several_kinds_the_recipe_itself_counts():
    narrow = dataclasses.replace(recipes.get("lra.listops.sgconv"), hidden_size=64)
    whole, changed = row(test_accuracy=50.0), row(config=narrow, test_accuracy=60.0)
    short = row(share=0.5, test_accuracy=70.0, recipe_hash="short")
    assert score(short, changed, whole).rows == (whole,)
    assert score(changed, short).rows == (changed,)  # all of its plan
    # Neither is whole: chosen by validation, not by test.
    worse = row(share=0.5, validation_accuracy=40.0, test_accuracy=90.0, recipe_hash="worse")
    assert score(worse, short).rows == (short,)


def test_interrupted_runs_have_no_score():
    rows = [row(complete=False, test_accuracy=None)]
    assert lra.scores(rows) == {}
    assert any("interrupted" in cell for _, _, cells in lra.tables(rows) for line in cells for cell in line)


def test_published_table():
    averages = {published.model: published.average for published in PUBLISHED}
    # As their papers have them.
    for model, average in {"Transformer": 53.66, "S4-LegS": 86.09, "S4D-LegS": 84.89, "S4D-Inv": 85.50,
                           "SGConv": 87.17, "S5": 87.46, "MEGA": 88.21, "MEGA-chunk": 85.66}.items():  # fmt: skip
        assert abs(averages[model] - average) < 0.006
    assert averages["TCN"] is None
    for published in PUBLISHED:
        assert published.source
        assert all(value is None or 30 < value < 100 for value in published.accuracy.values())


def test_ours_is_right_below_the_published(capsys):
    rows = [row(f"lra.{task.partition('/')[2]}.sgconv", test_accuracy=80.0) for task in TASKS]
    (_, columns, cells), *_ = lra.tables([*rows, row("lra.listops.hyena", share=0.5, test_accuracy=41.0)])
    models = [line[0] for line in cells]
    assert models[models.index("SGConv") + 1] == "**ours: sgconv**"
    assert cells[models.index("**ours: sgconv**")][1:] == ["80.00"] * 7
    assert models[-1] == "**ours: hyena**"
    assert cells[-1] == ["**ours: hyena**", "41.00* (50%)", *["–"] * 6]
    assert all(len(line) == len(columns) for line in cells)


def test_terminal(capsys):
    rows = [row(test_accuracy=57.1, share=0.12), row("", config=recipes.get("lra.text.s4d"), test_accuracy=80.0)]
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    lra.print_tables(rows, console)
    said = console.export_text()
    for expected in ("57.10* (12%)", "ours: sgconv", "MEGA-chunk", "✗", "Runs without a recipe", "lra/text, s4d"):
        assert expected in said


def test_command_writes_markdown_between_its_markers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LONGCONV_RESULTS", str(tmp_path))
    for written in (row(test_accuracy=57.1, share=0.12), row(test_accuracy=12.34, smoke=True)):
        results.append_row(tmp_path / "lra.csv", written)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{lra.BEGIN}\nold\n{lra.END}\nafter\n")
    command = ["report", "lra", "--results-files", str(tmp_path / "lra.csv"), "--markdown", str(page)]
    assert cli.main(command) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{lra.BEGIN}\nFilled by")
    assert text.endswith(f"{lra.END}\nafter\n")
    assert "| **ours: sgconv** | 57.10\\* (12%) |" in text
    assert "12.34" not in text  # smoke
    assert cli.main(command) == 0
    assert page.read_text() == text
    page.write_text("no markers")
    assert cli.main(command) == 1
    assert "has no <!-- results: begin -->" in capsys.readouterr().err
    assert page.read_text() == "no markers"
    page.unlink()
    assert cli.main(command) == 0
    assert "57.10" in page.read_text()


def test_plot(tmp_path, monkeypatch):
    def run(name, task, mixers):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "train.json").write_text(json.dumps({"task": task, "mixers": mixers}))
        lines = [{"split": "train", "accuracy": 1.0, "seconds": 1.0}]
        lines += [{"split": "validation", "accuracy": i / 10, "seconds": 60.0 * i} for i in range(1, 6)]
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    for name, task, mixers in (("a", "lra/listops", "sgconv"), ("b", "lra/listops", "mega"), ("c", "lra/text", "s4d")):
        run(name, task, mixers)
    run("smoke/d", "lra/text", "s4d")
    found = lra_plot.curves(tmp_path / "runs")
    assert [(curve.run, curve.layer) for curve in found] == [("b", "mega"), ("a", "sgconv"), ("c", "s4d")]
    assert found[0].minutes == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert found[0].accuracy == pytest.approx((10.0, 20.0, 30.0, 40.0, 50.0))
    lra_plot.draw(found, tmp_path / "x" / "plot.png")
    assert (tmp_path / "x" / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no logs of classifiers"):
        lra_plot.curves(tmp_path / "x")
