"""`fft_conv` and `fft_conv_sparse` in Triton: in the interpreter, against the definitions in float64."""

import contextlib
import importlib
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close

from longconv.functional import SpectrumMask, fft_conv, fft_conv_sparse
from longconv.kernels import gpu
from longconv.kernels.fftconv import fft_conv_reference
from longconv.kernels.fftconv.monarch import configs, tables

pytest.importorskip("triton")
from longconv.kernels.fftconv.monarch import conv, fused_run, long_run, triton_fused

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not gpu.interpreting(), reason="needs TRITON_INTERPRET=1 and no GPU"
)
DTYPES = [torch.float16, torch.float32]  # bfloat16 is wrong in the interpreter: tests/test_gpu.py has it
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
GATES = ("pre_gate", "post_gate")


def make(B, D, L, K, dtype, K_reverse=0, others=("skip", *GATES)):
    """Inputs with outputs of order one."""
    x = {"u": torch.randn(B, D, L).to(dtype), "k": torch.randn(D, K) / K**0.5}
    if K_reverse:
        x["k_reverse"] = torch.randn(D, K_reverse) / K_reverse**0.5
    for name in others:
        x[name] = torch.randn(D) if name == "skip" else torch.randn(B, D, L).to(dtype)
    return x


def check(x, f=fft_conv, dy=None, **options):
    """Compare output and all gradients with those of the reference."""
    given = {name: t.detach().requires_grad_() for name, t in x.items()}
    wide = {name: t.detach().double().requires_grad_() for name, t in x.items()}
    y, expected = f(**given, impl="triton", **options), f(**wide, impl="reference", **options)
    assert y.dtype == x["u"].dtype
    assert y.is_contiguous()
    assert_close(y, expected)
    dy = torch.randn(y.shape).to(y) if dy is None else dy
    grads = torch.autograd.grad(y, list(given.values()), dy)
    wanted = torch.autograd.grad(expected, list(wide.values()), dy.double())
    for name, grad, gradient in zip(given, grads, wanted, strict=True):
        assert grad.dtype == x[name].dtype
        # A filter's gradient is float32, but what it is computed from has the precision of u.
        assert_close(grad, gradient, x["u"].dtype, name=f"gradient of {name}")


