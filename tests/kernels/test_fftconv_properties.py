"""fft_conv in all its forms at random shapes, dtypes and strides, against the float64 definition.

500 examples in the ordinary suite; `pytest --hypothesis-profile=thorough` tries 20,000.
"""

import numerics
import torch
from hypothesis import given
from hypothesis import strategies as st

from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference

ACTIVATIONS = ("u", "pre_gate", "post_gate")
OPTIONS = ("skip", "k_reverse", "pre_gate", "post_gate")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Lengths at which something changes: powers of two, frames of overlap-save, primes.
LENGTHS = st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 509, 511, 512, 513, 1021, 1024, 2000, 4099]))


def contiguous(x):
    return x


def transposed(x):
    """Channels last in memory, as the layers hand it over."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 1 else x


def stepped(x):
    """Every second element of a larger tensor."""
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=-1).flatten(-2)[..., ::2]


def inside(x):
    """A window of a larger tensor, whose surroundings must not matter."""
    return torch.nn.functional.pad(x, (3, 5), value=float("nan"))[..., 3 : 3 + x.shape[-1]]


def first_row_for_all(x):
    """Expanded along the first dimension, with stride 0."""
    return x[:1].expand(x.shape) if x.dim() > 1 and x.shape[0] > 0 else x


@st.composite
def cases(draw):
    packed = draw(st.booleans())
    circular = draw(st.booleans())
    D = draw(st.integers(1, 3))
    if packed:
        lengths = draw(st.lists(st.one_of(st.just(0), LENGTHS), min_size=1, max_size=6).filter(any))
        B, L = 1, sum(lengths)
    else:
        lengths, B, L = None, draw(st.integers(0, 3)), draw(LENGTHS)
    K = draw(st.one_of(st.integers(1, 20), st.just(L), st.integers(1, L + 30)))
    R = draw(st.one_of(st.integers(1, 20), st.integers(1, L + 30)))
    dtype = draw(st.sampled_from(DTYPES))
    filter_dtype = dtype if dtype == torch.float64 else torch.float32
    present = draw(st.sets(st.sampled_from(OPTIONS)))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    shapes = {"k": (D, K), "skip": (D,), "k_reverse": (D, R), **dict.fromkeys(ACTIVATIONS, (B, D, L))}
    x = {}
    for name, shape in shapes.items():
        if name in ("u", "k") or name in present:
            layout = draw(st.sampled_from([contiguous, transposed, stepped, inside, first_row_for_all]))
            scale = 1.0 if name in ACTIVATIONS or name == "skip" else shape[-1] ** -0.5
            x[name] = layout((scale * torch.randn(shape)).to(dtype if name in ACTIVATIONS else filter_dtype))
    cu_seqlens = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)
    dy = draw(st.sampled_from([contiguous, transposed, stepped, first_row_for_all]))(torch.randn(B, D, L).to(dtype))
    impl = draw(st.sampled_from(["auto", "torch"]))
    return x, {"circular": circular, "cu_seqlens": cu_seqlens}, dy, impl


def assert_close(actual, expected, size, name):
    """Within the tolerance, relative to the result or, where it cancels out, to what its terms amount to."""
    assert actual.isfinite().all(), name
    limit = numerics.TOLERANCE[actual.dtype]
    error = torch.linalg.vector_norm(actual.double() - expected).item()
    assert error <= limit * max(torch.linalg.vector_norm(expected).item(), size), (name, error)


@given(cases())
def test_value_and_gradients_equal_the_definition(case):
    x, form, dy, impl = case
    leaves = {n: t.detach().requires_grad_() for n, t in x.items()}
    wide = {n: t.detach().double().requires_grad_() for n, t in x.items()}
    y, expected = fft_conv(**leaves, **form, impl=impl), fft_conv_reference(**wide, **form)
    assert y.dtype == x["u"].dtype
    assert y.is_contiguous()
    # Of single numbers nearly everything may cancel, so that only rounding noise is left. Outputs are of unit scale; a
    # filter's gradient is, at each tap, a sum of as many unit-scale products as there are samples in all rows.
    B, _, L = x["u"].shape
    numbers = min(1.0, float(y.numel()))
    assert_close(y, expected, numbers, "y")
    grads = torch.autograd.grad(y, leaves.values(), dy)
    exact = torch.autograd.grad(expected, wide.values(), dy.double())
    for name, g, e in zip(leaves, grads, exact, strict=True):
        assert g.dtype == leaves[name].dtype
        assert_close(g, e, numbers if name in ACTIVATIONS else (B * L) ** 0.5, f"gradient of {name}")
