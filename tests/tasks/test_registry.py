import subprocess
import sys

import pytest

from longconv import tasks
from longconv.tasks.extras import require
from longconv.tasks.lm import LanguageModelling


def test_get_makes_the_task_with_its_options(tmp_path):
    (tmp_path / "a.txt").write_text("one line\n" * 100)
    task = tasks.get("lm", data=tmp_path / "a.txt", length=16, cache_dir=tmp_path / "cache")
    assert isinstance(task, LanguageModelling)
    assert task.length == 16
    assert tasks.available() == tuple(sorted(tasks.available()))
    assert "lm" in tasks.available()


def test_every_name_can_be_imported():
    for target in tasks._TASKS.values():
        module, _, name = target.partition(":")
        assert isinstance(getattr(require(module), name), type)


@pytest.mark.parametrize(("name", "hint"), [("ln", "did you mean 'lm'"), ("LM", "did you mean 'lm'"), ("x", None)])
def test_unknown_name_lists_the_known_ones(name, hint):
    with pytest.raises(ValueError, match=f"unknown task '{name}', known: .*lm") as error:
        tasks.get(name)
    assert "\n" not in str(error.value)
    assert (hint in str(error.value)) if hint else ("did you mean" not in str(error.value))


def test_importing_the_task_needs_no_extra():
    code = (
        "import sys\n"
        "for name in ('datasets', 'transformers', 'tokenizers', 'sentencepiece', 'tqdm', 'pyarrow'):\n"
        "    sys.modules[name] = None\n"
        "import longconv\n"
        "before = set(sys.modules)\n"
        "import longconv.tasks, longconv.tasks.lra, longconv.tasks.lm as lm\n"
        "assert lm.ByteTokenizer().decode(lm.ByteTokenizer().encode('é')) == 'é'\n"
        "assert not any(m.startswith(('longconv.layers', 'longconv.models')) for m in set(sys.modules) - before)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r'sentencepiece is missing: pip install "longconv\[train\]"'):
        require("sentencepiece")


def test_a_broken_package_speaks_for_itself(monkeypatch, tmp_path):
    (tmp_path / "broken_package_of_this_test.py").write_text("import a_module_that_is_nowhere")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_nowhere"):
        require("broken_package_of_this_test")