# --- The public function ----------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize(
    ("B", "L"), [(17, 1), (3, 2), (1, 63), (9, 64), (3, 65), (10, 256), (5, 257), (3, 1000), (1, 1021)]
)
def test_rows_that_fit_a_tile(B, L, dtype):
    for K in (L, max(1, L // 2)) if L < 200 else (2 * L,):
        check(make(B, 8, L, K, dtype))


@dtypes
def test_largest_tiles(dtype):
    for tile in configs.tiles(dtype, 227 * 1024)[-2:]:
        check(make(1, 1, tile.N - 1, tile.N - 1, dtype, others=GATES))


@dtypes
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(("K", "K_reverse"), [(5, 7), (200, 199), (300, 0), (1, 450)])
def test_two_sided_and_circular(K, K_reverse, circular, dtype):
    check(make(2, 16, 200, K, dtype, K_reverse), circular=circular)


@dtypes
@pytest.mark.parametrize("others", [(), ("skip",), ("pre_gate",), ("post_gate",)], ids=str)
def test_options_one_by_one(others, dtype):
    check(make(3, 8, 100, 100, dtype, others=others))


@dtypes
@pytest.mark.parametrize("circular", [False, True])
def test_packed(circular, dtype):
    ends = torch.tensor([0, 200, 200, 201, 264, 464, 764])
    check(make(1, 8, 764, 764, dtype, 9), circular=circular, cu_seqlens=ends)


@pytest.mark.parametrize("NaN_in", ["u", "pre_gate"])
def test_packed_sequences_and_rows_do_not_touch_each_other(NaN_in):
    x = make(3, 2, 40, 40, torch.float32, others=GATES)
    clean = fft_conv(**x, impl="triton")
    x[NaN_in][1, 0, 5] = float("nan")
    y = fft_conv(**x, impl="triton")
    rows = torch.ones(3, 2, dtype=torch.bool)
    rows[1, 0] = False
    assert torch.equal(y[rows], clean[rows])
    packed = {n: (t.transpose(0, 1).reshape(1, 2, 120) if t.ndim == 3 else t) for n, t in x.items()}
    y = fft_conv(**packed, cu_seqlens=torch.tensor([0, 40, 80, 120]), impl="triton")
    assert_close(y[..., 80:], clean[2][None].double())


@dtypes
def test_few_taps_in_frames(dtype):
    assert not configs.ways(2, 1500, 40, 20, dtype, 227 * 1024)[0].whole
    check(make(2, 2, 1500, 40, dtype, 20, others=GATES))


@dtypes
def test_long_rows(dtype):
    L = 33_000 if dtype == torch.float16 else 9000
    assert isinstance(configs.ways(1, L, L, 3, dtype, 227 * 1024)[0], configs.Outer)
    check(make(1, 1, L, L, dtype, others=GATES))


@dtypes
def test_rows_of_several_tiles(dtype):
    """With tiles that are shipped, at the sizes that take them: FFTs of 32K points in float16, of 4K in float32."""
    tile, P = configs.NESTED[dtype.itemsize][1 if dtype == torch.float16 else 0]
    L = P * tile.N - 3
    assert configs.ways(64, L, L, L - 1, dtype, 227 * 1024)[0] == configs.Nested(tile, P)
    check(make(2, 1, L, L, dtype, L - 1, others=("skip", *GATES)))


@dtypes
def test_strides_and_expanded_gradients(dtype):
    x = make(2, 8, 120, 50, dtype)
    x["u"] = torch.randn(2, 120, 8).to(dtype).mT
    x["pre_gate"] = torch.randn(2, 8, 360).to(dtype)[..., ::3]
    x["post_gate"] = torch.randn(8, 2, 120).to(dtype).transpose(0, 1)
    check(x, dy=torch.tensor(0.5, dtype=dtype).expand(2, 8, 120))
    x["u"] = torch.randn(2, 1, 1).to(dtype).expand(2, 8, 120)
    x["post_gate"] = torch.randn(8, 1).to(dtype).expand(2, 8, 120)
    check(x)


def test_empty_batches_and_no_channels():
    for B, D in ((0, 3), (2, 0)):
        x = {n: t.requires_grad_() for n, t in make(B, D, 10, 4, torch.float32).items()}
        y = fft_conv(**x, impl="triton")
        assert y.shape == (B, D, 10)
        grads = torch.autograd.grad(y.sum(), list(x.values()))
        assert not any(g.any() for g in grads)


@settings(max_examples=25)
@given(data=st.data())
def test_any_shape(data):
    B, L = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 600))
    K, K_reverse = data.draw(st.integers(1, 700)), data.draw(st.integers(0, 700))
    dtype, circular = data.draw(st.sampled_from(DTYPES)), data.draw(st.booleans())
    others = data.draw(st.sets(st.sampled_from(("skip", *GATES))))
    x = make(B, 2, L, K, dtype, K_reverse, sorted(others))
    wide = {name: t.double() for name, t in x.items()}
    y = fft_conv(**x, circular=circular, impl="triton")
    assert_close(y, fft_conv_reference(**wide, circular=circular))


def test_second_derivatives_vmap_and_compile():
    x = {n: t.requires_grad_() for n, t in make(2, 3, 20, 20, torch.float32).items()}
    wide = {n: t.detach().double().requires_grad_() for n, t in x.items()}

    def penalty(impl, u, **others):
        (gradient,) = torch.autograd.grad(fft_conv(u, impl=impl, **others).square().sum(), u, create_graph=True)
        return gradient.square().sum()

    grads = torch.autograd.grad(penalty("triton", **x), list(x.values()))
    for grad, expected in zip(
        grads, torch.autograd.grad(penalty("reference", **wide), list(wide.values())), strict=True
    ):
        assert_close(grad, expected, torch.float32)
    u, k = torch.randn(4, 2, 3, 20), torch.randn(3, 20)
    y = torch.vmap(lambda u: fft_conv(u, k, impl="triton"))(u)
    assert_close(y, torch.stack([fft_conv_reference(v.double(), k.double()) for v in u]), torch.float32)
    compiled = torch.compile(lambda u, k: fft_conv(u, k, impl="triton").sin(), fullgraph=True)
    assert_close(compiled(u[0], k), fft_conv_reference(u[0].double(), k.double()).sin(), torch.float32)


