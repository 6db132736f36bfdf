"""Fixtures of the whole suite: fixed seeds, poisoned memory, the Triton interpreter where there is no GPU."""

import importlib.util
import os
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
    from longconv.kernels.fftconv import scratch

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
    from longconv.kernels.fftconv import native

    monkeypatch.setattr(native, "trusted_library", lambda: None)


@pytest.fixture(params=["native", "operators"])
def on_a_cpu(request: pytest.FixtureRequest) -> str:
    """Both ways that long convolutions take on a CPU."""
    if request.param == "operators":
        request.getfixturevalue("no_native")
    return request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
