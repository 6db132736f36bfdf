"""The Triton kernels of `fft_conv` in all modes: lengths, sides, packed rows, strides, streams, compilation."""

import contextlib

import pytest
import torch
from gpu_cases import DTYPES, at_each_place, check, compare, make, run

from longconv.functional import fft_conv
from longconv.kernels.fftconv import native
from longconv.kernels.fftconv.monarch import configs, conv
from longconv.kernels.fftconv.op import fft_conv_op
from longconv.kernels.gpu import shared_memory_limit

HALF = {"cpu": torch.float16, "cuda": torch.bfloat16}  # the interpreter multiplies bfloat16 wrongly
ANYWHERE = at_each_place([None], [None])


@at_each_place(
    [(1, torch.float32), (65, torch.float16), (301, torch.float32)],
    [
        (L, dtype)
        for L in (1, 2, 63, 1021, 2048, 4099, 9001, 20_011, 65_537, 262_144, 1_000_003)
        for dtype in (DTYPES if L < 10_000 else DTYPES[:1] if L > 100_000 else DTYPES[::2])
    ],
)
@pytest.mark.parametrize("circular", [False, True], ids=["linear", "circular"])
def test_lengths_and_both_sides(place, case, circular):
    """Odd, prime and other lengths; circular filters longer than the row, which wrap more than once."""
    L, dtype = case
    x = make(place, 3, 5, L, L + 7 if circular else L, dtype, max(1, L // 2), "gates", "skip")
    check(x, circular=circular)


@at_each_place(
    [(64, 700, torch.float16), (300, 700, torch.float32)],
    [
        (K, L, dtype)
        for K in (1, 64, 512, 1000, 2048, 4096, 8192)
        for L, dtype in ((16_384, DTYPES[0]), (16_384, DTYPES[2]), (100_003, DTYPES[1]), (2**20, DTYPES[0]))
    ],
)
def test_filters_shorter_than_the_row(place, case):
    K, L, dtype = case
    check(make(place, 2, 3, L, K, dtype, 0, "gates"))


@at_each_place(
    [(20, 30, 500, torch.float32)],
    [(*taps, L, dtype) for taps in ((100, 3000), (2000, 1)) for L in (50_000, 2**20) for dtype in DTYPES],
)
def test_short_filters_on_both_sides(place, case):
    K, K_reverse, L, dtype = case
    check(make(place, 3, 2, L, K, dtype, K_reverse, "skip"))


@at_each_place([(0, 70, 1, 129, 0, 65)], [(0, 2048, 1, 77, 5000, 4096, 0, 300, 299, 65_000, 20_000, 31, 9000, 0)])
@pytest.mark.parametrize("circular", [False, True], ids=["linear", "circular"])
@pytest.mark.parametrize("K", [16, 3000])
def test_packed(place, case, circular, K):
    if place == "cpu":
        K = min(K, 140)
    ends = torch.tensor(case).cumsum(0).to(place, torch.int32)
    cu_seqlens = torch.cat([ends.new_zeros(1), ends])
    x = make(place, 1, 3, sum(case), K, HALF[place], K // 2, "gates", "skip")
    check(x, circular=circular, cu_seqlens=cu_seqlens)


@at_each_place([(2, 3, 256)], [(64, 8224, 4096), (4, 520, 2**20)])
def test_more_samples_than_32_bits_count(place, case):
    """On the chip and in three kernels; the incoming gradient is the input itself, to save memory."""
    B, D, L = case
    if place == "cuda":
        assert B * D * L > 2**31
        if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
            pytest.skip("takes about 30 GB")
    x = make(place, B, D, L, L, HALF[place])
    check(x, dy=x["u"].detach(), channels=[0, D // 2, D - 1])


@at_each_place(["fused"], ["fused", "frames", "long"])
@pytest.mark.parametrize("layout", ["BLD", "every other", "one row", "one sample", "reversed channels"])
def test_strides(place, case, layout):
    """What is not contiguous: u, gates and incoming gradient, each in its own way."""
    B, D, L, K = {"fused": (5, 4, 200, 200), "frames": (3, 2, 1500, 30), "long": (3, 2, 20_000, 20_000)}[case]
    dtype = torch.float32

    def strided(way):
        if way == "BLD":
            return torch.randn(B, L, D, device=place, dtype=dtype).mT
        if way == "every other":
            return torch.randn(B, D, 2 * L, device=place, dtype=dtype)[..., ::2]
        if way == "one row":
            return torch.randn(1, D, L, device=place, dtype=dtype).expand(B, D, L)
        if way == "one sample":
            return torch.randn(B, D, 1, device=place, dtype=dtype).expand(B, D, L)
        return torch.randn(D, B, L + 3, device=place, dtype=dtype)[..., 3:].transpose(0, 1)

    x = make(place, B, D, L, K, dtype, 0, "gates")
    x["u"] = strided(layout).requires_grad_()
    x["post_gate"] = strided("BLD").requires_grad_()
    x["k"] = (torch.randn(K, D, device=place) / K**0.5).mT.requires_grad_()
    assert not (x["u"].is_contiguous() and x["k"].is_contiguous())
    check(x, dy=strided("every other"))


@at_each_place([(700, torch.float32)], [(L, dtype) for L in (4000, 8191, 16_384, 32_767) for dtype in DTYPES])
def test_every_way_to_cut_a_row(monkeypatch, place, case):
    """Not only the one that is estimated to be the cheapest: `LONGCONV_TUNE=1` may take any of them."""
    L, dtype = case
    x = make(place, 3, 5, L, L, dtype, 40, "gates", "skip")
    ways = configs.ways(3, L, L, 40, dtype, shared_memory_limit(torch.device(place)))
    assert len(ways) > 1
    for way in ways:
        monkeypatch.setattr(conv, "ways", lambda *sizes, way=way: (way,))
        check(x)


@at_each_place([300], [300, 4096, 30_000])
def test_expanded_gradient(place, case):
    """`y.sum().backward()` has an incoming gradient with strides 0."""
    x = make(place, 2, 3, case, 20, torch.float32, 0, "gates")
    y = fft_conv(**x, impl="triton")
    y.sum().backward()
    found = {"y": y.detach(), **{name: tensor.grad for name, tensor in x.items()}}
    compare(found, x, torch.ones_like(y))


@at_each_place(
    [(3, 2, 256, 256)],
    [(64, 96, 4096, 4096), (7, 33, 8192, 8192), (4, 16, 100_000, 2000), (4, 16, 2**18, 2**18), (33, 2, 70_001, 70_001)],
)
def test_the_same_bits_every_time(place, case):
    B, D, L, K = case
    x = make(place, B, D, L, K, HALF[place], 0, "gates", "skip")
    dy = torch.randn_like(x["u"])
    first = run(x, dy)
    for _ in range(2 if place == "cuda" else 1):
        again = run(x, dy)
        assert {name: torch.equal(first[name], again[name]) for name in first} == dict.fromkeys(first, True)


@at_each_place(["float16"], ["bfloat16", "float16"])
def test_autocast(place, case):
    """u and gates take autocast's dtype, filters keep theirs."""
    dtype = getattr(torch, case)
    x = make(place, 2, 3, 500, 500, torch.float32, 0, "gates", "skip")
    with torch.autocast(place, dtype=dtype):
        y = fft_conv(**x, impl="triton")
    assert y.dtype == dtype
    grads = torch.autograd.grad(y, list(x.values()), torch.ones_like(y))
    assert [g.dtype for g in grads] == [torch.float32] * len(x)
    rounded = {name: t.detach().to(dtype) if t.dim() == 3 else t.detach() for name, t in x.items()}
    rounded = {name: t.requires_grad_() for name, t in rounded.items()}
    found = {"y": y.detach(), **{n: g.to(rounded[n].dtype) for n, g in zip(x, grads, strict=True)}}
    compare(found, rounded, torch.ones_like(y))


@at_each_place([256], [512, 4096, 40_000])
def test_another_stream(place, case):
    """The kernels run on the current stream: the input is there only after a while, and only on that stream."""
    x = make(place, 2, 3, case, 50, torch.float32, 0, "gates")
    late = {name: torch.full_like(t, float("nan")).requires_grad_() for name, t in x.items()}
    dy = torch.randn_like(x["u"])
    stream = torch.cuda.Stream() if place == "cuda" else None
    if place == "cuda":
        run(x, dy)  # compiled beforehand, so that the launches come early
        torch.cuda.synchronize()
    with torch.cuda.stream(stream) if place == "cuda" else contextlib.nullcontext():
        if place == "cuda":
            torch.cuda._sleep(100_000_000)
        with torch.no_grad():
            for name, t in x.items():
                late[name].copy_(t)
        found = run(late, dy)
    if place == "cuda":
        stream.synchronize()
    compare(found, x, dy)


@at_each_place([(300, 300)], [(300, 300), (5000, 40), (40_000, 40_000)])
def test_compiles_without_a_graph_break(place, case):
    L, K = case
    x = make(place, 2, 3, L, K, torch.float32, 0, "gates", "skip")

    def f(x):
        return fft_conv(**{**x, "u": 1.5 * x["u"]}, impl="triton").sin()

    backend = "inductor" if place == "cuda" else "aot_eager"
    y = torch.compile(f, fullgraph=True, backend=backend)(x)
    inside = {**x, "u": (1.5 * x["u"]).detach().requires_grad_()}
    wave = fft_conv(**inside, impl="triton")
    found = {"y": wave.detach(), **dict(zip(x, torch.autograd.grad(y.sum(), list(x.values())), strict=True))}
    assert torch.allclose(y, wave.sin(), atol=1e-5)
    found["u"] = found["u"] / 1.5
    compare(found, inside, wave.detach().cos())


@at_each_place([(2, 3, 40, 40)], [(2, 3, 40, 40), (1, 2, 5000, 10), (2, 2, 20_000, 20_000)])
@pytest.mark.parametrize("circular", [False, True])
def test_opcheck(place, case, circular):
    B, D, L, K = case
    x = make(place, B, D, L, K, torch.float32, min(K, L - 1), "gates", "skip")
    u, k, k_reverse, pre, post, skip = x.values()
    torch.library.opcheck(fft_conv_op, (u, k, skip, k_reverse, circular, pre, post, None, "triton"))


@ANYWHERE
def test_who_runs(place, case):
    """On a GPU "auto" is the kernels, except for float64; on a CPU it is not, though the interpreter could."""
    x = make(place, 2, 3, 300, 300, HALF[place])
    x = {name: t.detach() for name, t in x.items()}
    usual = "native" if place != "cuda" and native.NATIVE.library() is not None else "torch"
    auto, triton, other = (fft_conv(**x, impl=impl) for impl in ("auto", "triton", usual))
    assert torch.equal(auto, triton if place == "cuda" else other)
    assert not torch.equal(triton, other)
    wide = {name: t.double() for name, t in x.items()}
    assert torch.equal(fft_conv(**wide), fft_conv(**wide, impl="torch"))
    with pytest.raises(ValueError, match="float16, bfloat16 and float32"):
        fft_conv(**wide, impl="triton")


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    x = make("cuda:1", 2, 3, 300, 300, torch.float32, 0, "gates")
    assert torch.cuda.current_device() == 0
    check(x)
