"""`short_conv` against its definition in float64: values, gradients, streams, packed sequences, transforms, errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close

from longconv.functional import fft_conv
from longconv.kernels import shortconv
from longconv.kernels.native import build
from longconv.kernels.shortconv import direct, short_conv, short_conv_reference, short_conv_step
from longconv.kernels.shortconv.op import short_conv_op, weight_grad_op

TAPS = [1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 127, 128]
PADDINGS = ["causal", "same"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def use(monkeypatch, path: str) -> None:
    """Take the C code, the operator, or PyTorch's own autograd, whatever the size."""
    if path == "native":
        return
    monkeypatch.setattr(build.Native, "library", lambda self: None)
    monkeypatch.setattr(shortconv, "OPERATOR_TAPS", 1 if path == "operator" else 10**9)
    monkeypatch.setattr(shortconv, "OPERATOR_PRODUCTS", 0)


@pytest.fixture(params=["native", "operator", "composite"])
def path(request, monkeypatch):
    use(monkeypatch, request.param)
    return request.param


def make(B, D, L, K, dtype=torch.float64, weights=None):
    """u, weight and bias with an output of order one."""
    weight = torch.randn(D, K, dtype=torch.float64) / K**0.5
    return [
        torch.randn(B, D, L, dtype=torch.float64).to(dtype),
        weight.to(weights or dtype),
        torch.randn(D, dtype=torch.float64).to(weights or dtype),
    ]


