"""What the wheel holds, and that installing it shadows nobody."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAPPED = {
    "longconv": "longconv",
    "kernels": "longconv/kernels",
    "tasks": "longconv/tasks",
    "experiments": "longconv/experiments",
}


def call(*command: str, **kwargs) -> str:
    process = subprocess.run(command, capture_output=True, text=True, check=False, **kwargs)
    assert process.returncode == 0, f"{' '.join(command)}\n{process.stdout[-2000:]}\n{process.stderr[-4000:]}"
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the tree as git sees it, new files included, so that nothing is left in the tree itself."""
    copy, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # not one that is deleted but still in the index
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist), str(copy), cwd=dist)
    (path,) = dist.glob("longconv-*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


SOURCES = (".py", ".c", ".h")


def test_top_level_is_longconv_alone(names):
    tops = {name.split("/")[0] for name in names}
    (info,) = (top for top in tops if top.startswith("longconv-") and top.endswith(".dist-info"))
    assert tops == {"longconv", info}


def test_every_source_file_is_in_its_package(names):
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in MAPPED.items()
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in SOURCES
    }
    missing = sorted(expected - names)
    assert len(expected) > 20
    assert not missing, "not in the wheel; is their folder in pyproject.toml's list of packages? " + ", ".join(missing)
    extra = sorted(name for name in names if Path(name).suffix in SOURCES and name not in expected)
    assert not extra


def test_no_tests_and_the_rest_is_there(names):
    assert not [name for name in names if re.search(r"(^|/)(tests?[_/.]|conftest)", name)]
    assert "longconv/py.typed" in names
    assert [name for name in names if name.endswith("/LICENSE") and ".dist-info/" in name]


def test_installed_wheel_shadows_nobody(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", str(target)]
    call(*pip, str(wheel), cwd=elsewhere)
    code = """
import importlib.util, json
import longconv, longconv.kernels, longconv.tasks, longconv.experiments
import kernels, transformers
modules = (longconv, longconv.kernels, longconv.tasks, longconv.experiments, kernels)
found = {module.__name__: module.__file__ for module in modules}
found["get_kernel"] = hasattr(kernels, "get_kernel")
found["bare"] = [name for name in ("tasks", "experiments") if importlib.util.find_spec(name)]
print(json.dumps(found))
"""
    found = json.loads(
        call(sys.executable, "-c", code, cwd=elsewhere, env={**os.environ, "PYTHONPATH": str(target)}).splitlines()[-1]
    )
    for folder, package in MAPPED.items():
        name = "longconv" if folder == "longconv" else f"longconv.{folder}"
        assert Path(found[name]) == target / package / "__init__.py"
    assert found["get_kernel"], f"not Hugging Face's kernels: {found['kernels']}"
    assert Path(found["kernels"]).parent not in (ROOT / "kernels", target / "kernels")
    assert found["bare"] == []
