"""`fft_conv_chunk` against `fft_conv` over the whole: any chunks, gates, gradients through the state, dtypes."""

import itertools

import pytest
import torch
from numerics import assert_close

from longconv.functional import fft_conv, fft_conv_chunk

pytestmark = pytest.mark.usefixtures("on_a_cpu")

B, D = 2, 3
SIZES = {
    "one": [60],
    "singles": [1] * 20,
    "mixed": [1, 7, 1, 30, 2, 64, 5, 100],
    "growing": [1, 2, 4, 8, 16, 32, 64],
    "primes": [13, 31, 7, 53],
}
sizes = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def make(L, K, dtype=torch.float32, wide=torch.float32):
    """u, pre_gate, post_gate (B, D, L), k (D, K), skip (D,)."""
    u, pre, post = (torch.randn(B, D, L).to(dtype) for _ in range(3))
    return u, pre, post, torch.randn(D, K, dtype=wide), torch.randn(D, dtype=wide)


def cut(sizes):
    ends = list(itertools.accumulate(sizes))
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def stream(sizes, u, k, pre=None, post=None, skip=None):
    state, outputs = None, []
    for piece in cut(sizes):
        gates = {"pre_gate": pre, "post_gate": post}
        gates = {name: None if gate is None else gate[..., piece] for name, gate in gates.items()}
        y, state = fft_conv_chunk(u[..., piece], k, state=state, skip=skip, **gates)
        outputs.append(y)
    return torch.cat(outputs, -1), state


@sizes
@pytest.mark.parametrize("K", [1, 2, 17, 40, 500])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_chunks_equal_the_whole_forward_and_backward(sizes, K, gated):
    L = sum(sizes)
    u, pre, post, k, skip = make(L, K)
    named = {"u": u, "k": k, **({"pre": pre, "post": post, "skip": skip} if gated else {})}
    dy = torch.randn(B, D, L)
    wide = {name: x.double().requires_grad_() for name, x in named.items()}
    gates = {"skip": wide["skip"], "pre_gate": wide["pre"], "post_gate": wide["post"]} if gated else {}
    expected = fft_conv(wide["u"], wide["k"], **gates)
    expected_grads = torch.autograd.grad(expected, list(wide.values()), dy.double())
    for x in named.values():
        x.requires_grad_()
    y, state = stream(sizes, **named)
    assert y.is_contiguous()
    assert_close(y, expected)
    grads = torch.autograd.grad(y, list(named.values()), dy)
    for name, got, want in zip(named, grads, expected_grads, strict=True):
        assert_close(got, want, name=f"gradient of {name}")
    v = pre * u if gated else u
    assert torch.equal(state, v[..., max(0, L - (K - 1)) :])


@sizes
def test_float64(sizes):
    u, pre, post, k, skip = make(sum(sizes), 40, torch.float64, torch.float64)
    expected = fft_conv(u, k, skip=skip, pre_gate=pre, post_gate=post)
    assert_close(stream(sizes, u, k, pre, post, skip)[0], expected)


def test_gradcheck_through_the_state():
    u, pre, post, k, skip = (x.requires_grad_() for x in make(9, 4, torch.float64, torch.float64))
    assert torch.autograd.gradcheck(lambda *args: stream([1, 2, 5, 1], *args)[0], (u, k, pre, post, skip))


@pytest.mark.parametrize("K", [3, 12, 50])
def test_a_detached_state_truncates(K):
    """The gradient of the second chunk's outputs is that with its past held constant."""
    u, pre, _, k, skip = make(30, K)
    past, now = (u[..., :20].clone().requires_grad_(), u[..., 20:].clone().requires_grad_())
    k.requires_grad_()
    _, state = fft_conv_chunk(past, k, skip=skip, pre_gate=pre[..., :20])
    y, _ = fft_conv_chunk(now, k, state=state.detach(), skip=skip, pre_gate=pre[..., 20:])
    got = torch.autograd.grad(y.square().sum(), [past, now, k], allow_unused=True)
    assert got[0] is None
    wide = now.detach().double().requires_grad_()
    taps = k.detach().double().requires_grad_()
    whole = torch.cat([past.detach().double(), wide], -1)
    expected = fft_conv(whole, taps, skip=skip.double(), pre_gate=pre.double())[..., 20:]
    want = torch.autograd.grad(expected.square().sum(), [wide, taps])
    assert_close(got[1], want[0])
    assert_close(got[2], want[1])
    # Undetached, the same loss does reach the past.
    y, _ = fft_conv_chunk(now, k, state=state, skip=skip, pre_gate=pre[..., 20:])
    assert torch.autograd.grad(y.square().sum(), past)[0][..., 20 - (K - 1) :].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_half_precision_loses_nothing_against_the_whole(dtype, gated):
    sizes = SIZES["mixed"]
    u, pre, post, k, skip = make(sum(sizes), 50, dtype)
    args = (u, k, pre, post, skip) if gated else (u, k)
    gates = {"skip": skip, "pre_gate": pre, "post_gate": post} if gated else {}
    y, state = stream(sizes, *args)
    assert y.dtype == dtype
    assert state.dtype == (torch.float32 if gated else dtype)
    whole = fft_conv(u, k, **gates)
    # Both round the same float32 sums once: they differ where those lie next to the middle of two values.
    assert (y != whole).float().mean() < 0.01
    wide = {name: x.double() for name, x in gates.items()}
    assert_close(y, fft_conv(u.double(), k.double(), **wide).to(dtype).double(), dtype)
    exact = pre.float() * u.float() if gated else u
    assert torch.equal(state, exact[..., -49:])


