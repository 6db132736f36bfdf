"""The Triton steps of the recurrence: which tiles, compiled for every target, offsets beyond 32 bits. Their values are
compared with the definition in test_recurrence_step.py, and on a GPU in tests/gpu/test_recurrence.py.
"""

import itertools

import pytest
import torch

from longconv.kernels.gpu import TARGETS, case_of, compile_all, table
from longconv.kernels.recurrence import mode_layout

triton_step = pytest.importorskip("longconv.kernels.recurrence.triton_step")
triton_multi_hyena = pytest.importorskip("longconv.kernels.recurrence.triton_multi_hyena")
# Bytes of a thread that may go through local memory: none in most variants, 8 in one with 16 taps on sm_86, where the
# compiler keeps to 80 registers of its own accord.
SPILL_BUDGET = 8
# Of a thread: with so many, four blocks of 128 threads share a processor with 64K registers.
REGISTERS = 128


def launches(monkeypatch, dtype, state, sizes, K, packed=False, head=4, activation="gelu"):
    """What the three steps launch for (B, D, N) = sizes; MultiHyena with heads of `head` channels, if D has such."""
    cases = []

    def record(kernel, programs, arguments, config):
        given = {name: arguments[name] for name in kernel.arg_names if name in arguments}
        tile = "x".join(str(config.constants[name]) for name in ("BB", "BD", "BE", "BN") if name in config.constants)
        kind = f"{str(dtype)[6:]}, state {str(state)[6:]}{', packed' if packed else ''}"
        cases.append(case_of(kernel, given, config, f"{kernel.fn.__name__[:5]} K={K} {tile} {kind}"))

    monkeypatch.setattr(triton_step, "start", record)
    monkeypatch.setattr(triton_multi_hyena, "start", record)
    B, D, N = sizes

    def recurrence(rows, D):
        """Poles, readout, pass-through; skip; state and layout."""
        layout = mode_layout((torch.arange(N) < N // 2) | (torch.arange(D) % 2 == 0)[:, None]) if packed else None
        poles, memory = torch.zeros(D, N, dtype=torch.complex128), torch.zeros(rows, D, N, dtype=state)
        if layout is not None:
            poles, memory = layout.pack(poles), layout.pack(memory)
        return (poles, poles, torch.zeros(D).double()), torch.zeros(D), (memory, layout)

    modes, skip, memory = recurrence(B, D)
    around = (None, None, None) if activation is None else (skip, skip, activation)
    triton_step.modal_step_(torch.zeros(B, D, dtype=dtype), *modes, *memory, *around)
    u, past = torch.zeros(B, 3 * D, dtype=dtype), torch.zeros(B, 3 * D, K - 1, dtype=dtype)
    before = u, past, torch.zeros(3 * D, K), torch.zeros(3 * D)
    triton_step.hyena_step_(*before, *modes, skip, *memory)
    H = head if D % head == 0 else 1
    modes, skip, memory = recurrence(B * H * H, D // H)
    triton_multi_hyena.multi_hyena_step_(*before, *modes, skip, *memory)
    return cases


def assert_fits(reports):
    print("\n" + table(reports))
    for report in reports:
        assert report.fits, table([report])
        assert report.spill_bytes <= SPILL_BUDGET, table([report])
        assert report.registers <= REGISTERS, table([report])


needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="tensors on a GPU are launched, not recorded")


@needs_no_gpu
def test_every_target(monkeypatch):
    """The largest tile, with everything that a call can ask for, and the tile of a single sequence."""
    cases = launches(monkeypatch, torch.bfloat16, torch.complex128, (64, 768, 16), 3)
    cases += launches(monkeypatch, torch.bfloat16, torch.complex64, (1, 768, 32), 6, True, head=8, activation="silu")
    reports = compile_all(cases)
    assert len(reports) == 6 * len(TARGETS)
    assert_fits(reports)


@needs_no_gpu
def test_sizes_of_one_compile(monkeypatch):
    """A stride of one is a constant of the program; odd sizes leave nothing aligned."""
    cases = launches(monkeypatch, torch.float16, torch.complex64, (1, 1, 1), 1, activation=None)
    cases += launches(monkeypatch, torch.float32, torch.complex128, (3, 37, 5), 2, head=37, activation="relu")
    assert_fits(compile_all(cases, [TARGETS["sm_90"]]))


@pytest.mark.slow
@needs_no_gpu
def test_every_variant_for_every_target(monkeypatch):
    cases, dtypes = [], itertools.cycle((torch.float32, torch.float16, torch.bfloat16))
    heads, activations = itertools.cycle((8, 16, 64, 1, 128)), itertools.cycle(("gelu", "silu", "relu", None))
    sizes = [(1, 768, 16), (1, 64, 4), (3, 768, 1), (8, 2048, 64), (64, 768, 16), (64, 768, 2)]
    for (size, K), state, packed in itertools.product(
        zip(sizes, (3, 4, 3, 16, 3, 1), strict=True), (torch.complex64, torch.complex128), (False, True)
    ):
        if size[2] > 1 or not packed:
            cases += launches(monkeypatch, next(dtypes), state, size, K, packed, next(heads), next(activations))
    assert_fits(compile_all(cases))


def test_few_variants_for_all_sizes():
    """Tiles are powers of two, whatever the sizes: a new batch size compiles nothing once its power is known."""
    seen = set()
    for B, D, N in itertools.product((1, 2, 3, 7, 8, 9, 100, 1000), (1, 5, 64, 768, 1000, 4096), (0, 1, 2, 9, 16, 64)):
        config = triton_step.configuration(B, D, N, {})
        BB, BD, BN = (config.constants[name] for name in ("BB", "BD", "BN"))
        assert all(n & (n - 1) == 0 for n in (BB, BD, BN, config.num_warps))
        assert BB * BD * BN <= triton_step.TILE
        assert BB <= 2 * B
        assert BD <= 2 * D
        seen.add((BB, BD, BN))
    assert len(seen) <= 70


def test_few_variants_for_all_heads():
    seen = set()
    for B, H, N in itertools.product((1, 2, 3, 7, 8, 9, 1000), (1, 2, 4, 5, 8, 64, 100, 600), (0, 1, 2, 9, 16, 64)):
        config = triton_multi_hyena.configuration(B, H, N, 3)
        BB, BE, BN = (config.constants[name] for name in ("BB", "BE", "BN"))
        assert all(n & (n - 1) == 0 for n in (BB, BE, BN, config.num_warps))
        assert H <= BE < 2 * H
        assert max(BE, triton_multi_hyena.TILE) >= BB * BE * BN
        assert BB < 2 * B
        seen.add((BB, BE, BN))
    assert len(seen) <= 90


@pytest.mark.skipif(torch.cuda.is_available(), reason="reads addresses that are not there")
def test_offsets_beyond_32_bits(monkeypatch):
    """Rows of a state as far apart as those of a huge batch: a view with a batch stride of 2^31 complex numbers.

    Of that memory, which is mapped and never touched elsewhere, only the two rows are.
    """
    numpy = pytest.importorskip("numpy")
    from longconv.kernels import gpu
    from longconv.kernels.recurrence import modal_step_

    if not gpu.interpreting():
        pytest.skip("needs TRITON_INTERPRET=1")
    apart, D, N = 2**31 + 8, 2, 3
    try:
        memory = torch.from_numpy(numpy.zeros(apart + D * N, numpy.complex64))
    except MemoryError:
        pytest.skip("no address space for 16 GiB")
    state = memory.as_strided((2, D, N), (apart, N, 1))
    u, poles = torch.randn(2, D), torch.full((D, N), 0.5 + 0.25j, dtype=torch.complex128)
    args = poles, torch.ones_like(poles), torch.zeros(D).double()
    outputs = [modal_step_(u, *args, state, impl="triton") for _ in range(2)]
    assert not outputs[0].any()
    assert torch.equal(outputs[1], 3 * u)
    expected = (u[..., None] * (1.5 + 0.25j)).expand(2, D, N).to(torch.complex64)
    assert torch.allclose(state, expected)
