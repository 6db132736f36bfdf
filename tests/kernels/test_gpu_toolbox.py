"""The tools of Triton kernels, without a GPU: compiling for GPUs that are not there, choosing a configuration."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch

from longconv.kernels import gpu
from longconv.kernels.gpu import TARGETS, Config, bucket, choose
from longconv.kernels.gpu.aot import KB, Case, CompileReport, compile_all, table

choose_module = sys.modules["longconv.kernels.gpu.choose"]
CPU = torch.device("cpu")


# Multiplies (N, N) matrices; with 256 x 256 in one block neither registers nor shared memory suffice on most GPUs.
KERNEL = """
    import triton
    import triton.language as tl

    @triton.jit
    def product(a, b, c, rows, N: tl.constexpr, dtype: tl.constexpr):
        i = tl.arange(0, N)
        at = i[:, None] * N + i[None, :]
        tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)).to(dtype), mask=i[:, None] < rows)
"""


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """Compile the product for every target, from a process that may run the interpreter."""
    tmp_path.joinpath("some_kernels.py").write_text(textwrap.dedent(KERNEL))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tl = pytest.importorskip("triton.language")

    def compile_product(N, targets=None):
        types = {"a": "*fp16:16", "b": "*fp16:16", "c": "*fp16:16", "rows": "i32"}
        case = Case("some_kernels:product", types, {"N": N, "dtype": tl.float16}, num_warps=4, label=f"product {N}")
        return compile_all([case], targets, workers=2)

    return compile_product


def test_targets_have_the_limits_of_their_data_sheets():
    limits = {name: target.shared_limit // KB for name, target in TARGETS.items()}
    assert limits == {"sm_80": 163, "sm_86": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64}


def test_compiles_for_every_target_and_reads_what_it_took(reports):
    found = reports(64)
    assert [str(r.target) for r in found] == list(TARGETS)
    for r in found:
        assert r.fits
        assert r.spill_bytes == 0
        assert 20 < r.registers <= 255
        assert 8 * KB <= r.shared_bytes < 17 * KB  # one operand of 64 x 64 half-precision numbers, or both; barriers
        assert r.matmuls > 0
        assert "product 64" in table([r])
        assert "!" not in table([r])


def test_spills_and_too_much_shared_memory_are_seen(reports):
    (found,) = reports(256, [TARGETS["sm_90"]])
    assert 256 * KB <= found.shared_bytes < 257 * KB  # two operands of 128 KB
    assert not found.fits
    assert found.spill_bytes > 0
    assert table([found]).count("!") == 2


def test_what_does_not_compile_says_so(reports):
    with pytest.raises(RuntimeError, match=r"(?s)arange.*power of 2.*product 48 for sm_80"):
        reports(48, [TARGETS["sm_80"]])


def test_arguments_without_type_are_named(monkeypatch, tmp_path):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)

    class Kernel:
        arg_names = ("a", "N")
        __name__ = "product"

    target = TARGETS["sm_80"]
    for types, values in (
        ({"a": "*fp32"}, {}),
        ({"a": "*fp32", "N": "i32"}, {"N": 3}),
        ({"a": "i1", "M": "i1"}, {"N": 1}),
    ):
        with pytest.raises(ValueError, match=r"'N'|'M'"):
            gpu.compile_kernel(Kernel, types, values, target)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
        gpu.compile_kernel(Kernel, {"a": "*fp32"}, {"N": 3}, target)


def test_table_is_aligned():
    rows = [CompileReport(label, TARGETS["sm_80"], 4, 1, 1024, 32, 0, 0) for label in ("short", "a longer label")]
    assert len({len(line) for line in table(rows).splitlines()}) == 1


def test_devices_say_why_not(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert gpu.interpreting()
    assert gpu.triton_available(CPU)
    assert "meta" in gpu.triton_unavailable(torch.device("meta"))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert not gpu.interpreting()
    assert "TRITON_INTERPRET" in gpu.triton_unavailable(CPU)
    assert "meta" in gpu.triton_unavailable(torch.device("meta"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert gpu.triton_unavailable(torch.device("cuda")) == "triton is not installed"


@pytest.mark.parametrize(
    ("capability", "hip", "allowed"),
    [((7, 5), None, False), ((8, 0), None, True), ((12, 0), None, True), ((9, 4), "6.4", True)],
)
def test_old_gpus_are_refused(monkeypatch, capability, hip, allowed):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    reason = gpu.triton_unavailable(torch.device("cuda", 0))
    assert (reason is None) == allowed
    assert allowed or "8.0 or newer, and cuda:0 has 7.5" in reason


class Properties:
    major, minor, multi_processor_count = 9, 0, 132

    def __init__(self, **limits):
        self.__dict__.update(limits)


@pytest.mark.parametrize(
    ("properties", "limit"),
    [
        (Properties(shared_memory_per_block_optin=227 * KB, shared_memory_per_block=48 * KB), 227 * KB),
        (Properties(shared_memory_per_block_optin=0, shared_memory_per_block=64 * KB), 64 * KB),
        (Properties(shared_memory_per_block=64 * KB), 64 * KB),
        (Properties(), 48 * KB),
    ],
)
def test_shared_memory_is_asked_of_the_device(monkeypatch, properties, limit):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    choose_module.device_key.cache_clear()
    assert gpu.shared_memory_limit(torch.device("cuda", 0)) == limit
    assert choose_module.device_key(torch.device("cuda", 0)).endswith(f"9.0-132-{limit // KB}")


@pytest.mark.parametrize(("length", "power"), [(1, 1), (2, 2), (3, 4), (1000, 1024), (1024, 1024), (1025, 2048)])
def test_bucket(length, power):
    assert bucket(length) == power


SMALL, MEDIUM, LARGE = (Config({"BLOCK": b}, num_warps=4, shared_bytes=b * KB) for b in (16, 100, 400))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LONGCONV_TUNE", raising=False)
    monkeypatch.setattr(choose_module, "_measured", {})
    monkeypatch.setattr(choose_module, "_shipped", lambda: {})
    return tmp_path / "cache"


class Clock:
    """A timer for which a configuration takes as long as said; it counts its calls."""

    def __init__(self, **times):
        self.times, self.calls = times, []

    def __call__(self, call):
        self.calls.append(call)
        return call()

    def run(self, config):
        return self.times[f"b{config.constants['BLOCK']}"]


def test_the_first_that_fits(cache, monkeypatch):
    assert choose("k", 100, ("fp32",), [LARGE, MEDIUM, SMALL], CPU) is MEDIUM
    monkeypatch.setattr(choose_module, "shared_memory_limit", lambda device: 64 * KB)
    assert choose("k", 100, ("fp32",), [LARGE, MEDIUM, SMALL], CPU) is SMALL
    with pytest.raises(ValueError, match="k needs 102400 bytes of shared memory, and cpu has 65536"):
        choose("k", 100, ("fp32",), [LARGE, MEDIUM], CPU)
    assert not cache.exists()


def test_nothing_is_measured_unless_asked_for(cache):
    clock = Clock(b100=2.0, b16=1.0)
    assert choose("k", 100, (), [MEDIUM, SMALL], CPU, clock.run, clock) is MEDIUM
    assert not clock.calls


def test_measured_once_for_a_bucket_and_kept_on_disk(cache, monkeypatch):
    monkeypatch.setenv("LONGCONV_TUNE", "1")
    clock = Clock(b100=2.0, b16=1.0)
    for length in (65, 100, 128):
        assert choose("k", length, ("fp32", True), [MEDIUM, SMALL], CPU, clock.run, clock) is SMALL
    assert len(clock.calls) == 2
    assert choose("k", 129, ("fp32", True), [MEDIUM, SMALL], CPU, clock.run, clock) is SMALL
    assert choose("k", 100, ("fp16", True), [MEDIUM, SMALL], CPU, clock.run, clock) is SMALL
    assert len(clock.calls) == 6
    assert len(list(cache.rglob("*.json"))) == 3
    assert not list(cache.rglob("*.tmp"))
    # a new process, which is not asked to measure
    monkeypatch.setattr(choose_module, "_measured", {})
    monkeypatch.setenv("LONGCONV_TUNE", "0")
    assert choose("k", 100, ("fp32", True), [MEDIUM, SMALL], CPU) is SMALL
    assert choose("k", 1000, ("fp32", True), [MEDIUM, SMALL], CPU) is MEDIUM
    # a candidate that is no more, and one that no longer fits
    other = Config({"BLOCK": 32})
    assert choose("k", 100, ("fp32", True), [other, MEDIUM], CPU) is other


def test_a_broken_cache_is_no_cache(cache, monkeypatch):
    monkeypatch.setenv("LONGCONV_TUNE", "1")
    clock = Clock(b100=2.0, b16=1.0)
    choose("k", 100, (), [MEDIUM, SMALL], CPU, clock.run, clock)
    (path,) = cache.rglob("*.json")
    for content in ("", "[]", '{"entry": "another", "config": {}}', "{}"):
        path.write_text(content)
        monkeypatch.setattr(choose_module, "_measured", {})
        monkeypatch.setenv("LONGCONV_TUNE", "0")
        assert choose("k", 100, (), [MEDIUM, SMALL], CPU) is MEDIUM
    monkeypatch.setattr(choose_module, "_measured", {})
    monkeypatch.setenv("LONGCONV_TUNE", "1")
    assert choose("k", 100, (), [MEDIUM, SMALL], CPU, clock.run, clock) is SMALL
    assert json.loads(path.read_text())["config"]["constants"] == {"BLOCK": 16}


def test_a_folder_that_cannot_be_written_is_measured_once_in_a_process(tmp_path, cache, monkeypatch):
    tmp_path.joinpath("file").write_text("")
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "file"))
    monkeypatch.setenv("LONGCONV_TUNE", "1")
    clock = Clock(b100=2.0, b16=1.0)
    for _ in range(3):
        assert choose("k", 100, (), [MEDIUM, SMALL], CPU, clock.run, clock) is SMALL
    assert len(clock.calls) == 2


def test_the_shipped_table_comes_before_the_first_and_after_measurements(cache, monkeypatch):
    entry = {"constants": {"BLOCK": 16}, "num_warps": 4, "num_stages": 2}
    monkeypatch.setattr(choose_module, "_shipped", lambda: {"cpu": {"k-fp32-128": entry}})
    assert choose("k", 100, ("fp32",), [MEDIUM, SMALL], CPU) is SMALL
    assert choose("k", 200, ("fp32",), [MEDIUM, SMALL], CPU) is MEDIUM
    monkeypatch.setenv("LONGCONV_TUNE", "1")
    clock = Clock(b100=1.0, b16=2.0)
    assert choose("k", 100, ("fp32",), [MEDIUM, SMALL], CPU, clock.run, clock) is MEDIUM


def test_the_shipped_table_can_be_read():
    assert isinstance(choose_module._shipped(), dict)


def test_importing_the_tools_imports_no_triton():
    code = "import sys, longconv.kernels.gpu; assert 'triton' not in sys.modules"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