def check(u, weight, bias, dy=None, **options):
    """Compare output and gradients with the oracle."""
    inputs = [x.detach() if x is u else x.detach().clone() for x in (u, weight, bias)]
    wide = [x.double().requires_grad_() for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    dy = torch.randn(u.shape).to(u.dtype) if dy is None else dy
    y, expected = short_conv(*inputs, **options), short_conv_reference(*wide, **options)
    assert y.dtype == u.dtype
    assert_close(y, expected)
    grads = torch.autograd.grad(y, inputs, dy)
    for name, x, grad, wanted in zip(
        ("u", "weight", "bias"), inputs, grads, torch.autograd.grad(expected, wide, dy.double()), strict=True
    ):
        assert grad.dtype == x.dtype
        assert_close(grad, wanted, name=f"gradient of {name}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("K", TAPS)
def test_values_and_gradients_equal_the_definition(K, padding, dtype, path):
    for L in (1, 5, 131):
        u, weight, bias = make(2, 3, L, K, dtype)
        check(u, weight, bias, padding=padding)
        check(u.mT.contiguous().mT, weight, bias, padding=padding, activation="silu")  # as the layers have it
    check(*make(2, 1, 10, K, dtype), padding=padding)
    check(*make(2, 3, 40, K, dtype, weights=torch.float32), padding=padding)
    check(*make(0, 3, 10, K, dtype), padding=padding, activation="silu")


@pytest.mark.parametrize("K", [2, 7, 32])
@pytest.mark.parametrize("padding", PADDINGS)
def test_any_strides(K, padding, path):
    u, weight, bias = make(2, 4, 60, K)
    check(u[:1, :, :1].expand(3, -1, 60), weight, bias, padding=padding)
    check(u[:, ::2, 1::3], weight[::2], bias[::2], padding=padding)
    check(u, weight.mT.contiguous().mT, bias[:1].expand(4), padding=padding)
    check(u, weight[:, :1].expand(4, K), bias, padding=padding)
    check(u, weight, bias, torch.ones((), dtype=torch.float64).expand(2, 4, 60), padding=padding)  # from sum()
    check(u, weight, bias, torch.randn(2, 60, 4).mT.double(), padding=padding)


@pytest.mark.parametrize("K", [3, 8, 100])
@pytest.mark.parametrize("L", [direct.PART, direct.PART + 1, 3 * direct.PART + 5])
def test_gradients_of_taps_over_long_rows(L, K, path):
    check(*make(1, 2, L, K, torch.float32))
    check(*make(2, 2, L, K, torch.float32), padding="same")


def test_large_inputs_take_the_operator(no_native):
    u, weight, bias = make(4, 64, 1024, 16, torch.float32)
    check(u, weight, bias)
    nodes = short_conv(u.requires_grad_(), weight).grad_fn
    assert "short_conv" in nodes.name()


@settings(max_examples=80, deadline=None)
@given(
    B=st.integers(0, 3), D=st.integers(1, 3), L=st.integers(1, 70), K=st.integers(1, 140),
    padding=st.sampled_from(PADDINGS), activation=st.sampled_from([None, "silu"]), has_bias=st.booleans(),
    cuts=st.none() | st.lists(st.integers(0, 70), max_size=6), operator=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_any_shape_and_option(B, D, L, K, padding, activation, has_bias, cuts, operator, seed):
    torch.manual_seed(seed)
    B = B if cuts is None else 1
    cu_seqlens = None if cuts is None else torch.tensor([0, *sorted(min(c, L) for c in cuts), L], dtype=torch.int32)
    inputs = [x.requires_grad_() for x in make(B, D, L, K)][: 3 if has_bias else 2]
    options = {"padding": padding, "activation": activation, "cu_seqlens": cu_seqlens}
    with pytest.MonkeyPatch.context() as monkeypatch:
        use(monkeypatch, "operator" if operator else "composite")
        y, expected = short_conv(*inputs, **options), short_conv_reference(*inputs, **options)
        assert_close(y, expected)
        dy = torch.randn_like(y)
        for g, e in zip(torch.autograd.grad(y, inputs, dy), torch.autograd.grad(expected, inputs, dy), strict=True):
            assert torch.allclose(g, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("K", [*TAPS, 300])
def test_conv1d_has_the_same_taps_in_reverse(K):
    u, weight, bias = make(2, 5, 50, K)
    same = torch.nn.functional.conv1d(u, weight.flip(-1)[:, None], bias, padding="same", groups=5)
    assert_close(short_conv(u, weight, bias, padding="same"), same)
    causal = torch.nn.functional.conv1d(u, weight.flip(-1)[:, None], bias, padding=K - 1, groups=5)[..., :50]
    assert_close(short_conv(u, weight, bias), causal)


def test_even_taps_look_one_sample_further_ahead():
    u = torch.zeros(1, 1, 9)
    u[..., 4] = 1
    y = short_conv(u, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), padding="same")
    assert y.flatten().tolist() == [0, 0, 1, 2, 3, 4, 0, 0, 0]


def test_more_taps_than_the_fast_ones_equal_fft_conv():
    u, weight, _ = make(2, 3, 1000, 400)
    assert_close(short_conv(u, weight), fft_conv(u, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_sums_in_float32(dtype, path):
    """A half-precision sum would stay at 2,048 (float16) or 256 (bfloat16) however many ones are added."""
    u, weight = torch.ones(1, 1, 256, dtype=dtype), torch.ones(1, 128, dtype=dtype)
    weight[0, 0] = 2048
    assert short_conv(u, weight)[0, 0, -1].item() == torch.tensor(2175.0).to(dtype).item()
    y, _ = short_conv_step(u[..., 0], u[..., :127], weight)
    assert y.item() == torch.tensor(2175.0).to(dtype).item()


@pytest.mark.parametrize("K", [1, 2, 5])
@pytest.mark.parametrize("activation", [None, "silu"])
def test_first_and_second_derivatives(K, activation, path):
    inputs = [x.requires_grad_() for x in make(2, 2, 5, K)]
    state = torch.randn(2, 2, K - 1, dtype=torch.float64, requires_grad=True)
    packed = torch.tensor([0, 0, 2, 3, 5])
    functions = [lambda *a, p=p: short_conv(*a, padding=p, activation=activation) for p in PADDINGS]
    for f in functions:
        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)
    streaming = lambda u, w, b, s: short_conv(u, w, b, activation=activation, state=s, return_state=True)  # noqa: E731
    assert torch.autograd.gradcheck(streaming, (*inputs, state))
    assert torch.autograd.gradgradcheck(streaming, (*inputs, state))
    row = [inputs[0].detach()[:1].requires_grad_(), *inputs[1:]]
    for p in PADDINGS:
        assert torch.autograd.gradcheck(lambda *a, p=p: short_conv(*a, padding=p, cu_seqlens=packed), row)
    step = lambda u, s, w, b: short_conv_step(u, s, w, b, activation)  # noqa: E731
    assert torch.autograd.gradcheck(step, (inputs[0].detach()[..., 0].requires_grad_(), state, *inputs[1:]))


def test_the_operator_saves_its_inputs_only(monkeypatch):
    use(monkeypatch, "operator")
    inputs = [x.requires_grad_() for x in make(2, 3, 40, 5, torch.bfloat16)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        short_conv(*inputs, activation="silu")
    assert {x.data_ptr() for x in saved} == {x.data_ptr() for x in inputs}


@pytest.mark.parametrize("K", [1, 4, 5])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_nan_stays_in_its_row_channel_and_reach(K, padding, channels_last, path):
    u, weight, bias = make(2, 20, 40, K, torch.float32)
    if channels_last:
        u = u.mT.contiguous().mT
    clean = [x.clone().requires_grad_() for x in (u, weight, bias)]
    u[1, 7, 20] = float("nan")
    dirty = [u.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    y, y_clean = short_conv(*dirty, padding=padding), short_conv(*clean, padding=padding)
    reached = torch.zeros(2, 20, 40, dtype=torch.bool)
    ahead = K // 2 if padding == "same" else 0
    reached[1, 7, 20 - ahead : 20 - ahead + K] = True
    assert torch.equal(y.isnan(), reached)
    assert torch.equal(y[~reached], y_clean[~reached])
    grads, expected = torch.autograd.grad(y.sum(), dirty), torch.autograd.grad(y_clean.sum(), clean)
    assert torch.equal(grads[0], expected[0])
    assert grads[1][7].isnan().any()  # its own taps saw it
    others = torch.arange(20) != 7
    assert torch.equal(grads[1][others], expected[1][others])
    assert torch.equal(grads[2], expected[2])


@pytest.mark.parametrize("K", [1, 2, 3, 7, 16])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 8], [2, 3, 7], [12]], ids=str)
def test_chunks_and_steps_equal_the_whole(K, sizes, path):
    u, weight, bias = make(2, 5, 12, K, torch.float32)
    whole, last = short_conv(u, weight, bias, activation="silu", return_state=True)
    state, outputs = None, []
    for chunk in u.split(sizes, dim=-1):
        y, state = short_conv(chunk, weight, bias, activation="silu", state=state, return_state=True)
        assert state.shape == (2, 5, K - 1)
        outputs.append(y)
    assert_close(torch.cat(outputs, -1), whole.double(), torch.float32)
    assert torch.equal(state, last)
    state, outputs = torch.zeros(2, 5, K - 1), []
    for u_t in u.unbind(-1):
        before = state.clone()
        y, following = short_conv_step(u_t, state, weight, bias, "silu")
        assert torch.equal(state, before)
        state = following
        outputs.append(y)
    assert_close(torch.stack(outputs, -1), whole.double(), torch.float32)
    assert torch.equal(state, last)


def test_the_state_does_not_hold_on_to_the_chunk():
    for start in (None, torch.randn(2, 3, 3)):
        _, state = short_conv(torch.randn(2, 3, 1000), torch.randn(3, 4), state=start, return_state=True)
        assert state.untyped_storage().nbytes() == state.numel() * state.element_size()


@pytest.mark.parametrize("K", [1, 2, 3, 34])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("cuts", [[], [20], [0, 0, 1, 2, 3, 19, 40, 40], list(range(12))], ids=str)
def test_packed_sequences_are_as_if_alone(K, padding, cuts, path):
    cu_seqlens = torch.tensor([0, *cuts, 40])
    for dtype in (torch.float64, torch.bfloat16):
        u, weight, bias = make(1, 3, 40, K, dtype)
        check(u, weight, bias, padding=padding, activation="silu", cu_seqlens=cu_seqlens)
        check(u.mT.contiguous().mT, weight, bias, padding=padding, cu_seqlens=cu_seqlens.int())


@pytest.mark.parametrize("padding", PADDINGS)
def test_a_nan_stays_in_its_packed_sequence(padding, path):
    u, weight, _ = make(1, 3, 40, 8)
    u[..., 10:20] = float("nan")
    y = short_conv(u.requires_grad_(), weight, padding=padding, cu_seqlens=torch.tensor([0, 10, 20, 40]))
    assert torch.equal(y.isnan(), u.isnan())
    dy = torch.zeros_like(y)
    dy[..., 10:20] = float("nan")
    (grad,) = torch.autograd.grad(y, u, dy)
    assert torch.equal(grad.isnan(), u.isnan())


@pytest.mark.parametrize(
    ("K", "left", "right", "layout"),
    [(1, 0, 0, "channels last"), (5, 4, 0, "channels last"), (5, 0, 0, "contiguous"), (6, 2, 4, "contiguous")],
)
def test_opcheck(K, left, right, layout):
    u, weight, bias = make(2, 3, 20, K, torch.float32)
    u = (u if layout == "contiguous" else u.mT.contiguous().mT).requires_grad_()
    torch.library.opcheck(short_conv_op, (u, weight.requires_grad_(), bias.requires_grad_(), left, right, True))
    dy = torch.randn(2, 3, 20 + left + right - K + 1, requires_grad=True)
    torch.library.opcheck(weight_grad_op, (dy, u, left, right))


@pytest.mark.parametrize("mapped", [m for m in itertools.product([0, None], repeat=3) if any(x == 0 for x in m)])
@pytest.mark.parametrize("B", [0, 2])
def test_vmap(mapped, B, path):
    many = make(4 * B, 3, 20, 5)[0].view(4, B, 3, 20), torch.randn(4, 3, 5).double(), torch.randn(4, 3).double()
    args = [x if dim == 0 else x[0] for x, dim in zip(many, mapped, strict=True)]
    one = [[x[i] if dim == 0 else x for x, dim in zip(args, mapped, strict=True)] for i in range(4)]

    def f(u, weight, bias):
        return short_conv(u, weight, bias, padding="same", activation="silu")

    expected = torch.stack([f(*a) for a in one])
    assert_close(torch.func.vmap(f, in_dims=mapped)(*args), expected)
    through_op = torch.func.vmap(lambda *a: short_conv_op(*a, 2, 2, True), in_dims=mapped)
    assert_close(through_op(*args), expected)
    dy = torch.randn_like(expected)
    grads = torch.func.vmap(weight_grad_op, in_dims=(0, mapped[0], None, None))(dy, args[0], 2, 2)
    assert_close(grads, torch.stack([weight_grad_op(d, a[0], 2, 2) for d, a in zip(dy, one, strict=True)]))
    per_sample = torch.func.vmap(torch.func.grad(lambda *a: f(*a).sin().sum(), argnums=(0, 1, 2)), in_dims=mapped)(
        *args
    )
    for i, a in enumerate(one):
        a = [x.clone().requires_grad_() for x in a]
        for g, e in zip(per_sample, torch.autograd.grad(f(*a).sin().sum(), a), strict=True):
            assert_close(g[i], e)


def test_forward_mode(path):
    (u, weight, _), du = make(2, 3, 20, 5), torch.randn(2, 3, 20).double()
    assert_close(torch.func.jvp(lambda u: short_conv(u, weight), (u,), (du,))[1], short_conv(du, weight))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("K", [3, 8])
def test_autocast_lowers_activations_and_leaves_taps(K, dtype, path):
    u, weight, bias = (x.requires_grad_() for x in make(2, 3, 40, K, torch.float32))
    expected = short_conv_reference(u.to(dtype), weight, bias)  # taps rounded to half precision would show
    with torch.autocast("cpu", dtype=dtype):
        y, state = short_conv(u, weight, bias, return_state=True)
        y_t, _ = short_conv_step(u[..., -1], state.roll(1, -1), weight, bias)
        direct_call = short_conv_op(u, weight, bias, K - 1, 0, False)
        assert short_conv(u.double(), weight, bias).dtype == torch.float64
    assert y.dtype == state.dtype == y_t.dtype == direct_call.dtype == dtype
    assert torch.equal(y, direct_call)
    assert (y - expected.to(dtype)).abs().max() <= 2 * torch.finfo(dtype).eps * expected.abs().max()
    y.float().sum().backward()
    assert all(x.grad.dtype == torch.float32 and x.grad.abs().sum() > 0 for x in (u, weight, bias))


class Model(torch.nn.Module):
    def __init__(self, K):
        super().__init__()
        self.taps = torch.nn.Parameter(torch.randn(3, K))
        self.bias = torch.nn.Parameter(torch.randn(3))

    def forward(self, u, cu_seqlens=None):
        if cu_seqlens is not None:
            return short_conv(u, self.taps, self.bias, cu_seqlens=cu_seqlens)
        y, state = short_conv(u.tanh(), self.taps, self.bias, activation="silu", return_state=True)
        return short_conv(y, self.taps, padding="same"), state


@pytest.mark.parametrize("K", [3, 8])
@pytest.mark.parametrize("packed", [False, True])
def test_compiles_without_a_graph_break_for_any_length(K, packed):
    model = Model(K)
    # What can fail is tracing; generating code takes ten times as long, so it has a test of its own.
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for L in (20, 33):
        args = (torch.randn(1, 3, L, requires_grad=True), *((torch.tensor([0, 3, 3, 10, L]),) if packed else ()))
        y, expected = ((out,) if packed else out for out in (compiled(*args), model(*args)))
        for a, b in zip(y, expected, strict=True):
            assert_close(a, b)
        inputs = (args[0], model.taps, model.bias)
        grads, wanted = (torch.autograd.grad(sum(x.sin().sum() for x in out), inputs) for out in (y, expected))
        for a, b in zip(grads, wanted, strict=True):
            assert_close(a, b)
    if packed:
        with pytest.raises(RuntimeError, match="cu_seqlens must start at 0"):
            compiled(args[0], torch.tensor([0, 5, 3, 10, 33]))


@torch.no_grad()
def test_generated_code_for_packed_sequences_of_any_length():
    model = Model(8)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for L in (20, 33):
        args = torch.randn(1, 3, L), torch.tensor([0, 3, 3, 10, L])
        assert_close(compiled(*args), model(*args))


def test_compiles_under_autocast_and_with_functional_transforms():
    u, weight, _ = make(2, 3, 20, 8, torch.float32)

    def f(u, weight):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return short_conv(u, weight)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")(u, weight)
    assert compiled.dtype == torch.bfloat16
    assert_close(compiled, f(u, weight))
    grad = torch.func.grad(lambda u: short_conv(u, weight).sin().sum())
    assert_close(torch.compile(grad, fullgraph=True, backend="aot_eager")(u), grad(u))


@pytest.mark.parametrize("K", [3, 8])
@pytest.mark.parametrize("packed", [False, True])
def test_exports_for_any_length(K, packed):
    # A returned state needs K-1 inputs: with fewer than that, it would hold zeros, which is another graph.
    model, L = Model(K), torch.export.Dim("L", min=2 if packed else K, max=10_000)
    example = (torch.randn(1, 3, 40), *((torch.tensor([0, 3, 20, 40]),) if packed else ()))
    shapes = ({2: L}, *(({0: torch.export.Dim("N", min=3)},) if packed else ()))
    exported = torch.export.export(model, example, dynamic_shapes=shapes).module()
    args = (torch.randn(1, 3, 77), *((torch.tensor([0, 3, 3, 50, 77]),) if packed else ()))
    y, expected = ((out,) if packed else out for out in (exported(*args), model(*args)))
    for a, b in zip(y, expected, strict=True):
        assert_close(a, b)


u, w = torch.ones(2, 3, 4), torch.ones(3, 3)
row = torch.ones(1, 3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: short_conv(torch.ones(2, 3), w), "u must have shape"),
        (lambda: short_conv(torch.ones(2, 3, 0), w), "u must have at least one time step"),
        (lambda: short_conv(torch.ones(2, 0, 4), torch.ones(0, 3)), "u must have at least one channel"),
        (lambda: short_conv(u, torch.ones(4, 3)), "weight must have shape .* D = 3"),
        (lambda: short_conv(u, torch.ones(3, 0)), "weight must have shape .* K >= 1"),
        (lambda: short_conv(u, w, torch.ones(4)), "bias must have shape"),
        (lambda: short_conv(u, w.to("meta")), "weight must be on the device of u"),
        (lambda: short_conv(u, w, torch.ones(3, device="meta")), "bias must be on the device of u"),
        (lambda: short_conv(u, w, activation="relu"), "activation must be"),
        (lambda: short_conv(u, w, padding="valid"), "padding must be"),
        (lambda: short_conv(u, w, state=torch.ones(2, 3, 3)), "state must have shape"),
        (lambda: short_conv(u, w, state=torch.ones(2, 3, 2, device="meta")), "state must be on the device of u"),
        (lambda: short_conv(u, w, padding="same", state=torch.ones(2, 3, 2)), "state needs padding='causal'"),
        (lambda: short_conv(u, w, padding="same", return_state=True), "return_state needs padding='causal'"),
        (lambda: short_conv(row, w, cu_seqlens=torch.tensor([0, 4]), return_state=True), "return_state cannot be"),
        (lambda: short_conv(row, w, cu_seqlens=torch.tensor([1, 4])), "cu_seqlens must start at 0; got 1"),
        (lambda: short_conv(row, w, cu_seqlens=torch.tensor([0, 3])), "cu_seqlens must end at .* 4; got 3"),
        (lambda: short_conv(row, w, cu_seqlens=torch.tensor([0, 3, 2, 4])), "cu_seqlens must not decrease"),
        (lambda: short_conv(row, w, cu_seqlens=torch.tensor([[0, 4]])), "cu_seqlens must have shape"),
        (lambda: short_conv(row, w, cu_seqlens=torch.tensor([0])), "cu_seqlens must have shape"),
        (lambda: short_conv(u, w, cu_seqlens=torch.tensor([0, 4])), "cu_seqlens needs u with B = 1"),
        (lambda: short_conv(row, w, cu_seqlens=torch.tensor([0, 4], device="meta")), "cu_seqlens must be on"),
        (lambda: short_conv_step(u, torch.ones(2, 3, 2), w), "u_t must have shape"),
        (lambda: short_conv_step(torch.ones(2, 3), torch.ones(1, 3, 2), w), "state must have shape"),
        (lambda: short_conv_step(torch.ones(2, 3), torch.ones(2, 3, 2), w, torch.ones(1)), "bias must have shape"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: short_conv(u.long(), w), "u must be floating point"),
        (lambda: short_conv(u.cfloat(), w), "u must be floating point"),
        (lambda: short_conv(u, w.long()), "weight must be floating point"),
        (lambda: short_conv(u, w, torch.ones(3).cfloat()), "bias must be floating point"),
        (lambda: short_conv(u, w, state=torch.ones(2, 3, 2).int()), "state must be floating point"),
        (lambda: short_conv(row, w, cu_seqlens=torch.tensor([0.0, 4.0])), "cu_seqlens must be int32 or int64"),
        (lambda: short_conv_step(torch.ones(2, 3).int(), torch.ones(2, 3, 2), w), "u_t must be floating point"),
    ],
)
def test_type_errors_name_the_argument(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_the_gradient_of_the_taps_keeps_its_digits_inside_autocast():
    u, w = torch.randn(2, 16, 4096), torch.randn(16, 32, requires_grad=True)
    y = short_conv(u, w)
    (expected,) = torch.autograd.grad(y.sum(), w, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (actual,) = torch.autograd.grad(y.sum(), w)
    assert_close(actual, expected.double())
