"""`dilated_conv` against its definition: values, gradients, streams, packed sequences, transformations, Triton."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import TOLERANCE, assert_close

from longconv.functional import fft_conv, short_conv
from longconv.kernels.dilated import DelayLines, dilated_conv, dilated_conv_reference, dilated_conv_step, direct
from longconv.kernels.dilated.op import dilated_conv_op, weight_grad_op

PADDINGS = ["causal", "same", "valid"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few samples, so that small tensors have many, cut along batch, channels and time."""
    monkeypatch.setitem(direct.BLOCK, "cpu", 48)


def make(B, D, L, K, dtype=torch.float64, taps=None):
    """u, k and bias with an output of order one."""
    k = torch.randn(D, K, dtype=torch.float64) / K**0.5
    u, bias = torch.randn(B, D, L, dtype=torch.float64), torch.randn(D, dtype=torch.float64)
    return [u.to(dtype), k.to(taps or dtype), bias.to(taps or dtype)]


def check(u, k, bias, dy=None, impl="torch", **options):
    """Compare output and gradients with the oracle."""
    inputs = [x.detach() if x is u else x.detach().clone() for x in (u, k, bias)]
    wide = [x.double().requires_grad_() for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    y, expected = dilated_conv(*inputs, impl=impl, **options), dilated_conv_reference(*wide, **options)
    assert y.dtype == u.dtype
    assert_close(y, expected)
    dy = torch.randn(y.shape).to(u.dtype) if dy is None else dy
    grads, wanted = torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, wide, dy.double())
    for name, x, grad, want in zip(("u", "k", "bias"), inputs, grads, wanted, strict=True):
        assert grad.dtype == x.dtype
        assert_close(grad, want, name=f"gradient of {name}")


def reaches(L, K, dilation, padding):
    return padding != "valid" or (K - 1) * dilation < L


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 15])
@pytest.mark.parametrize("dilation", [1, 3, 50])
def test_values_and_gradients_equal_the_definition(K, dilation, padding, dtype, small_blocks):
    for L in (1, 43, (K - 1) * dilation + 5):
        if reaches(L, K, dilation, padding) and L < 1000:
            u, k, bias = make(2, 3, L, K, dtype)
            check(u, k, bias, dilation=dilation, padding=padding)
            check(u.mT.contiguous().mT, k, bias, dilation=dilation, padding=padding)  # as the layers have it
    if padding != "valid":
        check(*make(2, 3, 40, K, dtype, taps=torch.float32), dilation=dilation, padding=padding)
        check(*make(0, 3, 10, K, dtype), dilation=dilation, padding=padding)


@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("last", [False, True])
def test_many_taps_and_channels_take_another_way(B, last, monkeypatch):
    calls = []
    composite = direct.composite
    monkeypatch.setattr(direct, "composite", lambda *a: calls.append(1) or composite(*a))
    for padding in PADDINGS:
        u, k, bias = make(B, 16, 130, 12)
        dy = torch.randn(B, 16, 97 if padding == "valid" else 130).double()
        u, dy = (x.mT.contiguous().mT if last else x for x in (u, dy))
        check(u, k, bias, dy, dilation=3, padding=padding)
    assert bool(calls) != last
    del calls[:]
    check(*make(B, 16, 60, 12), dilation=3)
    check(*make(B, 15, 130, 12), dilation=3)
    assert not calls


@pytest.mark.parametrize("padding", PADDINGS)
def test_any_strides(padding, small_blocks):
    u, k, bias = make(2, 4, 60, 3)
    options = {"dilation": 5, "padding": padding}
    T = 50 if padding == "valid" else 60
    check(u[:1, :, :1].expand(3, -1, 60), k, bias, **options)
    check(u[:, :1].expand(2, 4, 60), k, bias, **options)
    check(torch.randn(4, 2, 200).double().transpose(0, 1)[:, ::2, 1::3], k[::2], bias[::2], **options)
    check(u, k.mT.contiguous().mT, bias[:1].expand(4), **options)
    check(u, k[:, :1].expand(4, 3), bias, **options)
    check(u, k, bias, torch.ones((), dtype=torch.float64).expand(2, 4, T), **options)  # from sum()
    check(u, k, bias, torch.randn(2, T, 4).mT.double(), **options)
    check(u.mT.contiguous().mT, k, bias, torch.randn(2, 4, T).double(), **options)


