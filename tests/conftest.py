"""Fixtures of the whole suite: fixed seeds, poisoned memory, the Triton interpreter where there is no GPU."""

import ctypes
import importlib.util
import os
import platform
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# No test may reach a hub: data and models are generated or read from local folders.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The tensors here are tiny and the suite runs as one process per core: more threads would only wait for each other.
torch.set_num_threads(1)
# `with torch.device(...)` remembers the functions that make tensors at its first use, which must not be poisoned ones.
with torch.device("meta"):
    torch.empty(0)

# What a property test does unless it says otherwise; `--hypothesis-profile=thorough` for a night's work.
hypothesis.settings.register_profile("ordinary", max_examples=500, deadline=None)
hypothesis.settings.register_profile("thorough", max_examples=20_000, deadline=None)
hypothesis.settings.load_profile("ordinary")

# `import numerics` without this folder on the path, where its subfolders would pass for packages (longconv, kernels).
for _name in ("numerics", "fft_conv_cases", "recurrence_cases"):
    _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_name}.py"))
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_name])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill `torch.empty` and its like with NaN, so that an element nobody wrote is seen."""
    from longconv.kernels import scratch

    def poison(make):
        def wrapped(*args, **kwargs):
            out = make(*args, **kwargs)
            if torch.compiler.is_compiling() or out.device.type == "meta":
                return out
            return out.fill_(float("nan")) if out.is_floating_point() or out.is_complex() else out

        return wrapped

    for module, name in ((torch, "empty"), (torch, "empty_like"), (scratch, "empty")):
        monkeypatch.setattr(module, name, poison(getattr(module, name)))


@pytest.fixture
def no_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long convolutions are computed by PyTorch's operators, as where there is no C compiler."""
    from longconv.kernels.native import build

    monkeypatch.setattr(build.Native, "library", lambda self: None)


@pytest.fixture(params=["native", "operators"])
def on_a_cpu(request: pytest.FixtureRequest) -> str:
    """Both ways that long convolutions take on a CPU."""
    if request.param == "operators":
        request.getfixturevalue("no_native")
    return request.param


# Options of the compiler, what the processor must have, and how many numbers a vector then has.
_WIDTHS = {"native": None, "eight": ("-mno-avx512f", "avx2", 8), "four": ("-mno-avx512f -mno-avx2 -mno-avx", "sse2", 4)}


@pytest.fixture(params=_WIDTHS)
def native_width(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The C code as it is compiled for this processor, and for others whose vectors are shorter."""
    from longconv.kernels.native import build

    if _WIDTHS[request.param] is not None:
        options, needed, lanes = _WIDTHS[request.param]
        if platform.machine() != "x86_64" or needed not in Path("/proc/cpuinfo").read_text():
            pytest.skip(f"needs {needed}")
        monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path_factory.getbasetemp() / "widths"))
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, *options.split()))

        def library(self: build.Native) -> ctypes.CDLL:
            found = ctypes.CDLL(str(build.build(self.source, build.find_compiler())))
            assert found.longconv_lanes() == lanes
            return found

        monkeypatch.setattr(build.Native, "library", library)
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
