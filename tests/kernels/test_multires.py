"""`multires_conv` against its definition: the tree, its dense kernel, gradients, streams, packed sequences."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close

from longconv.functional import (
    fft_conv,
    multires_conv,
    multires_kernel,
    multires_levels,
    multires_state,
    multires_step,
)
from longconv.kernels import multires
from longconv.kernels.dilated import DelayLines, direct
from longconv.kernels.multires import multires_conv_reference
from longconv.kernels.multires.op import multires_conv_backward_op, multires_conv_op
from longconv.kernels.multires.stream import signals
from longconv.kernels.multires.tree import spend
from longconv.state import map_tensors

# tree_select, and how many coefficients the tree of 4 levels gets.
TREES = [("fading", 5), ("uniform", 1), ("uniform", 2), ("uniform", 8), ("uniform", 40)]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small tensors have many, cut along batch and channels."""
    monkeypatch.setitem(direct.BLOCK, "cpu", 48)


def make(B, D, L, K, coefficients, dtype=torch.float64, filters=None):
    """x, h0, h1 and w with an output of order one."""
    x, w = torch.randn(B, D, L, dtype=torch.float64), torch.randn(D, coefficients + 1, dtype=torch.float64)
    h0, h1 = torch.randn(2, D, K, dtype=torch.float64) / K**0.5
    filters = filters or dtype
    return [x.to(dtype), h0.to(filters), h1.to(filters), (w / coefficients**0.5).to(filters)]


