"""The modal recurrence against its step-by-step definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from longconv.kernels.recurrence import (
    modal_kernel,
    modal_kernel_reference,
    modal_scan,
    modal_scan_reference,
    modal_state,
    modal_step,
)
from longconv.kernels.recurrence.kernel import modal_kernel_op

LENGTHS = [1, 2, 3, 63, 64, 65, 127, 1000, 1021, 4096]
DTYPES = [torch.float32, torch.float64]


def modes(D, N, dtype=torch.float32, longest=0.999):
    """Random stable modes; where there is room, a zero pole, a real negative pole and a padding mode among them."""
    poles = torch.polar(
        0.5 + (longest - 0.5) * torch.rand(D, N, dtype=dtype), 2 * torch.pi * torch.rand(D, N, dtype=dtype)
    )
    residues = torch.randn(D, N, dtype=dtype.to_complex())
    if N >= 4:
        poles[0, 0] = 0.0
        poles[0, 1] = -0.9
        poles[-1, 2] = residues[-1, 2] = 0.0
    return poles, residues, torch.randn(D, dtype=dtype)


def inputs(B, D, L, N, dtype=torch.float32):
    return torch.randn(B, D, L, dtype=dtype), *modes(D, N, dtype), torch.randn(B, D, N, dtype=dtype.to_complex())


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernel_matches_reference(L, dtype):
    args = modes(3, 5, dtype)
    assert_close(modal_kernel(*args, L), modal_kernel_reference(*args, L), dtype)


def test_long_kernel_of_nearly_undamped_modes():
    # A relative error in log(lambda) is multiplied by t: this needs powers in more than single precision.
    poles = torch.polar(torch.tensor([[0.99999, 1 - 1e-6, 1 - 1e-7]]), torch.tensor([[0.1, 3.14, 2.0]]))
    args = poles, torch.randn(1, 3, dtype=torch.complex64), torch.randn(1)
    assert_close(modal_kernel(*args, 65536), modal_kernel_reference(*args, 65536))


@pytest.mark.parametrize("L", LENGTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scan_and_state_match_reference(L, dtype):
    u, poles, residues, passthrough, state = inputs(2, 3, L, 5, dtype)
    for x_0 in (None, state):
        y, x = modal_scan(u, poles, residues, passthrough, x_0)
        y_ref, x_ref = modal_scan_reference(u, poles, residues, passthrough, x_0)
        assert_close(y, y_ref, dtype)
        assert_close(torch.view_as_real(x), torch.view_as_real(x_ref), dtype, "final state")
        assert_close(torch.view_as_real(modal_state(u, poles, x_0)), torch.view_as_real(x_ref), dtype, "modal_state")


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(0, 3),
    D=st.integers(1, 3),
    L=st.integers(1, 300),
    N=st.integers(0, 9),
    cut=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_any_shape_and_any_split(B, D, L, N, cut, seed):
    torch.manual_seed(seed)
    u, *modal, state = inputs(B, D, L, N)
    y_ref, x_ref = modal_scan_reference(u, *modal, state)
    parts, x = [], state
    for piece in u.split([s for s in (int(cut * L), L - int(cut * L)) if s], dim=-1):
        y, x = modal_scan(piece, *modal, x)
        parts.append(y)
    assert_close(torch.cat(parts, -1), y_ref, torch.float32)
    assert_close(torch.view_as_real(x), torch.view_as_real(x_ref), torch.float32)


def test_many_blocks(monkeypatch):
    monkeypatch.setattr("longconv.kernels.recurrence.scan._BLOCK_ELEMENTS", 1 << 12)
    u, *modal, state = inputs(2, 3, 1021, 5)
    y_ref, x_ref = modal_scan_reference(u, *modal, state)
    y, x = modal_scan(u, *modal, state)
    assert_close(y, y_ref, torch.float32)
    assert_close(torch.view_as_real(x), torch.view_as_real(x_ref), torch.float32)
    assert_close(torch.view_as_real(modal_state(u, modal[0], state)), torch.view_as_real(x_ref), torch.float32)


def test_steps_equal_scan():
    u, *modal, state = inputs(2, 3, 200, 5)
    y_scan, x_scan = modal_scan(u, *modal, state)
    outputs, x = [], state
    for u_t in u.unbind(-1):
        y_t, x = modal_step(u_t, *modal, x)
        outputs.append(y_t)
    assert_close(torch.stack(outputs, -1), y_scan)
    assert_close(torch.view_as_real(x), torch.view_as_real(x_scan))


def test_scan_equals_convolution_with_kernel():
    u, *modal, _ = inputs(2, 3, 500, 5, torch.float64)
    kernel = modal_kernel(*modal, 500)
    y = torch.fft.irfft(torch.fft.rfft(u, 1000) * torch.fft.rfft(kernel, 1000), 1000)[..., :500]
    assert_close(modal_scan(u, *modal)[0], y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_input(dtype):
    u, *modal, _ = inputs(2, 3, 300, 5)
    u = u.to(dtype)
    y, x = modal_scan(u, *modal)
    assert y.dtype == dtype
    assert x.dtype == torch.complex64
    assert_close(y, modal_scan_reference(u, *modal)[0])
    y_t, x = modal_step(u[..., 0], *modal, x)
    assert (y_t.dtype, x.dtype) == (dtype, torch.complex64)


def test_autocast_keeps_full_precision():
    u, *modal, _ = inputs(2, 3, 300, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, kernel = modal_scan(u, *modal)[0], modal_kernel(*modal, 300)
    assert_close(y, modal_scan_reference(u, *modal)[0], torch.float32)
    assert_close(kernel, modal_kernel_reference(*modal, 300), torch.float32)


def test_strided_and_expanded_input():
    _, *modal, _ = inputs(2, 3, 1, 5)
    for u in (torch.randn(2, 130, 3).mT, torch.randn(2, 3, 260)[..., ::2], torch.randn(1, 3, 130).expand(2, -1, -1)):
        assert_close(modal_scan(u, *modal)[0], modal_scan_reference(u, *modal)[0], torch.float32)


@pytest.mark.parametrize("L", [1, 5, 21])
def test_gradcheck(L):
    u, poles, residues, passthrough, state = (t.requires_grad_() for t in inputs(2, 2, L, 4, torch.float64))
    assert torch.autograd.gradcheck(lambda *a: modal_kernel(*a, L), (poles, residues, passthrough))
    assert torch.autograd.gradcheck(modal_scan, (u, poles, residues, passthrough, state))
    assert torch.autograd.gradcheck(modal_state, (u, poles, state))
    if L == 1:
        assert torch.autograd.gradcheck(modal_step, (u[..., 0], poles, residues, passthrough, state))


def test_gradients_in_single_precision():
    args = [t.requires_grad_() for t in inputs(2, 3, 1021, 5)]
    y, x = modal_scan(*args)
    y_ref, x_ref = modal_scan_reference(*args)
    # A gradient of stride 0, as a mean or a sum gives it.
    actual = torch.autograd.grad(y.sum() + x.real.sum(), args)
    expected = torch.autograd.grad(y_ref.sum() + x_ref.real.sum(), args)
    for a, e in zip(actual, expected, strict=True):
        assert_close(*(torch.view_as_real(t) if t.is_complex() else t for t in (a, e)))


def test_all_padding_is_harmless():
    u, _, _, passthrough, _ = inputs(2, 3, 100, 4)
    poles, residues = (torch.zeros(3, 4, dtype=torch.complex64, requires_grad=True) for _ in range(2))
    y, x = modal_scan(u, poles, residues, passthrough)
    assert_close(y, passthrough[:, None] * u)
    assert_close(torch.view_as_real(x)[..., 0], u[..., -1:].expand(-1, -1, 4))
    (y.sum() + x.real.sum() + modal_kernel(poles, residues, passthrough, 100).sum()).backward()
    assert torch.view_as_real(poles.grad).isfinite().all()
    assert torch.view_as_real(residues.grad).isfinite().all()


class Largest(TorchDispatchMode):
    """Record the number of elements of the largest tensor any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.numel = max(self.numel, t.numel())
        return out