def test_the_layout_of_the_input_is_kept():
    u, k, _ = make(2, 4, 60, 3)
    assert dilated_conv(u, k, dilation=5).is_contiguous()
    assert dilated_conv(u.mT.contiguous().mT, k, dilation=5).mT.is_contiguous()
    assert dilated_conv(u.mT.contiguous().mT, k, dilation=5, padding="valid").mT.is_contiguous()


@pytest.mark.parametrize("L", [2**18 + 7, 70_001])
def test_long_rows_of_several_blocks(L):
    check(*make(1, 2, L, 3, torch.float32), dilation=1000)
    check(*make(2, 4, L // 4, 2, torch.bfloat16), dilation=77, padding="same")


@settings(max_examples=80, deadline=None)
@given(
    B=st.integers(0, 3), D=st.integers(1, 3), L=st.integers(1, 70), K=st.integers(1, 9), dilation=st.integers(1, 80),
    padding=st.sampled_from(PADDINGS), has_bias=st.booleans(), last=st.booleans(), block=st.integers(1, 300),
    cuts=st.none() | st.lists(st.integers(0, 70), max_size=6), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_any_shape_and_option(B, D, L, K, dilation, padding, has_bias, last, block, cuts, seed):
    torch.manual_seed(seed)
    cuts = cuts if padding != "valid" else None
    L = L if reaches(L, K, dilation, padding) else L + (K - 1) * dilation
    B = B if cuts is None else 1
    cu_seqlens = None if cuts is None else torch.tensor([0, *sorted(min(c, L) for c in cuts), L], dtype=torch.int32)
    u, k, bias = make(B, D, L, K)
    inputs = [x.requires_grad_() for x in (u.mT.contiguous().mT if last else u, k, bias)][: 3 if has_bias else 2]
    options = {"padding": padding, "dilation": dilation, "cu_seqlens": cu_seqlens}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(direct.BLOCK, "cpu", block)
        y, expected = dilated_conv(*inputs, **options), dilated_conv_reference(*inputs, **options)
        assert_close(y, expected)
        dy = torch.randn_like(y)
        for g, e in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True):
            assert torch.allclose(g, e, rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 15])
@pytest.mark.parametrize("dilation", [1, 2, 7, 60])
def test_conv1d_has_the_same_taps_in_reverse(K, dilation):
    u, k, bias = make(2, 5, 50, K)
    taps, options = k.flip(-1)[:, None], {"dilation": dilation, "groups": 5}
    same = torch.nn.functional.conv1d(u, taps, bias, padding="same", **options)
    assert_close(dilated_conv(u, k, bias, dilation=dilation, padding="same"), same)
    causal = torch.nn.functional.conv1d(u, taps, bias, padding=(K - 1) * dilation, **options)[..., :50]
    assert_close(dilated_conv(u, k, bias, dilation=dilation), causal)
    if (K - 1) * dilation < 50:
        valid = torch.nn.functional.conv1d(u, taps, bias, **options)
        assert_close(dilated_conv(u, k, bias, dilation=dilation, padding="valid"), valid)


def test_it_is_a_long_convolution_with_zeros_between_the_taps():
    u, k, bias = make(2, 3, 500, 6)
    dense = torch.zeros(3, 5 * 37 + 1).double()
    dense[:, ::37] = k
    assert_close(dilated_conv(u, k, dilation=37), fft_conv(u, dense))
    for padding in ("causal", "same"):
        assert_close(dilated_conv(u, k, bias, padding=padding), short_conv(u, k, bias, padding=padding))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_in_float32(dtype):
    """A half-precision sum would stay at 2,048 (float16) or 256 (bfloat16) however many ones are added."""
    u, k = torch.ones(1, 1, 300, dtype=dtype), torch.ones(1, 128, dtype=dtype)
    k[0, 0] = 2048
    expected = torch.tensor(2175.0).to(dtype).item()
    assert dilated_conv(u, k, dilation=2)[0, 0, -1].item() == expected
    y, _ = dilated_conv_step(u[..., 0], u[..., :254], k, dilation=2)
    assert y.item() == expected


@pytest.mark.parametrize(("K", "dilation"), [(1, 1), (2, 1), (3, 2), (2, 9)])
def test_first_and_second_derivatives(K, dilation):
    inputs = [x.requires_grad_() for x in make(2, 2, 5, K)]
    state = torch.randn(2, 2, (K - 1) * dilation, dtype=torch.float64, requires_grad=True)
    row = [inputs[0].detach()[:1].requires_grad_(), *inputs[1:]]
    packed = torch.tensor([0, 0, 2, 3, 5])
    functions = []
    for p in PADDINGS:
        if reaches(5, K, dilation, p):
            functions.append((lambda *a, p=p: dilated_conv(*a, dilation=dilation, padding=p), inputs))
        if p != "valid":
            f = lambda *a, p=p: dilated_conv(*a, dilation=dilation, padding=p, cu_seqlens=packed)  # noqa: E731
            functions.append((f, row))
    streaming = lambda u, k, b, s: dilated_conv(u, k, b, dilation=dilation, state=s, return_state=True)  # noqa: E731
    functions.append((streaming, [*inputs, state]))
    for f, arguments in functions:
        assert torch.autograd.gradcheck(f, arguments)
        assert torch.autograd.gradgradcheck(f, arguments)

    def two_steps(u, s, k, b):
        y, lines = dilated_conv_step(u[..., 0], s, k, b, dilation=dilation)
        z, lines = dilated_conv_step(u[..., 1] + y, lines, k, b, dilation=dilation)
        return y, z, lines.window(0)

    assert torch.autograd.gradcheck(two_steps, (inputs[0], state, *inputs[1:]))


def test_the_operator_saves_its_inputs_only():
    inputs = [x.requires_grad_() for x in make(2, 3, 40, 5, torch.bfloat16)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        dilated_conv(*inputs, dilation=3)
    assert {x.data_ptr() for x in saved} == {x.data_ptr() for x in inputs}


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", ["causal", "same"])
def test_a_nan_stays_in_its_row_channel_and_reach(padding, last, small_blocks):
    u, k, bias = make(2, 20, 40, 3, torch.float32)
    u = u.mT.contiguous().mT if last else u
    clean = dilated_conv(u, k, bias, dilation=4, padding=padding)
    u = u.clone(memory_format=torch.preserve_format)
    u[1, 7, 20] = float("nan")
    y = dilated_conv(u, k, bias, dilation=4, padding=padding)
    reached = torch.zeros(2, 20, 40, dtype=torch.bool)
    first = 16 if padding == "same" else 20
    reached[1, 7, first : first + 9 : 4] = True
    assert torch.equal(y.isnan(), reached)
    assert torch.equal(y[~reached], clean[~reached])


# --- Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "dilation"), [(1, 3), (2, 1), (3, 4), (2, 7), (2, 30)])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 20], [2, 3, 19], [24]], ids=str)
def test_chunks_and_steps_equal_the_whole(K, dilation, sizes):
    u, k, bias = make(2, 5, 24, K, torch.float32)
    whole, last = dilated_conv(u, k, bias, dilation=dilation, return_state=True)
    state, outputs = None, []
    for chunk in u.split(sizes, dim=-1):
        y, state = dilated_conv(chunk, k, bias, dilation=dilation, state=state, return_state=True)
        assert state.shape == (2, 5, (K - 1) * dilation)
        outputs.append(y)
    assert_close(torch.cat(outputs, -1), whole.double(), torch.float32)
    assert torch.equal(state, last)
    with torch.no_grad():  # in turns with chunks
        state, outputs = torch.zeros(2, 5, (K - 1) * dilation), []
        for u_t in u[..., :11].unbind(-1):
            y, state = dilated_conv_step(u_t, state, k, bias, dilation=dilation)
            outputs.append(y[..., None])
        y, after = dilated_conv(u[..., 11:17], k, bias, dilation=dilation, state=state, return_state=True)
        outputs.append(y)
        for u_t in u[..., 17:].unbind(-1):
            y, after = dilated_conv_step(u_t, after, k, bias, dilation=dilation)
            outputs.append(y[..., None])
    assert_close(torch.cat(outputs, -1), whole.double(), torch.float32)
    assert torch.equal(after.window(0), last)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__)
def test_old_states_stay_as_they_were(mode):
    """A tree of streams: from every state of a first one, another goes on with other inputs."""
    u, k, _ = make(2, 3, 40, 3)
    other = torch.randn_like(u)
    with mode():
        states = [DelayLines([torch.zeros(2, 3, 8).double()], [4])]
        for t in range(40):
            states.append(dilated_conv_step(u[..., t], states[-1], k, dilation=4)[1])
        for t in (0, 1, 7, 8, 9, 20, 39):
            state, outputs = states[t], []
            for s in range(t, 40):
                y, state = dilated_conv_step(other[..., s], state, k, dilation=4)
                outputs.append(y)
            changed = torch.cat([u[..., :t], other[..., t:]], -1)
            assert_close(torch.stack(outputs, -1), dilated_conv_reference(changed, k, dilation=4)[..., t:])
        for t, state in enumerate(states):
            assert torch.equal(state.window(0), torch.nn.functional.pad(u, (8, 0))[..., t : t + 8])


@torch.no_grad()
def test_states_that_share_memory_do_not_write_over_each_other():
    u, k, _ = make(2, 3, 12, 3)
    state = DelayLines([u[..., :8]], [4])
    _, state = dilated_conv_step(u[..., 8], state, k, dilation=4)
    detached, reordered = state.map(lambda t: t.detach()), state.map(lambda t: t.index_select(0, torch.tensor([1, 0])))
    ones, twos = torch.ones(2, 3).double(), torch.full((2, 3), 2.0).double()
    first, second, third = state.append(ones[:, None]), detached.append(twos[:, None]), reordered.append(ones[:, None])
    assert torch.equal(first.window(0)[..., :-1], u[..., 2:9])
    assert torch.equal(first.window(0)[..., -1], ones)
    assert torch.equal(second.window(0)[..., -1], twos)
    assert torch.equal(third.window(0)[..., :-1], u[..., 2:9].flip(0))


@torch.no_grad()
def test_a_step_copies_one_sample_on_average(monkeypatch):
    made = []
    cat = torch.cat
    state = DelayLines([torch.zeros(1, 2, 3000)], [1000])
    monkeypatch.setattr(torch, "cat", lambda parts, dim=0: made.append(cat(parts, dim)) or made[-1])
    for _ in range(9000):
        state = state.append(torch.ones(1, 1, 2))
    assert sum(x.shape[1] for x in made) <= 3 * 6000  # moved every 3,000 steps
    assert torch.equal(state.window(0), torch.ones(1, 2, 3000))


def test_states_made_in_inference_mode_go_on_outside():
    u, k, _ = make(2, 3, 12, 3)
    with torch.inference_mode():
        _, state = dilated_conv_step(u[..., 8], u[..., :8], k, dilation=4)
    with torch.no_grad():
        y, _ = dilated_conv_step(u[..., 9], state, k, dilation=4)
    assert_close(y, dilated_conv_reference(u, k, dilation=4)[..., 9])


def test_the_state_does_not_hold_on_to_the_chunk():
    for start in (None, torch.randn(2, 3, 9)):
        _, state = dilated_conv(torch.randn(2, 3, 1000), torch.randn(3, 4), dilation=3, state=start, return_state=True)
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


# --- Packed sequences -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "dilation"), [(1, 5), (2, 1), (3, 4), (4, 13)])
@pytest.mark.parametrize("padding", ["causal", "same"])
@pytest.mark.parametrize("cuts", [[], [20], [0, 0, 1, 2, 3, 19, 40, 40], list(range(12))], ids=str)
def test_packed_sequences_are_as_if_alone(K, dilation, padding, cuts, small_blocks):
    cu_seqlens = torch.tensor([0, *cuts, 40])
    for dtype in (torch.float64, torch.bfloat16):
        u, k, bias = make(1, 3, 40, K, dtype)
        check(u, k, bias, dilation=dilation, padding=padding, cu_seqlens=cu_seqlens)
        check(u.mT.contiguous().mT, k, bias, dilation=dilation, padding=padding, cu_seqlens=cu_seqlens.int())


@pytest.mark.parametrize("impl", ["torch", "triton"])
def test_a_nan_stays_in_its_packed_sequence(impl):
    if impl == "triton":
        pytest.importorskip("triton")
    u, k, _ = make(1, 3, 40, 4, torch.float32)
    u[..., 10:20] = float("nan")
    y = dilated_conv(
        u.requires_grad_(), k, dilation=3, padding="same", cu_seqlens=torch.tensor([0, 10, 20, 40]), impl=impl
    )
    assert torch.equal(y.isnan(), u.isnan())
    dy = torch.zeros_like(y)
    dy[..., 10:20] = float("nan")
    (grad,) = torch.autograd.grad(y, u, dy)
    assert torch.equal(grad.isnan(), u.isnan())


# --- Transformations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_opcheck(last, packed):
    u, k, bias = make(1, 3, 20, 3, torch.float32)
    u = (u.mT.contiguous().mT if last else u).requires_grad_()
    cu_seqlens = torch.tensor([0, 7, 20]) if packed else None
    left, right = (4, 4) if packed else (6, 1)
    options = (4, left, right, cu_seqlens, "torch")
    torch.library.opcheck(dilated_conv_op, (u, k.requires_grad_(), bias.requires_grad_(), *options))
    dy = torch.randn(1, 3, 20 + left + right - 8, requires_grad=True)
    torch.library.opcheck(weight_grad_op, (dy, u, 3, *options))


def test_vmap_and_functional_gradients():
    u, k = torch.randn(4, 2, 3, 20).double(), torch.randn(4, 3, 3).double()
    for cu_seqlens in (None, torch.tensor([0, 7, 20])):
        rows = u[:, :1] if cu_seqlens is not None else u
        f = lambda u, k, c=cu_seqlens: dilated_conv(u, k, dilation=4, cu_seqlens=c)  # noqa: E731
        assert_close(torch.func.vmap(f)(rows, k), torch.stack([f(*a) for a in zip(rows, k, strict=True)]))
        grads = torch.func.vmap(torch.func.grad(lambda *a, f=f: f(*a).sin().sum(), argnums=(0, 1)))(rows, k)
        for i in range(4):
            inputs = [rows[i].clone().requires_grad_(), k[i].clone().requires_grad_()]
            for g, e in zip(grads, torch.autograd.grad(f(*inputs).sin().sum(), inputs), strict=True):
                assert_close(g[i], e)
    du = torch.randn_like(u[0])
    tangent = torch.func.jvp(lambda u: dilated_conv(u, k[0], dilation=4), (u[0],), (du,))[1]
    assert_close(tangent, dilated_conv(du, k[0], dilation=4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_lowers_activations_and_leaves_taps(dtype):
    u, k, bias = (x.requires_grad_() for x in make(2, 3, 40, 3, torch.float32))
    expected = dilated_conv_reference(u.to(dtype), k, bias, dilation=4)  # taps rounded to half precision would show
    with torch.autocast("cpu", dtype=dtype):
        y, state = dilated_conv(u, k, bias, dilation=4, return_state=True)
        y_t, _ = dilated_conv_step(u[..., -1], state.roll(1, -1), k, bias, dilation=4)
        assert dilated_conv(u.double(), k, bias).dtype == torch.float64
        called = dilated_conv_op(u, k, bias, 4, 8, 0, None, "torch")
    assert y.dtype == state.dtype == y_t.dtype == called.dtype == dtype
    assert torch.equal(y, called)
    assert (y - expected.to(dtype)).abs().max() <= 2 * torch.finfo(dtype).eps * expected.abs().max()
    y.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 for x in (u, k, bias))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.taps = torch.nn.Parameter(torch.randn(3, 3))
        self.bias = torch.nn.Parameter(torch.randn(3))

    def forward(self, x, cu_seqlens=None):
        if cu_seqlens is not None:
            return dilated_conv(x.mT, self.taps, self.bias, dilation=2, cu_seqlens=cu_seqlens)
        y, state = dilated_conv(x.mT.tanh(), self.taps, self.bias, dilation=2, return_state=True)
        return dilated_conv(y, self.taps, dilation=4, padding="same"), state


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_without_a_graph_break_for_any_length(packed):
    model = Model()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for L in (20, 33):
        args = (torch.randn(1, L, 3, requires_grad=True), *((torch.tensor([0, 3, 3, 10, L]),) if packed else ()))
        y, expected = ((out,) if packed else out for out in (compiled(*args), model(*args)))
        inputs = (args[0], model.taps, model.bias)
        grads, wanted = (torch.autograd.grad(sum(x.sin().sum() for x in out), inputs) for out in (y, expected))
        for a, b in zip((*y, *grads), (*expected, *wanted), strict=True):
            assert_close(a, b)


# --- Triton -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def triton_kernels():
    """The Triton kernels in the interpreter (tests/conftest.py), with blocks that small tensors have several of."""
    pytest.importorskip("triton")
    from longconv.kernels.dilated import triton_dilated

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(triton_dilated, "BLOCK", 64)
        monkeypatch.setattr(triton_dilated, "STRETCH", 128)
        yield triton_dilated


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("K", "dilation"), [(1, 1), (2, 100), (3, 1), (3, 50), (5, 16)])
def test_triton_equals_the_definition(K, dilation, dtype, triton_kernels):
    for padding in PADDINGS:
        u, k, bias = make(1, 2, 171, K, dtype)
        check(u, k, bias, dilation=dilation, padding=padding, impl="triton")
    check(*make(1, 2, 1, K, dtype, taps=torch.float32), dilation=dilation, impl="triton")
    check(*make(0, 2, 10, K, dtype), dilation=dilation, impl="triton")
    u, k, bias = make(1, 2, 90, K, dtype)
    options = {"dilation": dilation, "impl": "triton", "cu_seqlens": torch.tensor([0, 3, 3, 70, 90])}
    check(u.mT.contiguous().mT, k, bias, torch.ones((), dtype=dtype).expand(1, 2, 90), **options)


def test_triton_has_second_derivatives(triton_kernels):
    inputs = [x.requires_grad_() for x in make(1, 2, 70, 3, torch.float32)[:2]]
    results = []
    for impl in ("triton", "torch"):
        y = dilated_conv(*inputs, dilation=30, impl=impl)
        grads = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in grads), inputs))
    for a, b in zip(*results, strict=True):
        assert_close(a, b)