def check(inputs, dy=None, **tree):
    """Compare output and gradients with the oracle."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    y, expected = multires_conv(*inputs, **tree), multires_conv_reference(*wide, **tree)
    assert y.dtype == inputs[0].dtype
    assert_close(y, expected)
    dy = torch.randn(y.shape).to(y.dtype) if dy is None else dy
    wanted = torch.autograd.grad(expected, wide, dy.double(), allow_unused=True)  # h1, with a single coefficient
    for name, x, grad, want in zip(
        ("x", "h0", "h1", "w"), inputs, torch.autograd.grad(y, inputs, dy), wanted, strict=True
    ):
        assert grad.dtype == x.dtype
        assert_close(grad, torch.zeros_like(grad) if want is None else want, name=f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tree_select", "m"), TREES)
@pytest.mark.parametrize("K", [1, 2, 3, 4])
def test_values_and_gradients_equal_the_definition(K, tree_select, m, dtype, small_blocks):
    tree = {"levels": 4, "tree_select": tree_select}
    for B, D, L in ((2, 3, 1), (3, 2, 5), (1, 3, 67), (2, 3, 16)):
        x, *filters = make(B, D, L, K, m, dtype)
        check([x, *filters], **tree)
    check([x.mT.contiguous().mT, *filters], **tree)
    check(make(2, 3, 20, K, m, dtype, torch.float32), **tree)
    assert multires_conv(*make(0, 3, 10, K, m, dtype), **tree).shape == (0, 3, 10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("tree_select", "m", "levels"), [("fading", 5, 4), ("uniform", 8, 4), ("fading", 9, 8)])
def test_a_batch_is_convolved_with_the_kernel(tree_select, m, levels, dtype, monkeypatch):
    tree = {"levels": levels, "tree_select": tree_select}
    taken = []
    monkeypatch.setattr(multires, "fft_conv", lambda u, k: (taken.append(k.shape[1]), fft_conv(u, k))[1])
    for L in (1, 20, 100):  # of 46 or 766 taps in all
        x, *filters = make(multires.BATCH, 3, L, 4, m, dtype)
        check([x, *filters], **tree)
        last = x.mT.contiguous().mT
        check([last, *filters], **tree)
        assert multires_conv(last, *filters, **tree).stride() == last.stride()
        check(make(5, 3, L, 4, m, dtype, torch.float32), **tree)
        check(make(5, 3, L, 4, m, torch.float32, dtype), **tree)
    assert set(taken) == {1, 20, min(100, 1 + 3 * (2**levels - 1))}
    taken.clear()
    check(make(multires.BATCH - 1, 3, 100, 4, m), **tree)
    check(make(multires.BATCH, 3, 100, 4, 3), levels=2)  # a small tree
    assert not taken


@pytest.mark.parametrize("strict", [False, True])
def test_exports_for_any_number_of_rows(strict):
    class Conv(torch.nn.Module):
        def forward(self, x, h0, h1, w):
            return multires_conv(x, h0, h1, w)

    x, *filters = make(multires.BATCH + 1, 3, 50, 4, 7)
    rows = ({0: torch.export.Dim("B")}, None, None, None)
    program = torch.export.export(Conv(), (x, *filters), dynamic_shapes=rows, strict=strict).module()
    for B in (1, 2, 9):
        x = torch.randn(B, 3, 50, dtype=torch.float64)
        torch.testing.assert_close(program(x, *filters), multires_conv(x, *filters))


def test_second_derivatives_of_a_batch():
    inputs = [t.requires_grad_() for t in make(multires.BATCH, 1, 6, 4, 4)]
    assert torch.autograd.gradgradcheck(multires_conv, inputs)


@pytest.mark.parametrize(("tree_select", "m"), [("fading", 1), ("uniform", 1), ("uniform", 4)])
def test_without_levels_it_is_a_skip_connection(tree_select, m):
    x, h0, h1, w = make(2, 3, 7, 2, m)
    y = multires_conv(x, h0, h1, w, levels=0, tree_select=tree_select)
    assert_close(y, (w[:, :1] + w[:, -1:]) * x)


@settings(max_examples=60, deadline=None)
@given(
    B=st.integers(1, 3), D=st.integers(1, 3), L=st.integers(1, 60), K=st.integers(1, 5), levels=st.integers(0, 7),
    m=st.none() | st.integers(1, 50), block=st.integers(1, 300), last=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_any_shape(B, D, L, K, levels, m, block, last, seed):
    torch.manual_seed(seed)
    tree = {"levels": levels, "tree_select": "fading" if m is None else "uniform"}
    x, *filters = make(B, D, L, K, levels + 1 if m is None else m)
    inputs = [t.requires_grad_() for t in (x.mT.contiguous().mT if last else x, *filters)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(direct.BLOCK, "cpu", block)
        y, expected = multires_conv(*inputs, **tree), multires_conv_reference(*inputs, **tree)
        assert_close(y, expected)
        dy = torch.randn_like(y)
        grads = torch.autograd.grad(y, inputs, dy)
        wanted = torch.autograd.grad(expected, inputs, dy, allow_unused=True)
        for g, e in zip(grads, wanted, strict=True):
            assert torch.allclose(g, torch.zeros_like(g) if e is None else e, rtol=1e-10, atol=1e-11)


def test_any_strides(small_blocks):
    x, h0, h1, w = make(2, 4, 30, 3, 5)
    tree = {"levels": 4}
    check([x[:1, :, :1].expand(3, -1, 30), h0, h1, w], **tree)
    check([x[:, ::2, 1::3], h0[::2], h1[::2], w[::2]], **tree)
    check([x, h0.mT.contiguous().mT, h1[:1].expand(4, 3), w], **tree)
    check([x, h0, h1, w], torch.ones((), dtype=torch.float64).expand(2, 4, 30), **tree)  # from sum()
    check([x, h0, h1, w], torch.randn(2, 30, 4).double().mT, **tree)


def test_long_rows():
    for L, m, select in ((70_000, 16, "fading"), (20_000, 30, "uniform")):
        check(make(1, 2, L, 2, m, torch.float32), levels=15, tree_select=select)


# --- The definition ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("L", [1, 2, 3, 17, 33, 1024, 1025, 16_000])
@pytest.mark.parametrize("K", [2, 3, 4, 8])
def test_the_first_sample_reaches_the_last(L, K):
    J = multires_levels(L, K)
    assert math.ceil(math.log2((L - 1) / (K - 1) + 1)) == J
    assert (K - 1) * (2**J - 1) >= L - 1
    assert J == 0 or (K - 1) * (2 ** (J - 1) - 1) < L - 1


@pytest.mark.parametrize("K", [2, 3, 4])
@pytest.mark.parametrize("J", [1, 3, 5])
@pytest.mark.parametrize("tree_select", ["fading", "uniform"])
def test_the_receptive_field(K, J, tree_select):
    field = 1 + (K - 1) * (2**J - 1)
    h, w = torch.ones(1, K), torch.ones(1, J + 2)
    kernel = multires_kernel(h, h, w, field + 3, levels=J, tree_select=tree_select)[0]
    assert (kernel[:field] > 0).all()
    assert not kernel[field:].any()


def test_haar_filters_give_means_of_halving_blocks():
    """With h0 = (1, 1) / 2, a_j is the mean of the last 2^j samples; with h1 = (1, -1) / 2, b_{j+1} compares two."""
    x = torch.randn(1, 1, 64).double()
    h0, h1 = torch.tensor([[0.5, 0.5]]).double(), torch.tensor([[0.5, -0.5]]).double()
    mean = lambda n: F.pad(x, (n - 1, 0)).unfold(-1, n, 1).mean(-1)  # noqa: E731
    for level in range(4):
        w = torch.zeros(1, 5).double()
        w[0, level] = 1
        y = multires_conv(x, h0, h1, w)
        if level == 0:
            assert_close(y, mean(8))
        else:  # w_1 weighs the coarsest, b_3
            n = 2 ** (3 - level)
            assert_close(y, (mean(n) - F.pad(mean(n), (n, 0))[..., :64]) / 2)
    assert torch.equal(multires_conv(x, h0, h1, torch.tensor([[0.0, 0, 0, 0, 1]]).double()), x)


def published(x, h0, h1, w, depth, tree_select):
    """The definition once more, by conv1d over filters in its own order, as in the published code."""
    D, K = h0.shape[0], h0.shape[-1]
    a, details = x, []
    for j in range(depth):
        padded = F.pad(a, ((K - 1) * 2**j, 0))
        details.append(F.conv1d(padded, h1, dilation=2**j, groups=D))
        a = F.conv1d(padded, h0, dilation=2**j, groups=D)
    y, used, n = w[:, :1] * a + w[:, -1:] * x, 1, 1
    for j in range(depth - 1, -1, -1):
        n = 1 if tree_select == "fading" else min(n, w.shape[1] - 1 - used)
        for i in range(n):
            y = y + w[:, used + i, None] * F.pad(details[j], (i * 2 ** (j + 1), 0))[..., : x.shape[-1]]
        used, n = used + n, 2 * (n - 1) + K
        if used >= w.shape[1] - 1:
            break
    return y


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize(("tree_select", "m"), TREES)
def test_filters_of_the_published_code_are_reversed(K, tree_select, m):
    x, h0, h1, w = make(2, 3, 50, K, m)
    y = multires_conv(x, h0.flip(-1), h1.flip(-1), w, levels=4, tree_select=tree_select)
    assert_close(y, published(x, h0[:, None], h1[:, None], w, 4, tree_select))


def test_uniform_memory_is_spent_on_the_coarsest_nodes_first():
    assert spend(4, 2, 5, "fading") == [1, 1, 1, 1]
    assert spend(4, 2, 16, "uniform") == [8, 4, 2, 1]  # with K = 2 the tree is binary: 1 + 1 + 2 + 4 + 8
    assert spend(4, 2, 100, "uniform") == [8, 4, 2, 1]
    assert spend(4, 2, 6, "uniform") == [0, 2, 2, 1]
    assert spend(3, 4, 30, "uniform") == [10, 4, 1]
    assert spend(3, 4, 1, "uniform") == [0, 0, 0]


@pytest.mark.parametrize(("tree_select", "m"), TREES)
@pytest.mark.parametrize("L", [1, 7, 40, 200])
def test_it_is_one_long_convolution(L, tree_select, m):
    x, h0, h1, w = make(2, 3, L, 3, m)
    tree = {"levels": 4, "tree_select": tree_select}
    kernel = multires_kernel(h0, h1, w, L, **tree)
    assert kernel.shape == (3, L)
    assert_close(multires_conv(x, h0, h1, w, **tree), fft_conv(x, kernel))


def test_the_kernel_is_differentiable():
    filters = [t.requires_grad_() for t in make(1, 2, 1, 2, 4)[1:]]
    assert torch.autograd.gradcheck(lambda *a: multires_kernel(*a, 9), filters)


# --- Derivatives and memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tree_select", "m"), [("fading", 4), ("uniform", 6)])
def test_first_and_second_derivatives(tree_select, m):
    inputs = [t.requires_grad_() for t in make(1, 1, 7, 2, m)]
    tree = {"levels": 3, "tree_select": tree_select}
    f = lambda *a: multires_conv(*a, **tree)  # noqa: E731
    packed = lambda *a: multires_conv(*a, **tree, cu_seqlens=torch.tensor([0, 2, 2, 7]))  # noqa: E731
    for function in (f, packed):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)
    for i in range(4):  # each alone: the others are not asked for
        alone = [t if i == j else t.detach() for j, t in enumerate(inputs)]
        assert torch.autograd.gradcheck(f, alone)

    def streaming(x, *filters):
        y, state = multires_conv(x[..., :4], *filters, **tree, return_state=True)
        z, state = multires_step(x[..., 4], state, *filters, **tree)
        z2, state = multires_step(x[..., 5] + z, state, *filters, **tree)
        return y, z, z2, *(state.window(i) for i in range(len(state.reaches)))

    assert torch.autograd.gradcheck(streaming, inputs)


def test_the_operator_saves_its_inputs_only():
    inputs = [t.requires_grad_() for t in make(1, 3, 40, 2, 7)]
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        multires_conv(*inputs)
    assert {t.data_ptr() for t in saved} == {t.data_ptr() for t in inputs}


def test_the_input_is_left_as_it_was():
    x, *filters = (t.requires_grad_() for t in make(2, 3, 40, 2, 7, torch.float32))
    before = x.detach().clone()
    multires_conv(x, *filters).sum().backward()
    assert torch.equal(x, before)


@pytest.mark.parametrize("tree_select", ["fading", "uniform"])
def test_a_nan_stays_in_its_row_channel_and_future(tree_select, small_blocks):
    x, *filters = make(2, 3, 40, 2, 6, torch.float32)
    x[1, 2, 20] = float("nan")
    y = multires_conv(x, *filters, levels=5, tree_select=tree_select)
    assert y[1, 2, 20:].isnan().all()
    y[1, 2, 20:] = 0
    assert not y.isnan().any()


# --- Streams ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tree_select", "m"), TREES)
@pytest.mark.parametrize("K", [1, 2, 4])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 47], [20, 3, 27], [50]], ids=str)
def test_chunks_and_steps_equal_the_whole(K, tree_select, m, sizes):
    x, *filters = make(2, 3, 50, K, m, torch.float32)
    tree = {"levels": 4, "tree_select": tree_select}
    expected = multires_conv_reference(x, *filters, **tree)
    state, outputs = None, []
    for chunk in x.split(sizes, dim=-1):
        y, state = multires_conv(chunk, *filters, **tree, state=state, return_state=True)
        outputs.append(y)
    assert_close(torch.cat(outputs, -1), expected)
    with torch.no_grad():  # in turns with a chunk
        after, outputs = multires_state(2, *filters[::2], **tree), []
        for t in range(50):
            if t == 10:
                y, after = multires_conv(x[..., 10:17], *filters, **tree, state=after, return_state=True)
                outputs.append(y)
            elif not 10 < t < 17:
                y, after = multires_step(x[..., t], after, *filters, **tree)
                outputs.append(y[..., None])
    assert_close(torch.cat(outputs, -1), expected)
    for i in range(len(state.reaches)):
        assert torch.allclose(after.window(i), state.window(i), atol=1e-4)


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("J", [1, 4])
def test_the_state_for_fading_memory_is_the_least_that_is_exact(K, J):
    _, h0, h1, w = make(1, 2, 1, K, J + 1)
    state = multires_state(1, h0, w)
    N = 1 + (K - 1) * (2**J - 1)
    assert sum(state.reaches) == N - 1
    # Fed with zeros, the outputs to come tell N-1 past samples apart if the last of N taps is not zero: a triangular
    # system. So a state cannot be smaller.
    kernel = multires_kernel(h0, h1, w, N + 5)
    last = h0[:, -1] ** (J - 1) * (w[:, 0] * h0[:, -1] + w[:, 1] * h1[:, -1])
    assert_close(kernel[:, N - 1], last)
    assert last.all()
    assert not kernel[:, N:].any()


def test_what_uniform_memory_keeps_besides():
    reaches, dilations = signals([8, 4, 2, 1], 2)
    assert reaches == [1, 2, 4, 8, 7 * 2, 3 * 4, 1 * 8]
    assert dilations == [1, 2, 4, 8, 2, 4, 8]


@torch.no_grad()
def test_states_can_be_reordered_repeated_and_branched():
    x, *filters = make(3, 2, 60, 2, 5)
    _, state = multires_conv(x[..., :40], *filters, return_state=True)
    rows = torch.tensor([2, 0, 2])
    picked = map_tensors(state, lambda t: t.index_select(0, rows))
    repeated = map_tensors(state, lambda t: t.repeat_interleave(2, 0))
    for other, start, future in (
        (picked, rows, x),
        (repeated, torch.arange(3).repeat_interleave(2), x),
        (state, None, x),
    ):
        start = torch.arange(3) if start is None else start
        outputs = []
        for t in range(40, 60):
            y, other = multires_step(future[start, :, t] + 1, other, *filters)
            outputs.append(y)
        changed = torch.cat([x[start, :, :40], x[start, :, 40:] + 1], -1)
        assert_close(torch.stack(outputs, -1), multires_conv_reference(changed, *filters, levels=4)[..., 40:])


@pytest.mark.parametrize(("tree_select", "m"), TREES)
def test_packed_sequences_are_as_if_alone(tree_select, m):
    x, *filters = make(1, 3, 60, 3, m)
    tree = {"levels": 4, "tree_select": tree_select}
    y = multires_conv(x, *filters, **tree, cu_seqlens=torch.tensor([0, 7, 7, 8, 60]))
    alone = [multires_conv(x[..., a:b], *filters, **tree) for a, b in ((0, 7), (7, 8), (8, 60))]
    assert_close(y, torch.cat(alone, -1))


# --- Transformations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[1, 1, 1], [0, 2, 1]], ids=str)
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(counts, last):
    x, *filters = (t.requires_grad_() for t in make(2, 3, 20, 2, 4, torch.float32))
    x = (x.detach().mT.contiguous().mT if last else x.detach()).requires_grad_()
    torch.library.opcheck(multires_conv_op, (x, *filters, counts))
    plain = [t.detach() for t in (torch.randn_like(x), x, *filters)]
    for needs in ([True, True], [False, True], [True, False]):
        torch.library.opcheck(multires_conv_backward_op, (*plain, counts, needs))


def test_vmap_and_functional_gradients():
    x, h0, h1, w = torch.randn(4, 2, 3, 20).double(), *(torch.randn(4, 3, n).double() for n in (2, 2, 5))
    args = (x, h0, h1, w)
    each = torch.stack([multires_conv(*a) for a in zip(*args, strict=True)])
    assert_close(torch.func.vmap(multires_conv)(*args), each)
    grads = torch.func.vmap(torch.func.grad(lambda *a: multires_conv(*a).sin().sum(), argnums=(0, 1, 2, 3)))(*args)
    inputs = [t[1].clone().requires_grad_() for t in args]
    for g, e in zip(grads, torch.autograd.grad(multires_conv(*inputs).sin().sum(), inputs), strict=True):
        assert_close(g[1], e)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_lowers_activations_and_leaves_filters(dtype):
    inputs = [t.requires_grad_() for t in make(2, 3, 40, 3, 5, torch.float32)]
    x, *filters = inputs
    expected = multires_conv_reference(x.to(dtype), *filters, levels=4)  # filters rounded to half precision would show
    with torch.autocast("cpu", dtype=dtype):
        y = multires_conv(x, *filters)
        streamed, state = multires_conv(x[..., :-1], *filters, return_state=True)
        y_t, _ = multires_step(x[..., -1], state, *filters)
        called = multires_conv_op(x, *filters, [1] * 4)
    assert y.dtype == streamed.dtype == y_t.dtype == called.dtype == dtype
    for out in (y, called, torch.cat([streamed, y_t[..., None]], -1)):
        assert (out - expected.to(dtype)).abs().max() <= 2 * torch.finfo(dtype).eps * expected.abs().max()
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.abs().sum() > 0 for t in inputs)


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_without_a_graph_break_for_any_length(packed):
    filters = [t.requires_grad_() for t in make(1, 3, 1, 2, 5, torch.float32)[1:]]

    def f(x, cu_seqlens=None):
        return multires_conv(x.mT, *filters, cu_seqlens=cu_seqlens)

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for L in (20, 33):
        args = (torch.randn(1, L, 3, requires_grad=True), *((torch.tensor([0, 3, 3, 10, L]),) if packed else ()))
        y, expected = compiled(*args), f(*args)
        grads, wanted = (torch.autograd.grad(out.sin().sum(), (args[0], *filters)) for out in (y, expected))
        for a, b in zip((y, *grads), (expected, *wanted), strict=True):
            assert_close(a, b)


# --- Errors -----------------------------------------------------------------------------------------------------------

x, h, w = torch.ones(2, 3, 4), torch.ones(3, 2), torch.ones(3, 5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: multires_conv(torch.ones(2, 3), h, h, w), "x must have shape"),
        (lambda: multires_conv(torch.ones(2, 3, 0), h, h, w), "x must have at least one time step"),
        (lambda: multires_conv(torch.ones(2, 0, 4), h[:0], h[:0], w[:0]), "x must have at least one channel"),
        (lambda: multires_conv(x, h[:2], h, w), "h0 must have shape .* D = 3"),
        (lambda: multires_conv(x, h, torch.ones(3, 3), w), "h1 must have the shape of h0"),
        (lambda: multires_conv(x, h, h, w[:, :1]), "w must have shape .* at least 2 columns"),
        (lambda: multires_conv(x, h, h, w, levels=2), r"w must have shape \(D, levels \+ 2\) = \(3, 4\)"),
        (lambda: multires_conv(x, h, h, w, levels=-1), "levels must be at least 0; got -1"),
        (lambda: multires_conv(x, h, h, w, tree_select="uniform"), "levels must be given for tree_select='uniform'"),
        (lambda: multires_conv(x, h, h, w, tree_select="all"), "tree_select must be one of"),
        (lambda: multires_conv(x, h, h.to("meta"), w), "h1 must be on the device of x"),
        (lambda: multires_conv(x, h, h, w, state=multires_state(2, h, w[:, :4])), "state must keep"),
        (lambda: multires_conv(x, h, h, w, state=multires_state(1, h, w)), "state must be of .* rows"),
        (lambda: multires_step(x[..., 0], multires_state(1, h, w), h, h, w), "state must be of .* rows"),
        (lambda: multires_conv(x[:1], h, h, w, cu_seqlens=torch.tensor([0, 4]), return_state=True), "return_state can"),
        (lambda: multires_conv(x[:1], h, h, w, cu_seqlens=torch.tensor([0, 3])), "cu_seqlens must end at"),
        (lambda: multires_kernel(h, h, w, 0), "L must be at least 1"),
        (lambda: multires_levels(0, 2), "L must be at least 1"),
        (lambda: multires_levels(5, 1), "K must be at least 2"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: multires_conv(x.long(), h, h, w), "x must be floating point"),
        (lambda: multires_conv(x, h, h, w.cfloat()), "w must be floating point"),
        (lambda: multires_conv(x, h, h, w, state=x), "state must be what multires_state"),
        (lambda: multires_step(x[..., 0], [DelayLines([x], [1])], h, h, w), "state must be what multires_state"),
    ],
)
def test_type_errors_name_the_argument(make, message):
    with pytest.raises(TypeError, match=message):
        make()