def test_autocast_is_that_of_the_whole():
    sizes = SIZES["mixed"]
    u, pre, post, k, skip = make(sum(sizes), 50)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = stream(sizes, u, k, pre, post, skip)
        whole = fft_conv(u, k, skip=skip, pre_gate=pre, post_gate=post)
    assert y.dtype == whole.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert (y != whole).float().mean() < 0.01


def test_the_state_is_a_copy():
    u, k = torch.randn(B, D, 1000), torch.randn(D, 5)
    expected = fft_conv(torch.cat([u, u], -1), k)[..., 1000:]
    _, state = fft_conv_chunk(u, k)
    assert state.untyped_storage().nbytes() == 4 * B * D * 4
    chunk = u.clone()
    u.zero_()
    y, after = fft_conv_chunk(chunk, k, state=state)
    assert_close(y, expected.double(), torch.float32)
    assert after.untyped_storage().nbytes() == 4 * B * D * 4
    assert y.untyped_storage().nbytes() == 4 * y.numel()
    _, state = fft_conv_chunk(chunk, torch.randn(D, 2000))
    assert state.data_ptr() != chunk.data_ptr()


def test_strided_inputs_and_an_empty_batch():
    u, k = torch.randn(100, B, D).permute(1, 2, 0), torch.randn(20, D).T
    assert_close(stream([30, 70], u, k)[0], fft_conv(u.double(), k.double()), torch.float32)
    y, state = stream([30, 70], u[:0], k)
    assert y.shape == (0, D, 100)
    assert state.shape == (0, D, 19)


def test_compiles_as_one_graph():
    u, pre, post, k, skip = make(40, 12)
    compiled = torch.compile(stream, fullgraph=True, backend="aot_eager")
    y, state = compiled([15, 25], u, k, pre, post, skip)
    expected, expected_state = stream([15, 25], u, k, pre, post, skip)
    assert_close(y, expected.double(), torch.float32)
    assert_close(state, expected_state.double(), torch.float32)


def test_errors_name_the_argument():
    u, pre, post, k, skip = make(10, 6)
    _, state = fft_conv_chunk(u, k)
    for bad in (state[0], state[:1], state[:, :2], torch.randn(B, D, 6)):
        with pytest.raises(ValueError, match=r"state must have shape \(B, D, n\) with B, D = \(2, 3\).*K - 1 = 5"):
            fft_conv_chunk(u, k, state=bad)
    with pytest.raises(
        ValueError, match=r"state must be torch\.float32, as the inputs of this chunk; got torch\.float64"
    ):
        fft_conv_chunk(u, k, state=state.double())
    with pytest.raises(ValueError, match="state must be on the device"):
        fft_conv_chunk(u, k, state=state.to("meta"))
    # A bfloat16 chunk with a gate has float32 products, so a rounded state would lose what the whole keeps.
    half = {"pre_gate": pre.bfloat16(), "state": state.bfloat16()}
    with pytest.raises(ValueError, match=r"state must be torch\.float32"):
        fft_conv_chunk(u.bfloat16(), k, **half)
    for bad, message in [
        ({"u": u[0]}, "u must have shape"),
        ({"u": u[..., :0]}, "u must have at least one time step"),
        ({"k": k[:2]}, "k must have shape"),
        ({"skip": skip[:2]}, "skip must have shape"),
        ({"pre_gate": pre[..., :1]}, "pre_gate must have the shape of u"),
        ({"post_gate": post[:1]}, "post_gate must have the shape of u"),
        ({"post_gate": post.to("meta")}, "post_gate must be on the device of u"),
    ]:
        with pytest.raises(ValueError, match=message):
            fft_conv_chunk(**{"u": u, "k": k, **bad})
    with pytest.raises(TypeError, match="u must be floating point"):
        fft_conv_chunk(u.long(), k)