def test_what_cannot_be_had_is_an_error_and_a_cpu_takes_the_torch_path(monkeypatch):
    u, k = torch.randn(1, 2, 8), torch.randn(2, 8)
    with pytest.raises(ValueError, match="impl='triton' cannot be had, because the kernels take float16"):
        fft_conv(u.double(), k, impl="triton")
    monkeypatch.setattr(conv, "conv_forward", None)  # would raise if it were called
    fft_conv(u, k)
    with pytest.raises(TypeError):
        fft_conv(u, k, impl="triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(
        ValueError, match="impl='triton' cannot be had, because Triton runs on a CPU only in its interp"
    ):
        fft_conv(u, k, impl="triton")


# --- Each way of cutting a convolution --------------------------------------------------------------------------------


@contextlib.contextmanager
def forced(monkeypatch, way):
    with monkeypatch.context() as patch:
        patch.setattr(conv, "ways", lambda *sizes: (way,))
        yield


@dtypes
def test_frames_and_pieces(monkeypatch, dtype):
    tile = configs.tiles(dtype, 2**20)[0]
    for K, K_reverse in ((33, 40), (450, 0), (150, 201)):
        cut = configs.frames(tile, 450, K, K_reverse)
        assert (cut.pieces > 1) == (K + K_reverse > 200)
        with forced(monkeypatch, cut):
            check(make(2, 2, 450, K, dtype, K_reverse, others=GATES))


@dtypes
@pytest.mark.parametrize(("P", "scratch", "one_pass"), [(3, 2**28, True), (5, 2**14, True), (17, 2**28, False)])
def test_outer_and_inner_transforms(monkeypatch, dtype, P, scratch, one_pass):
    """Few time rows and many; all rows at once, and one at a time."""
    monkeypatch.setattr(long_run, "SCRATCH_BYTES", scratch)
    tile = configs.tiles(dtype, 2**20, configs.INNER_TILES)[0]
    L = P * tile.N - 100
    with forced(monkeypatch, configs.Outer(configs.Tile(tile.N1, tile.R, tile.N2, 4, 0, one_pass), P)):
        check(make(3, 1, L, L, dtype, 30 if one_pass else 0, others=GATES))


@dtypes
@pytest.mark.parametrize(("P", "times"), [(2, 2), (4, 3), (8, 8), (16, 5)])
def test_tiles_nested_in_an_outer_transform(monkeypatch, dtype, P, times):
    """Of the P time rows those beyond `times` are padding."""
    tile = configs.Tile(16, 1, 16, 4, 0)
    L = times * tile.N - 100
    with forced(monkeypatch, configs.Nested(tile, P)):
        check(make(3, 1, L, L, dtype, 30, others=GATES))
        if P < 8:
            check(make(2, 8, L, 40, dtype, others=("skip",)), circular=True)
            x = make(1, 8, L + 300, L, dtype, 200, others=("skip", *GATES))
            check(x, cu_seqlens=torch.tensor([0, L, L + 1, L + 300]))


def test_nested_tiles_of_strided_and_expanded_rows_that_do_not_touch_each_other(monkeypatch):
    tile = configs.Tile(16, 1, 16, 4, 0)
    with forced(monkeypatch, configs.Nested(tile, 4)):
        x = make(3, 2, 1000, 700, torch.float32, others=GATES)
        x["u"] = torch.randn(3, 1, 1).expand(3, 2, 1000)
        x["pre_gate"] = torch.randn(2, 3, 1000).transpose(0, 1)
        x["post_gate"] = torch.randn(3, 1000, 2).mT
        check(x, dy=torch.tensor(0.5).expand(3, 2, 1000))
        clean = fft_conv(**x, impl="triton")
        x["pre_gate"] = x["pre_gate"].clone()
        x["pre_gate"][1, 0, 5] = float("nan")
        y = fft_conv(**x, impl="triton")
        rows = torch.ones(3, 2, dtype=torch.bool)
        rows[1, 0] = False
        assert torch.equal(y[rows], clean[rows])