def test_triton_offsets_beyond_32_bits():
    """Taps so far apart that their product with the dilation does not fit into 32 bits see nothing, and do not wrap."""
    pytest.importorskip("triton")
    u, k, _ = make(1, 1, 50, 9, torch.float32)
    far = 2**29 + 1
    assert_close(dilated_conv(u, k, dilation=far, impl="triton"), k[:, :1].double() * u)
    assert_close(dilated_conv(u, k, dilation=far, impl="torch"), k[:, :1].double() * u)


def test_triton_kernels_compile_for_gpus_that_are_not_there():
    pytest.importorskip("triton")
    from longconv.kernels.gpu import Case, compile_all, table

    module = "longconv.kernels.dilated.triton_dilated"
    sizes = dict.fromkeys(("D", "L", "T", "left", "dilation"), "i32")
    cases = []
    for dtype, packed in (("fp32", False), ("fp16", False), ("bf16", True)):
        tensors = {"u_ptr": f"*{dtype}:16", "index_ptr": "*i64:16"}
        constants = {"K": 3, "PACKED": packed, "BLOCK": 1024}
        cases.append(
            Case(
                f"{module}:_conv_kernel",
                {
                    **tensors,
                    "k_ptr": "*fp32:16",
                    "bias_ptr": "*fp32:16",
                    "y_ptr": f"*{dtype}:16",
                    **sizes,
                    "blocks": "i32",
                },
                {**constants, "HAS_BIAS": True},
                label=f"dilated {dtype}{' packed' * packed}",
            )
        )
        cases.append(
            Case(
                f"{module}:_weight_grad_kernel",
                {
                    **tensors,
                    "dy_ptr": f"*{dtype}:16",
                    "part_ptr": "*fp32:16",
                    **sizes,
                    "stretches": "i32",
                    "steps": "i32",
                },
                constants,
                label=f"dilated taps {dtype}{' packed' * packed}",
            )
        )
    reports = compile_all(cases)
    print(table(reports))
    assert len(reports) == len(cases) * 6
    assert all(r.fits and r.spill_bytes == 0 and r.registers <= 64 for r in reports), table(reports)