def test_memory_does_not_grow_with_length_times_order():
    B, D, L, N = 2, 8, 32768, 64  # B D L N = 33M
    u, *modal, _ = inputs(B, D, L, N)
    for function in (lambda: modal_scan(u, *modal), lambda: modal_state(u, modal[0]), lambda: modal_kernel(*modal, L)):
        with Largest() as largest:
            function()
        assert largest.numel <= 1 << 22


@pytest.mark.filterwarnings("ignore")
def test_compiles_without_a_break():
    args = inputs(2, 3, 130, 4)
    for function in (modal_scan, lambda u, p, r, h, x: (modal_state(u, p, x), modal_kernel(p, r, h, 50))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")(*args)
        for a, e in zip(compiled, function(*args), strict=True):
            assert torch.equal(a, e)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("N", [0, 1, 5])
def test_kernel_as_a_node_of_a_graph(N, dtype):
    for L in [1, 2, 3, 5, 64, 1021]:
        args = [t.requires_grad_() for t in modes(3, N, dtype)]
        dh = torch.randn(3, L, dtype=dtype)
        wide = [t.detach().to(torch.complex128 if t.is_complex() else torch.float64).requires_grad_() for t in args]
        h, expected = modal_kernel_op(*args, L), modal_kernel_reference(*wide, L)
        assert_close(h, expected, name=f"L = {L}")
        grads = torch.autograd.grad(h, args, dh)
        for grad, x, reference in zip(
            grads, args, torch.autograd.grad(expected, wide, dh.double(), materialize_grads=True), strict=True
        ):
            assert grad.dtype == x.dtype
            assert_close(grad, reference, dtype, name=f"gradient, L = {L}")
    torch.library.opcheck(modal_kernel_op, (*(t.requires_grad_() for t in modes(3, N, dtype)), 40))


@pytest.mark.filterwarnings("ignore")
def test_kernel_compiles_once_for_all_lengths():
    poles, residues, passthrough = (t.requires_grad_() for t in modes(3, 5))
    args = (poles, residues, passthrough)
    compiled = torch.compile(
        lambda length: modal_kernel(*args, length), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for length, stance in [(37, "default"), (2, "fail_on_recompile"), (1000, "fail_on_recompile")]:
        with torch.compiler.set_stance(stance):
            h = compiled(length)
        expected = modal_kernel(*args, length)
        assert_close(h, expected, torch.float32)
        for grad, reference in zip(
            torch.autograd.grad(h.square().sum(), args), torch.autograd.grad(expected.square().sum(), args), strict=True
        ):
            assert_close(grad, reference, torch.float32)


def test_errors_name_the_argument():
    u, poles, residues, passthrough, state = inputs(2, 3, 10, 4)
    cases = {
        "poles": (u, poles.real, residues, passthrough, state),
        "residues": (u, poles, residues[:, :3], passthrough, state),
        "passthrough": (u, poles, residues, passthrough[:2], state),
        "u": (u[:, :2], poles, residues, passthrough, state),
        "state": (u, poles, residues, passthrough, state[:1]),
    }
    for name, args in cases.items():
        with pytest.raises(ValueError, match=name):
            modal_scan(*args)
        if name != "poles":  # the step looks at shapes only
            with pytest.raises(ValueError, match=name):
                modal_step(args[0][..., 0], *args[1:])
    with pytest.raises(ValueError, match="u "):
        modal_state(u[..., :0], poles)
    with pytest.raises(ValueError, match="length"):
        modal_kernel(poles, residues, passthrough, 0)
