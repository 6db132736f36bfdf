"""`longconv train NAME` and `longconv evaluate` on a classifier, as a user meets them."""

import csv
import json

import pytest

from longconv import cli
from longconv.training.callbacks import Clock


@pytest.fixture(autouse=True)
def _results(monkeypatch, tmp_path):
    monkeypatch.setenv("LONGCONV_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def fails(capsys, *argv):
    """The one line on stderr with which a command fails."""
    capsys.readouterr()
    assert cli.main(list(argv)) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_prefix_lists_recipes(capsys):
    assert cli.main(["train", "lra.listops"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("lra.listops.") for line in lines)
    assert any(line.startswith("lra.listops.sgconv ") for line in lines)


def test_help_teaches_every_form(capsys):
    for argv, expected in (
        (["train", "--help"], ["longconv train lra.listops.sgconv --smoke", "--teacher", "longconv train lra/listops"]),
        (["train", "lra.listops.sgconv", "--help"], ["--task-options", "--norm-position", "--batch-size"]),
    ):
        with pytest.raises(SystemExit) as exit_:
            cli.main(argv)
        assert exit_.value.code == 0
        out = capsys.readouterr().out
        assert all(text in out for text in expected)


def test_a_recipe_is_tried_out_and_its_model_evaluated(tmp_path, capsys):
    output = tmp_path / "runs" / "tried"
    options = ["--output", str(output), "--quiet", "--seed", "5", "--hidden-size", "8"]
    assert cli.main(["train", "lra.listops.sgconv", "--smoke", *options]) == 0
    out = capsys.readouterr().out
    said = json.loads((output / "train.json").read_text())
    assert (said["seed"], said["hidden_size"], said["mixers"]) == (5, 8, "sgconv")
    (row,) = rows(tmp_path / "runs" / "lra.csv")
    assert (row["recipe"], row["seed"], row["smoke"]) == ("lra.listops.sgconv", "5", "True")
    assert not (tmp_path / "results").exists()

    assert cli.main(["evaluate", str(output / "model"), "--json-output"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert f"test {accuracy:.4f}" in out
    assert float(row["test_accuracy"]) == pytest.approx(100 * accuracy)
    assert cli.main(["evaluate", str(output / "model"), "--split", "validation", "--max-batches", "1"]) == 0
    assert capsys.readouterr().out.startswith("validation: accuracy ")
    assert "length and max_bytes are for language models" in fails(
        capsys, "evaluate", str(output / "model"), "--length", "9"
    )
    assert cli.main(["info", str(output / "model")]) == 0
    assert "LongConvForSequenceClassification" in capsys.readouterr().out


def test_a_task_without_a_recipe(tmp_path, capsys):
    argv = ["train", "lra/listops", "--mixers", "attention", "--mixer-options", '{"attention": {"num_heads": 1}}']
    argv += ["--hidden-size", "8", "--layers", "1", "--steps", "2", "--batch-size", "1", "--quiet"]
    assert cli.main([*argv, "--task-options", '{"sizes": [4, 2, 2]}']) == 0
    assert "accuracy: validation" in capsys.readouterr().out
    (path,) = (tmp_path / "results").iterdir()
    (row,) = rows(path)
    assert (row["task"], row["recipe"], row["steps"], row["complete"]) == ("lra/listops", "", "2", "True")
    assert (tmp_path / "runs" / "lra.listops" / "model").is_dir()
    assert "steps must be at least 1, or 0 together with epochs or minutes" in fails(capsys, "train", "lra/listops")


def test_an_interrupted_recipe_is_in_the_table(tmp_path, capsys, monkeypatch):
    def interrupt(self, args, state, control, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Clock, "on_step_end", interrupt)
    assert cli.main(["train", "lra.listops.sgconv", "--smoke", "--quiet"]) == 130
    assert "interrupted" in capsys.readouterr().err
    (path,) = tmp_path.rglob("lra.csv")
    (row,) = rows(path)
    assert (row["steps"], row["complete"], row["test_accuracy"]) == ("1", "False", "")


def test_mistakes_are_one_line(capsys):
    assert "no recipe is called 'lra.listops.sgconf'; near: lra.listops.sgconv" in fails(
        capsys, "train", "lra.listops.sgconf"
    )
    assert "unknown task 'lra/lisstops'" in fails(capsys, "train", "lra/lisstops", "--steps", "1")
    assert "mixer 'micro_tcn' is causal only" in fails(
        capsys, "train", "lra.listops.sgconv", "--smoke", "--mixers", "micro_tcn"
    )