# --- Errors -----------------------------------------------------------------------------------------------------------

u, k = torch.ones(2, 3, 4), torch.ones(3, 3)
row = torch.ones(1, 3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dilated_conv(torch.ones(2, 3), k), "u must have shape"),
        (lambda: dilated_conv(torch.ones(2, 3, 0), k), "u must have at least one time step"),
        (lambda: dilated_conv(torch.ones(2, 0, 4), torch.ones(0, 3)), "u must have at least one channel"),
        (lambda: dilated_conv(u, torch.ones(4, 3)), "k must have shape .* D = 3"),
        (lambda: dilated_conv(u, torch.ones(3, 0)), "k must have shape .* K >= 1"),
        (lambda: dilated_conv(u, k, torch.ones(4)), "bias must have shape"),
        (lambda: dilated_conv(u, k.to("meta")), "k must be on the device of u"),
        (lambda: dilated_conv(u, k, dilation=0), "dilation must be at least 1; got 0"),
        (lambda: dilated_conv(u, k, padding="full"), "padding must be one of causal, same, valid; got 'full'"),
        (lambda: dilated_conv(u, k, impl="cuda"), "impl must be one of"),
        (lambda: dilated_conv(u.double(), k, impl="triton"), "impl='triton' cannot be had because .*float64"),
        (lambda: dilated_conv(u, k, dilation=2, padding="valid"), "u is too short .* = 4; got L = 4"),
        (lambda: dilated_conv(u, k, dilation=2, state=torch.ones(2, 3, 2)), r"state must have shape .*\(2, 3, 4\)"),
        (lambda: dilated_conv(u, k, state=DelayLines([torch.ones(2, 3, 2)], [2])), "state belongs to dilation 2"),
        (lambda: dilated_conv(u, k, padding="same", state=torch.ones(2, 3, 2)), "state needs padding='causal'"),
        (lambda: dilated_conv(u, k, padding="same", return_state=True), "return_state needs padding='causal'"),
        (lambda: dilated_conv(row, k, cu_seqlens=torch.tensor([0, 4]), return_state=True), "return_state cannot be"),
        (lambda: dilated_conv(row, k, cu_seqlens=torch.tensor([0, 4]), padding="valid"), "padding='valid' cannot be"),
        (lambda: dilated_conv(row, k, cu_seqlens=torch.tensor([1, 4])), "cu_seqlens must start at 0; got 1"),
        (lambda: dilated_conv(row, k, cu_seqlens=torch.tensor([0, 3, 2, 4])), "cu_seqlens must not decrease"),
        (lambda: dilated_conv(row, k, cu_seqlens=torch.tensor([0])), "cu_seqlens must have shape"),
        (lambda: dilated_conv(u, k, cu_seqlens=torch.tensor([0, 4])), "cu_seqlens needs u with B = 1"),
        (lambda: dilated_conv_step(u, torch.ones(2, 3, 2), k), "u_t must have shape"),
        (lambda: dilated_conv_step(torch.ones(2, 3), torch.ones(1, 3, 2), k), "state must have shape"),
        (lambda: dilated_conv_step(torch.ones(2, 3), torch.ones(2, 3, 2), k, dilation=2), "state must have shape"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dilated_conv(u.long(), k), "u must be floating point"),
        (lambda: dilated_conv(u, k.cfloat()), "k must be floating point"),
        (lambda: dilated_conv(u, k, dilation=2.0), "dilation must be an integer; got 2.0"),
        (lambda: dilated_conv(u, k, state=torch.ones(2, 3, 2).int()), "state must be floating point"),
        (lambda: dilated_conv(row, k, cu_seqlens=torch.tensor([0.0, 4.0])), "cu_seqlens must be int32 or int64"),
    ],
)
def test_type_errors_name_the_argument(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="impl='triton' cannot be had because Triton runs on a CPU only in"):
        dilated_conv(u, k, impl="triton")


def test_float32_is_well_within_its_tolerance_over_long_rows():
    u = torch.randn(1, 1, 2**20)
    dy = torch.randn_like(u)
    dk = direct.weight_gradient(dy, u, 3, 8, 16, 0)
    expected = direct.weight_gradient(dy.double(), u.double(), 3, 8, 16, 0)
    assert torch.linalg.vector_norm(dk - expected) < TOLERANCE[torch.float32] / 3 * torch.linalg.vector_norm(expected)