def test_packed_sequences_in_long_kernels(monkeypatch):
    tile = configs.INNER_TILES[4][0]
    with forced(monkeypatch, configs.Outer(tile, 16)):
        check(make(1, 2, 6000, 3000, torch.float32), cu_seqlens=torch.tensor([0, 2500, 6000]))


def test_gradients_of_all_rows_one_at_a_time(monkeypatch):
    tile = configs.TILES[4][0]
    with forced(monkeypatch, configs.whole_row(configs.Tile(tile.N1, tile.R, tile.N2, 4, 0, one_pass=False))):
        check(make(5, 4, 200, 200, torch.float32, 10))


def test_only_the_gradients_that_are_asked_for(monkeypatch):
    tile = configs.INNER_TILES[4][0]
    x = make(2, 2, 250, 250, torch.float32)
    wide = {n: t.double().requires_grad_() for n, t in x.items()}
    y = fft_conv_reference(**wide)
    wanted = dict(zip(x, torch.autograd.grad(y.sum(), list(wide.values())), strict=True))
    ways = (
        configs.whole_row(tile),
        configs.whole_row(configs.Tile(16, 4, 16, 4, 0, one_pass=False)),
        configs.frames(tile, 250, 20, 0),
        configs.Outer(tile, 1),
        configs.Nested(configs.Tile(16, 1, 16, 4, 0), 2),
    )
    for way, name in itertools.product(ways, x):
        with forced(monkeypatch, way):
            given = {n: t.clone().requires_grad_(n == name) for n, t in x.items()}
            if isinstance(way, configs.Frames) and not way.whole:
                given["k"] = given["k"].detach()[:, :20].requires_grad_(name == "k")
                if name != "k":
                    continue
                expected = wanted["k"][:, :20]
            else:
                expected = wanted[name]
            (grad,) = torch.autograd.grad(fft_conv(**given, impl="triton").sum(), given[name])
        assert_close(grad, expected, torch.float32, name=f"{way} {name}")


def test_the_gradient_of_a_filter_is_the_same_every_time():
    x = {n: t.requires_grad_() for n, t in make(9, 2, 300, 300, torch.float16).items()}
    grads = [torch.autograd.grad(fft_conv(**x, impl="triton").float().sum(), list(x.values())) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_offsets_beyond_32_bits(tmp_path):
    """Rows 4.3 GB apart, in a file with holes: a tile of several rows reaches past what 32 bits can count."""
    far = 2**31 + 64
    memory = torch.from_file(str(tmp_path / "holes"), shared=True, size=2 * far + 300, dtype=torch.float16)
    u = memory.as_strided((3, 1, 300), (far, 300, 1))
    u.copy_(torch.randn(3, 1, 300))
    k = torch.randn(1, 300)
    assert_close(fft_conv(u, k, impl="triton"), fft_conv_reference(u.double(), k.double()), torch.float16)


# --- The choice -------------------------------------------------------------------------------------------------------


def test_a_measured_way_is_taken(monkeypatch, tmp_path):
    """Measured once for a bucket of lengths, kept on disk, and taken for other lengths and for gradients."""
    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path))
    monkeypatch.setenv("LONGCONV_TUNE", "1")
    asked, last = [], configs.ways(2, 700, 40, 0, torch.float32, 227 * 1024)[-1]
    # The module; in its package the function has its name.
    module = importlib.import_module("longconv.kernels.gpu.choose")
    monkeypatch.setattr(module, "_bench", lambda call: asked.append(call()) or -len(asked))
    x = make(2, 1, 700, 40, torch.float32)
    check(x)
    assert len(asked) == len(configs.ways(2, 700, 40, 0, torch.float32, 227 * 1024))
    launched = []
    monkeypatch.setattr(conv.fused_run, "forward", lambda rows, cut, *_: launched.append(cut.name))
    for module in (conv.long_run, conv.nested_run):
        monkeypatch.setattr(module, "forward", lambda rows, filter, *_: launched.append(filter.outer.tile.name))
    fft_conv(torch.randn(2, 1, 800), torch.randn(1, 40), impl="triton")
    assert len(launched) == 1
    assert launched[0] in last.name
    assert len(list(tmp_path.rglob("*.json"))) == 1


