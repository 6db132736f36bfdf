"""The build of the C code: kept, shared, refused, and what there is without it."""

import ctypes
import os
import subprocess
import sys
import threading

import pytest

from longconv.kernels.fftconv import native
from longconv.kernels.native import build
from longconv.kernels.shortconv import native as shortconv_native

pytestmark = pytest.mark.skipif(not build.possible(), reason="no C compiler, or not Linux")
SOURCE = native.NATIVE.source

_REPORT = """
import torch, warnings
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    from longconv.functional import fft_conv
    from longconv.kernels.fftconv import native
    y = fft_conv(torch.ones(1, 1, 9), torch.ones(1, 9))
assert y.flatten().round().tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9], y
print(native.NATIVE.library() is not None, *(str(w.message).split(": ")[0] + ": " + str(w.message) for w in seen))
"""


def report(**environment):
    command = [sys.executable, "-P", "-c", _REPORT]
    environment = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_what_can_be_built_is():
    """Or all tests of the C code would be skipped when it does not compile."""
    assert native.NATIVE.library() is not None
    assert shortconv_native.NATIVE.library() is not None


def test_without_a_compiler_everything_works(tmp_path):
    environment = {"LONGCONV_CACHE": str(tmp_path), "CC": ""}
    assert report(LONGCONV_NATIVE="0").strip() == "False"
    assert report(**environment, PATH=str(tmp_path)).strip() == "False"
    broken = tmp_path / "bad-compiler"
    broken.write_text("#!/bin/sh\necho cannot do that >&2\nexit 1\n")
    broken.chmod(0o755)
    out = report(LONGCONV_CACHE=str(tmp_path), CC=str(broken))
    assert out.startswith("False")
    assert "cannot do that" in out
    assert not list(tmp_path.glob("*.so"))


_THREADS = """
import sentencepiece  # has an OpenMP library of its own
import torch
from pathlib import Path
from longconv.kernels.native import build
from longconv.kernels.shortconv import native as shortconv_native
torch.ones(1000, 1000) @ torch.ones(1000, 1000)
address, lines = build.openmp(), Path("/proc/self/maps").read_text().splitlines()
(path,) = (l.split()[-1] for l in lines if int(l.split("-")[0], 16) <= address < int(l.split()[0].split("-")[1], 16))
print(Path(path).is_relative_to(Path(torch.__file__).parent), len({l.split()[-1] for l in lines if "gomp" in l}))
"""


def test_threads_are_those_of_pytorch():
    """Others beside them made training 2.5 times slower."""
    pytest.importorskip("sentencepiece")
    out = subprocess.run([sys.executable, "-P", "-c", _THREADS], capture_output=True, text=True, check=True).stdout
    own, libraries = out.split()
    assert own == "True"
    assert int(libraries) >= 1


_DEFAULTS = """
import torch
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")  # as a user of a GPU sets it
from longconv.functional import fft_conv, short_conv
u, k = torch.ones(1, 16, 90, device="cpu", dtype=torch.float32), torch.ones(16, 90, device="cpu", dtype=torch.float32)
for x in (u, u.mT.contiguous().mT):
    x = x.requires_grad_()
    y, z = fft_conv(x, k, impl="native"), short_conv(x, k[:, :3], activation="silu", impl="native")
    (y.sum() + z.sum()).backward()
assert y[0, 3].round().tolist() == list(range(1, 91)), y
"""


def test_default_dtype_and_device_do_not_matter():
    subprocess.run([sys.executable, "-P", "-c", _DEFAULTS], capture_output=True, text=True, check=True)


_COMPILED = """
import torch
from longconv.functional import fft_conv, short_conv
u, w, k = torch.randn(2, 3, 50), torch.randn(3, 4), torch.randn(3, 50)
def f(u):
    return fft_conv(short_conv(u.tanh(), w, activation="silu"), k, impl="native")
y = torch.compile(f, fullgraph=True, backend="aot_eager")(u)
assert torch.allclose(y, f(u), 1e-4, 1e-4)
"""


def test_a_first_use_under_torch_compile():
    """It does not look into the build."""
    subprocess.run([sys.executable, "-P", "-c", _COMPILED], capture_output=True, text=True, check=True)


def test_wrong_results_are_noticed():
    wrong = build.Native(SOURCE, native._Job, lambda library: False)
    with pytest.warns(UserWarning, match="computes wrong results"):
        assert wrong.library() is None
    assert "no compiled library" in wrong.unavailable(None)

    class Other(ctypes.Structure):  # not the one of C
        _fields_ = (("n", ctypes.c_int64),)

    other = build.Native(SOURCE, Other, lambda library: True)
    with pytest.warns(UserWarning, match="computes wrong results"):
        assert other.library() is None


def test_the_build_is_kept_and_several_processes_may_build_it(tmp_path, monkeypatch):
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "new" / "folder"))
    threads = [threading.Thread(target=build.build, args=(SOURCE, build.find_compiler())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (path,) = (tmp_path / "new" / "folder").iterdir()
    before = path.stat().st_mtime_ns
    assert build.build(SOURCE, build.find_compiler()) == path
    assert path.stat().st_mtime_ns == before
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert build.build(SOURCE, build.find_compiler()) != path


def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "file" / "folder"))
    with pytest.raises(OSError, match="no cache folder"):
        build.build(SOURCE, build.find_compiler())
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)  # anybody could put a library there
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "open"))
    with pytest.raises(OSError, match="no cache folder"):
        build.build(SOURCE, build.find_compiler())
    monkeypatch.delenv("LONGCONV_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with monkeypatch.context() as homeless:
        homeless.setattr(build.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        assert [folder.name for folder in build._cache_folders()] == [f"longconv-{os.getuid()}"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path))
    assert build.build(SOURCE, build.find_compiler()).parent == tmp_path / f"longconv-{os.getuid()}"
