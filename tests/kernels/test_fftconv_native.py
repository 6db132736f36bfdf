"""Long convolutions in C: every width of vectors, every length of transforms, every cut into frames and shares; the
build, and what there is without it."""

import fft_conv_cases
import numerics
import pytest
import torch

from longconv.functional import fft_conv
from longconv.kernels.fftconv import dispatch, fft_conv_reference, native
from longconv.kernels.fftconv.native import plan
from longconv.kernels.native import build, memory

pytestmark = pytest.mark.skipif(not build.possible(), reason="no C compiler, or not Linux")


@pytest.fixture
def cut(monkeypatch):
    """Make rows be cut into frames of so many points, and the frames of a channel into so many shares."""

    def set_cut(n, parts=1):
        def cut_rows(L, past, future, lanes):
            step = 2 * n - past - future
            assert step > 0
            return plan.Cut(past, future, n, past, step, -(-L // step))

        monkeypatch.setattr(native, "cut_rows", cut_rows)
        monkeypatch.setattr(native, "_parts", lambda channels, frames, threads: min(frames, parts))

    return set_cut


def check(x):
    u, k, skip, k_reverse, *gates = (x.get(name) for name in fft_conv_cases.TENSORS)
    assert not native.unavailable(u, (k, skip, k_reverse), gates)
    fft_conv_cases.check(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("L", "K", "R"), [(1, 1, 0), (2, 3, 5), (63, 63, 0), (64, 64, 64), (65, 200, 3), (1000, 999, 0)]
)
def test_equals_the_definition(native_width, L, K, R, dtype):
    check(fft_conv_cases.make(2, 3, L, K, R, dtype))


def test_every_radix_and_every_order_of_them(native_width):
    """Rows as long as a transform: there is no padding to hide behind."""
    lanes = native.NATIVE.library().longconv_lanes()
    seen = set()
    for n in (m for m in plan.lengths(lanes) if m <= 20_000):
        seen.add(tuple(plan.factorise(n // (4 * lanes))))
        u, k = torch.randn(1, 1, n), torch.randn(1, n) / n**0.5
        numerics.assert_close(fft_conv(u, k, impl="native"), fft_conv_reference(u.double(), k.double()), name=str(n))
    assert {R for radices in seen for R in radices} == {2, 3, 4, 5, 8}


@pytest.mark.parametrize("L", [2**17, 3 * 2**16, 270_001])
def test_long_rows(L):
    x = {name: t for name, t in fft_conv_cases.make(1, 2, L, L, 0).items() if name in ("u", "k", "skip")}
    check(x)


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize(
    ("n", "L", "K", "R"),
    [
        (64, 1000, 20, 0),
        (64, 1000, 127, 0),  # the filter reaches beyond n samples, and a frame gives one result
        (64, 300, 1, 100),  # so do the taps before lag 0
        (64, 1000, 60, 60),
        (128, 257, 5, 200),
        (320, 2000, 300, 30),
        (512, 5000, 700, 0),
        (512, 100, 7, 3),  # one frame
    ],
)
def test_any_cut_into_frames_and_shares(native_width, n, L, K, R, parts, cut):
    cut(n, parts)
    check(fft_conv_cases.make(2, 2, L, K, R))


def test_results_of_threads_are_those_of_one():
    """Filter gradients are summed in shares; what is of a row is the same to the bit."""
    x = {n: t.requires_grad_() for n, t in fft_conv_cases.make(5, 3, 700, 700, 100).items()}

    def everything(threads):
        torch.set_num_threads(threads)
        y = fft_conv(**x, impl="native")
        return [y, *torch.autograd.grad(y.square().sum(), x.values())]

    try:
        one, several, again = everything(1), everything(4), everything(4)
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(several, again, strict=True))
    for name, a, b in zip(("y", *x), one, several, strict=True):
        assert torch.equal(a, b) if name in ("y", "u", "pre_gate", "post_gate") else torch.allclose(a, b, 1e-4, 1e-4)


@pytest.mark.parametrize(
    "wanted", [("u",), ("k",), ("skip",), ("k_reverse",), ("pre_gate",), ("post_gate",), ("k", "u")]
)
@pytest.mark.parametrize("frames", [False, True])
def test_only_the_wanted_gradients(wanted, frames, cut):
    if frames:
        cut(128, 3)
    x = fft_conv_cases.make(2, 3, 500, 40, 20)
    wide = {n: t.double() for n, t in x.items()}
    for name in wanted:
        x[name].requires_grad_()
        wide[name].requires_grad_()
    y, expected = fft_conv(**x, impl="native"), fft_conv_reference(**wide)
    dy = torch.randn_like(y)
    grads = torch.autograd.grad(y, [x[name] for name in wanted], dy)
    for g, e in zip(grads, torch.autograd.grad(expected, [wide[name] for name in wanted], dy.double()), strict=True):
        numerics.assert_close(g, e, torch.float32)


def test_strides_and_taps_in_half_precision():
    x = fft_conv_cases.make(3, 4, 321, 100, 10, torch.bfloat16, torch.bfloat16)
    expected = fft_conv(**{n: t.float() for n, t in x.items()}, impl="native").bfloat16()
    last = {n: t.transpose(-1, -2).contiguous().transpose(-1, -2) for n, t in x.items() if t.dim() > 1}
    assert torch.equal(fft_conv(**{**x, **last}, impl="native"), fft_conv(**x, impl="native"))
    assert torch.equal(fft_conv(**x, impl="native"), expected)
    u = x["u"][:1].expand(3, -1, -1)
    assert torch.equal(fft_conv(u, x["k"], impl="native")[2], fft_conv(x["u"], x["k"], impl="native")[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "last", [("u",), ("dy",), ("post_gate", "pre_gate"), ("u", "pre_gate", "post_gate", "dy")], ids=str
)
@pytest.mark.parametrize(("D", "L", "K"), [(1, 50, 50), (16, 130, 130), (17, 33, 20), (40, 1, 1), (3, 2000, 30)])
def test_channels_beside_each_other(native_width, D, L, K, last, dtype, monkeypatch):
    """Groups of them are read together, unless rows are cut into frames, or are too long."""
    x = fft_conv_cases.make(2, D, L, K, min(7, L), dtype)
    dy = torch.randn(2, D, L).to(dtype)

    def results(last):
        leaves = {n: t.mT.contiguous().mT if n in last else t for n, t in x.items()}
        leaves = {n: t.detach().requires_grad_() for n, t in leaves.items()}
        y = fft_conv(**leaves, impl="native")
        return [y, *torch.autograd.grad(y, leaves.values(), dy.mT.contiguous().mT if "dy" in last else dy)]

    rows, together = results(()), results(last)
    monkeypatch.setattr(native, "MOST_POINTS_TOGETHER", 0)
    for names in zip(("y", *x), rows, together, results(last), strict=True):
        name, expected, *found = names
        for other in found:
            assert other.is_contiguous()
            if name in ("k", "skip", "k_reverse"):  # summed in other shares
                numerics.assert_close(other, expected.double())
            else:
                assert torch.equal(other, expected)


@pytest.mark.parametrize("u_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gate_dtype", [torch.float32, torch.bfloat16])
def test_gates_of_another_dtype(u_dtype, gate_dtype):
    """They keep their digits, and their gradients their dtype: such calls go another way."""
    x = {n: t.to(gate_dtype) if "gate" in n else t for n, t in fft_conv_cases.make(2, 3, 60, 60, 5, u_dtype).items()}
    fft_conv_cases.check(x)


def test_memory_that_is_not_kept(monkeypatch):
    """Freed before its time it would be given back to the system, and not be there."""
    monkeypatch.setattr(memory, "KEPT_BYTES", 0)
    u, k = torch.randn(1, 1, 2**20, requires_grad=True), torch.randn(1, 2**20) / 1024
    y = fft_conv(u, k, impl="native")
    numerics.assert_close(y, fft_conv_reference(u.detach().double(), k.double()))
    y.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_as_pytorch_rounds(dtype):
    """With a single tap of 1, on rows of one sample each: transforms of these are exact."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[values.isfinite()]
    y = fft_conv(values.view(-1, 1, 1), torch.ones(1, 1), impl="native").flatten()
    assert (y.float() - values.float()).abs().max() <= 0
    scale = 1 + 3 * torch.rand(len(values)).to(dtype)
    y = fft_conv(values.view(-1, 1, 1), torch.ones(1, 1), post_gate=scale.view(-1, 1, 1), impl="native").flatten()
    assert torch.equal(y, (values.float() * scale.float()).to(dtype))


def test_what_is_not_finite_stays_in_its_row():
    for L, K in ((300, 300), (5000, 20)):
        u, k = torch.randn(2, 20, L), torch.randn(20, K)
        clean = fft_conv(u, k, impl="native")
        u[0, 1, 17], u[1, 2, 0], u[1, 3, L - 1] = float("nan"), float("inf"), float("-inf")
        y = fft_conv(u, k, impl="native")
        touched = torch.zeros(2, 20, dtype=torch.bool)
        touched[0, 1] = touched[1, 2] = touched[1, 3] = True
        assert torch.equal(y[~touched], clean[~touched])
        assert not y[touched].isfinite().all(-1).any()
        y = fft_conv(u.bfloat16(), k, impl="native")
        assert not y[touched].isfinite().all(-1).any()


def test_cuts_are_whole_and_cheap():
    for lanes in (4, 8, 16):
        assert plan.lengths(lanes)[0] == 4 * lanes
        for L, past, future in (
            (1, 0, 0),
            (64, 63, 0),
            (100, 99, 99),
            (10_000, 3, 0),
            (10_000, 0, 4000),
            (2**20, 63, 0),
        ):
            chosen = plan.cut_rows(L, past, future, lanes)
            assert chosen.frames * chosen.step >= L > (chosen.frames - 1) * chosen.step
            assert chosen.n in plan.lengths(lanes)
            if chosen.frames > 1:
                assert (chosen.origin, chosen.step) == (past, 2 * chosen.n - past - future)
            else:
                assert 2 * chosen.n >= L + max(past, future)
    assert plan.cut_rows(4096, 4095, 0, 16).n == 4096
    assert plan.cut_rows(4096, 1023, 0, 16).n == 2560
    assert plan.cut_rows(2**20, 63, 0, 16).n <= 1024
    with pytest.raises(ValueError, match="no radices"):
        plan.factorise(7)


def test_shares_keep_threads_busy():
    assert native._parts(64, 8, 2) == 1
    assert native._parts(1, 8, 2) == 2
    assert native._parts(1, 1, 8) == 1
    assert native._parts(3, 8, 2) == 2
    assert native._parts(8, 100, 64) == 8


# --- The build ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.ones(1, 2, 8, dtype=torch.float64)}, "no torch.float64"),
        ({"k": torch.ones(2, 8, dtype=torch.float64)}, "filters must be float32 or of u's dtype"),
        (
            {"u": torch.ones(1, 2, 8, dtype=torch.bfloat16), "pre_gate": torch.ones(1, 2, 8)},
            "gates must be of u's dtype",
        ),
        ({"circular": True}, "no circular"),
        ({"u": torch.ones(1, 2, 8, device="meta"), "k": torch.ones(2, 8, device="meta")}, "needs a CPU"),
    ],
)
def test_what_it_cannot_do_is_refused_or_done_otherwise(change, message):
    x = {"u": torch.ones(1, 2, 8), "k": torch.ones(2, 8), **change}
    with pytest.raises(ValueError, match=rf"impl='native' cannot be had, because .*{message}"):
        fft_conv(**x, impl="native")
    if x["u"].device.type == "cpu":
        wide = {n: t.double() if isinstance(t, torch.Tensor) else t for n, t in x.items()}
        numerics.assert_close(fft_conv(**x), fft_conv_reference(**wide), x["u"].dtype)


def test_auto_takes_it_and_torch_does_not(monkeypatch):
    taken = []
    for name in ("conv_forward", "conv_backward"):
        function = getattr(native, name)
        monkeypatch.setattr(native, name, lambda *a, f=function, n=name: taken.append(n) or f(*a))
    u, k = torch.randn(1, 2, 50, requires_grad=True), torch.randn(2, 50)
    packed = torch.tensor([0, 20, 50])
    for impl, expected in (("auto", ["conv_forward", "conv_backward"]), ("torch", [])):
        for cu_seqlens in (None, packed):
            taken.clear()
            fft_conv(u, k, cu_seqlens=cu_seqlens, impl=impl).sum().backward()
            assert sorted(set(taken), reverse=True) == expected, (impl, cu_seqlens)
    assert not dispatch.compiled("auto", torch.empty(1, 2, 8, device="meta"), (), (), False)
