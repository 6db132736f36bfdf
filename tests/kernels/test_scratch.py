"""Memory that is kept from call to call: nothing may be seen of the call before."""

import ctypes
import threading

import numerics
import pytest
import torch

from longconv.functional import fft_conv
from longconv.kernels import scratch
from longconv.kernels.fftconv import fft_conv_reference

pytestmark = pytest.mark.usefixtures("on_a_cpu")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(scratch, "_kept", scratch._Kept())


def test_memory_is_kept_and_grows():
    first = scratch.empty("a", (3, 5), torch.complex64, CPU)
    assert first.shape == (3, 5)
    assert first.is_contiguous()
    assert scratch.empty("a", (2, 2), torch.float64, CPU).data_ptr() == first.data_ptr()
    assert scratch.empty("b", (2, 2), torch.float64, CPU).data_ptr() != first.data_ptr()
    assert scratch.empty("a", (3, 6), torch.complex64, CPU).shape == (3, 6)
    assert scratch._kept.by_slot["a"].numel() == 3 * 6 * 8
    assert scratch.empty("a", (0, 5), torch.float32, CPU).numel() == 0
    scratch.forget()
    assert not scratch._kept.by_slot


def test_large_tensors_and_other_devices_are_not_kept():
    scratch.empty("a", (scratch.MOST_BYTES // 4 + 1,), torch.float32, CPU)
    assert scratch.empty("a", (4,), torch.float32, torch.device("meta")).device.type == "meta"
    assert not scratch._kept.by_slot


def test_each_thread_has_its_own():
    ours, theirs = scratch.empty("a", (4,), torch.float32, CPU), []
    thread = threading.Thread(target=lambda: theirs.append(scratch.empty("a", (4,), torch.float32, CPU)))
    thread.start()
    thread.join()
    assert theirs[0].data_ptr() != ours.data_ptr()


@pytest.mark.parametrize("K", [3000, 700, 20], ids=["whole rows", "frames", "few taps"])
def test_calls_do_not_disturb_each_other(K):
    """Of different sizes, inside and outside of inference mode, forward passes before any backward pass."""
    calls = []
    for i, L in enumerate((3000, 5000, 3000)):
        u, k, gate = torch.randn(4, 3, L), torch.randn(3, K) / K**0.5, torch.randn(4, 3, L)
        x = [t.requires_grad_() for t in (u, k, gate)]
        with torch.inference_mode(i == 0):
            y = fft_conv(u, k, pre_gate=gate, post_gate=gate)
        calls.append((x, y))
    for i, (x, y) in enumerate(calls):
        wide = [t.detach().double().requires_grad_() for t in x]
        expected = fft_conv_reference(*wide[:2], pre_gate=wide[2], post_gate=wide[2])
        numerics.assert_close(y, expected)
        if i == 0:
            continue
        grads = torch.autograd.grad(y.square().sum(), x)
        for grad, e in zip(grads, torch.autograd.grad(expected.square().sum(), wide), strict=True):
            numerics.assert_close(grad, e, torch.float32)


def test_two_threads_at_once():
    u, k = torch.randn(2, 8, 4096), torch.randn(8, 4096) / 64
    expected, found = fft_conv_reference(u.double(), k.double()), {}

    def work(name):
        found[name] = [fft_conv(u * sign, k) * sign for sign in (1, -1) * 10]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for y in (*found[0], *found[1]):
        numerics.assert_close(y, expected)


def test_a_call_takes_no_new_pages_for_what_is_in_between():
    """Beyond its results, that is; before, it took some 6,000 pages of 4 KB, whenever they had been given back."""
    resource = pytest.importorskip("resource")
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("only glibc can be told to give freed memory back")
    u, k, dy = torch.randn(8, 64, 4096), torch.randn(64, 4096) / 64, torch.randn(8, 64, 4096)
    results = (u.nbytes + u.nbytes + k.nbytes) // resource.getpagesize()
    x = [u.requires_grad_(), k.requires_grad_()]

    def faults():
        libc.malloc_trim(0)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.autograd.grad(fft_conv(*x), x, dy)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert min(faults() for _ in range(3)) < results + 500