# --- Tables -----------------------------------------------------------------------------------------------------------


def test_spectra_are_values_of_the_polynomial():
    n, k, k_reverse = 24, torch.randn(2, 24), torch.randn(2, 23)
    z = torch.exp(-2j * torch.pi * (torch.arange(n, dtype=torch.float64) + 0.25) / n)
    lags = torch.cat([torch.arange(24), -1 - torch.arange(23)])
    values = (torch.cat([k, k_reverse], 1).double() + 0j) @ z[None] ** lags[:, None]
    assert_close(torch.view_as_real(tables.points(k, k_reverse, n)), torch.view_as_real(values), torch.float32)
    assert torch.equal(tables.spectrum(k, None, 4, 6)[:, 3, 5], tables.points(k, None, n)[:, 3 + 4 * 5])
    g = torch.randn(2, n, dtype=torch.complex64)  # adjoint: <points(k), g> = <k, taps_of_points(g)>, as real numbers
    left = (tables.points(k, k_reverse, n).conj() * g).real.sum()
    dk, dk_reverse = tables.taps_of_points(g, 24, 23)
    torch.testing.assert_close(left, (dk * k).sum() + (dk_reverse * k_reverse).sum(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("gain", [1e-30, 1e-6, 1e6])
def test_filters_of_any_scale_in_half_precision(gain):
    u, k = torch.randn(2, 4, 200).half(), torch.randn(4, 200)
    expected = fft_conv_reference(u.double(), k.double())
    y = fft_conv(u.float() * 1e-3, gain * k, impl="triton") if gain > 1 else None
    filters, scale = tables.planes(tables.spectrum(gain * k, None, 16, 16)[None], torch.float16)
    assert filters.abs().max() <= 1
    assert (torch.view_as_complex(filters.movedim(2, -1).float().contiguous()).abs().amax((0, 2, 3)) > 0.99).all()
    back = torch.view_as_complex(filters.movedim(2, -1).double().contiguous())[0] * scale[:, None, None]
    exact = tables.spectrum(k, None, 16, 16).to(torch.complex128) * gain
    assert_close(torch.view_as_real(back), torch.view_as_real(exact), torch.float16)
    if y is not None:
        assert_close(y, expected * 1e-3 * gain, torch.float16)


# --- Sparse spectra ---------------------------------------------------------------------------------------------------


@dtypes
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("factors", "kept"), [((32, 256), (8, 256)), ((4, 4, 512), (4, 3, 200))], ids=str)
def test_sparse_spectra(factors, kept, symmetric, dtype):
    mask = SpectrumMask(8192, factors, kept, symmetric)
    check(make(2, 1, 4000, 4000, dtype, others=GATES if symmetric else ("skip",)), fft_conv_sparse, mask=mask)


def test_sparse_and_circular_without_gates():
    mask = SpectrumMask(4096, (8, 512), (3, 512))
    check(make(1, 3, 4096, 5000, torch.float32, others=()), fft_conv_sparse, mask=mask, circular=True)


def test_empty_outer_frequencies_are_not_computed(monkeypatch):
    frequencies = []
    launch = long_run.Pass.inner
    monkeypatch.setattr(long_run.Pass, "inner", lambda s, *a, **o: (frequencies.append(s.outer.J), launch(s, *a, **o)))
    u, k = torch.randn(1, 1, 4096), torch.randn(1, 4096)
    for kept in (32, 16, 8, 2):
        fft_conv_sparse(u, k, SpectrumMask(8192, (32, 256), (kept, 256), True), impl="triton")
    assert frequencies == [17, 16, 8, 2]


def test_a_mask_without_a_tile_is_an_error_that_says_so():
    u, k = torch.randn(1, 1, 100), torch.randn(1, 100)
    with pytest.raises(ValueError, match=r"no outer factor of \(10, 20\) leaves a transform of the sizes"):
        fft_conv_sparse(u, k, SpectrumMask(200, (10, 20), (5, 20)), impl="triton")


def test_kernels_are_found_where_the_package_says():
    assert triton_fused.convolve_kernel.fn.__module__ == "longconv.kernels.fftconv.monarch.triton_fused"
    assert fused_run.precision(torch.float16) == "ieee"
