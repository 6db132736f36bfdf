"""Packed sequences: each as if it were alone."""

import numerics
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference, packed
from longconv.kernels.fftconv.op import fft_conv_op

pytestmark = pytest.mark.usefixtures("on_a_cpu")

ALL = ("skip", "k_reverse", "pre_gate", "post_gate")


def make(lengths, K, R=0, options=ALL, dtype=torch.float64, D=3):
    L = sum(lengths)
    x = {
        "u": torch.randn(1, D, L, dtype=dtype),
        "k": torch.randn(D, K, dtype=dtype),
        "skip": torch.randn(D, dtype=dtype),
        "k_reverse": torch.randn(D, R, dtype=dtype),
        "pre_gate": torch.randn(1, D, L, dtype=dtype),
        "post_gate": torch.randn(1, D, L, dtype=dtype),
    }
    return {n: t for n, t in x.items() if n in ("u", "k") or n in options}


def ends(lengths, dtype=torch.int32):
    return torch.tensor([0, *lengths]).cumsum(0).to(dtype)


def alone(x, lengths, circular=False):
    """Each sequence by a call of its own."""
    rows = []
    for start, length in zip(ends(lengths).tolist(), lengths, strict=False):
        span = {n: t[..., start : start + length] if n in ("u", "pre_gate", "post_gate") else t for n, t in x.items()}
        if length:
            rows.append(fft_conv(**span, circular=circular))
    return torch.cat(rows, -1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize(
    "lengths", [[1], [5, 0, 5], [0, 0, 3, 1, 1], [64, 63, 65, 1, 200, 64, 64], [1000, 3, 1000, 2000], [9000, 10, 9000]]
)
def test_equals_each_alone(lengths, circular, dtype):
    for K, R in ((1, 0), (64, 30), (9001, 64)):
        x = make(lengths, K, R, dtype=torch.promote_types(dtype, torch.float32))
        x = {n: t.to(dtype) if n in ("u", "pre_gate", "post_gate") else t for n, t in x.items()}
        x = {n: t.requires_grad_() for n, t in x.items()}
        y, expected = fft_conv(**x, circular=circular, cu_seqlens=ends(lengths)), alone(x, lengths, circular)
        numerics.assert_close(y, expected)
        wide = {n: t.detach().double() for n, t in x.items()}
        reference = fft_conv(**wide, circular=circular, cu_seqlens=ends(lengths), impl="reference")
        numerics.assert_close(y, reference)
        dy = torch.randn_like(y)
        grads = torch.autograd.grad(y, x.values(), dy)
        for name, g, e in zip(x, grads, torch.autograd.grad(expected, x.values(), dy), strict=True):
            if not e.any() or not e.numel():
                continue
            numerics.assert_close(g, e, name=name)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=12).filter(any),
    K=st.integers(1, 100),
    R=st.integers(1, 50),
    circular=st.booleans(),
    options=st.sets(st.sampled_from(ALL)),
)
def test_any_lengths(lengths, K, R, circular, options):
    x = make(lengths, K, R, tuple(options))
    y = fft_conv(**x, circular=circular, cu_seqlens=ends(lengths, torch.int64))
    numerics.assert_close(y, fft_conv_reference(**x, circular=circular, cu_seqlens=ends(lengths)))


def test_nothing_leaks_not_even_what_is_not_finite():
    lengths = [30, 40, 33, 30]
    x = make(lengths, 64, 20)
    x["u"][0, 0, 35] = float("nan")  # in the second sequence, first channel
    y = fft_conv(**x, cu_seqlens=ends(lengths))
    assert y.isnan().any(-1).tolist() == [[True, False, False]]
    spoiled = y[0, 0].isnan().nonzero()[:, 0]
    assert spoiled.min() >= 30
    assert spoiled.max() < 70


def test_the_work_follows_the_number_of_samples(monkeypatch):
    """However the row is cut, what is convolved is at most a quarter larger than the row."""
    seen = []

    def convolve(u, *_):
        seen.append(u.numel())
        return u

    for lengths in ([16_384], [1] * 1000, list(range(1, 300)), [8, 20_000] * 3):
        seen.clear()
        u = torch.randn(1, 2, sum(lengths))
        none = (None,) * 2
        packed.conv_forward(convolve, ends(lengths).tolist(), u, u[0, :, :1], None, None, False, *none)
        assert u.numel() <= sum(seen) <= 1.26 * u.numel()


def test_gradcheck_opcheck_and_compile():
    lengths = [4, 0, 7, 4]
    x = {n: t.requires_grad_() for n, t in make(lengths, 6, 3, D=2).items()}
    cu = ends(lengths)

    def f(*args):
        return fft_conv(**dict(zip(x, args, strict=True)), cu_seqlens=cu)

    assert torch.autograd.gradcheck(f, tuple(x.values()))
    assert torch.autograd.gradgradcheck(f, tuple(x.values()))
    args = [x[n] for n in ("u", "k", "skip", "k_reverse")] + [False, x["pre_gate"], x["post_gate"], cu, "auto"]
    torch.library.opcheck(fft_conv_op, tuple(args))
    numerics.assert_close(torch.compile(f, fullgraph=True)(*x.values()), f(*x.values()))


@pytest.mark.parametrize(
    ("cu", "message"),
    [
        (torch.tensor([0.0, 8.0]), "vector of N"),
        (torch.tensor([[0, 8]]), "vector of N"),
        (torch.tensor([0]), "vector of N"),
        (torch.tensor([0, 7]), "must start at 0 and end at L = 8"),
        (torch.tensor([1, 8]), "must start at 0 and end at L = 8"),
        (torch.tensor([0, 9]), "must start at 0 and end at L = 8"),
        (torch.tensor([0, 5, 3, 8]), "must not decrease"),
    ],
)
@pytest.mark.parametrize("impl", ["auto", "reference"])
def test_bad_boundaries(cu, message, impl):
    with pytest.raises(ValueError, match=f"cu_seqlens.*{message}"):
        fft_conv(torch.randn(1, 2, 8), torch.randn(2, 8), cu_seqlens=cu, impl=impl)


def test_more_than_one_row_is_refused():
    with pytest.raises(ValueError, match="u must have B = 1"):
        fft_conv(torch.randn(2, 2, 8), torch.randn(2, 8), cu_seqlens=torch.tensor([0, 8]))
