"""ModalFilter: stable for every parameter value, exact to and from modes, and one function in all its forms."""

import pytest
import torch
from numerics import assert_close

from longconv.filters.modal import ModalFilter
from longconv.kernels.recurrence import modal_kernel_reference, modal_scan_reference


def test_kernel_matches_definition():
    module = ModalFilter(3, 8)
    assert_close(
        module(1000), modal_kernel_reference(module.poles, module.residues, module.passthrough, 1000), torch.float32
    )
    assert module(1000).dtype == torch.float32
    assert module.double()(5).dtype == torch.float64


def test_scan_steps_and_final_state_agree():
    module = ModalFilter(3, 8)
    u = torch.randn(2, 3, 150)
    y_ref, x_ref = modal_scan_reference(u, *module.prepare_step())
    y, x = module.scan(u)
    assert_close(y, y_ref, torch.float32)
    assert_close(torch.view_as_real(module.final_state(u)), torch.view_as_real(x_ref), torch.float32)
    first, state = module.scan(u[..., :60])
    second, state = module.scan(u[..., 60:], state)
    assert_close(torch.cat([first, second], -1), y_ref, torch.float32)
    modes, outputs, state = module.prepare_step(), [], module.init_state(2)
    for u_t in u.unbind(-1):
        y_t, state = module.step(u_t, state, modes)
        outputs.append(y_t)
    assert_close(torch.stack(outputs, -1), y_ref, torch.float32)
    assert_close(torch.view_as_real(state), torch.view_as_real(x), torch.float32)
    assert torch.equal(module.step(u[..., 0], state)[0], module.step(u[..., 0], state, modes)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("log_decay", [-1000.0, -20.0, 0.0, 1000.0])
def test_poles_are_inside_the_unit_circle_whatever_the_parameters(dtype, log_decay):
    module = ModalFilter(2, 5000, dtype=dtype)
    with torch.no_grad():
        module.log_decay.fill_(log_decay)
        module.frequency.uniform_(-50, 50)
        module.log_dt.copy_(torch.tensor([-30.0, 5.0]))
    assert (module.poles.abs() < 1).all()
    # As rounded to the parameters' precision; the modulus itself is not, to 1.
    assert (module.poles.to(dtype.to_complex()).cdouble().abs() < 1).all()
    assert module(100).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_from_modes_reproduces_the_modes(dtype):
    poles = torch.polar(torch.rand(4, 6, dtype=dtype), 2 * torch.pi * torch.rand(4, 6, dtype=dtype))
    poles[0] = torch.tensor([0.0, -0.9, 0.9, 0.99999, -0.99999, 1j * 0.5])
    residues, passthrough = torch.randn(4, 6, dtype=dtype.to_complex()), torch.randn(4, dtype=dtype)
    module = ModalFilter.from_modes(poles, residues, passthrough)
    assert (module.poles - poles).abs().max() <= 4 * torch.finfo(dtype).eps
    assert module.poles[0, 0] == 0
    assert module.poles[0, :3].imag.abs().max() < 1e-15
    assert torch.equal(module.residues, residues.cdouble())
    assert torch.equal(module.passthrough, passthrough)
    assert all(p.dtype == dtype for p in module.parameters())
    assert all(p._optim == {"lr": 1e-3, "weight_decay": 0.0} for p in module.parameters())
    assert_close(module(50), modal_kernel_reference(poles, residues, passthrough, 50), torch.float32)


def test_from_modes_moves_unstable_poles_onto_the_circle():
    poles = torch.polar(torch.tensor([[1.0, 1.5]]), torch.tensor([[0.3, 2.0]]))
    module = ModalFilter.from_modes(poles, torch.ones_like(poles), torch.zeros(1))
    assert (module.poles.cdouble().abs() < 1).all()
    assert_close(module.poles.angle(), poles.angle(), torch.float32)


def test_from_modes_errors():
    poles, passthrough = torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2)
    for name, args in {
        "poles": (poles.real, poles, passthrough),
        "residues": (poles, poles[:, :2], passthrough),
        "passthrough": (poles, poles, passthrough[:1]),
        "residues must be finite": (poles, poles / 0, passthrough),
    }.items():
        with pytest.raises(ValueError, match=name):
            ModalFilter.from_modes(*args)


def test_residues_that_cancel_cost_no_accuracy_in_a_stream():
    """Taps of 1e-3 as differences of modes of 100: what fits of some filters come to."""
    poles = torch.polar(torch.tensor([[0.99, 0.98999, 0.97]]), torch.tensor([[0.1, 0.1, 0.3]]))
    module = ModalFilter.from_modes(poles, torch.tensor([[100.0, -100.0, 1e-3]]).cfloat(), torch.zeros(1))
    u = torch.randn(1, 1, 400)
    taps = modal_kernel_reference(*module.prepare_step(), 400)
    assert_close(module(400), taps, torch.float32)
    expected = torch.stack([(taps[:, : t + 1].flip(-1) * u[0, :, : t + 1]).sum(-1) for t in range(400)], -1)[None]
    modes, outputs, state = module.prepare_step(), [], module.init_state(1)
    for u_t in u.unbind(-1):
        y_t, state = module.step(u_t, state, modes)
        outputs.append(y_t)
    assert_close(torch.stack(outputs, -1), expected, torch.float32)
    assert_close(module.scan(u)[0], expected, torch.float32)


def test_gradients():
    module = ModalFilter(2, 3, dtype=torch.float64)
    names, values = zip(*module.named_parameters(), strict=True)

    def kernel(*parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (9,))

    assert torch.autograd.gradcheck(kernel, values)
    padded = ModalFilter.from_modes(
        torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2)
    )
    padded(9).sum().backward()
    assert all(p.grad.isfinite().all() for p in padded.parameters())


def test_learns_a_damped_oscillation():
    t = torch.arange(200.0)
    target = (torch.exp(-t / 50) * torch.cos(0.1 * t))[None]
    module = ModalFilter(1, 8)
    optimiser = torch.optim.Adam(module.parameters(), lr=2e-2)
    losses = []
    for _ in range(300):
        loss = (module(200) - target).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * target.square().mean()


def test_meta_construction_state_dict_and_marks():
    with torch.device("meta"):
        module = ModalFilter(3, 4, lr=5e-4)
    module.to_empty(device="cpu")
    module.reset_parameters()
    assert module(10).isfinite().all()
    assert not dict(module.named_buffers())
    assert all(p._optim == {"lr": 5e-4, "weight_decay": 0.0} for p in module.parameters())
    other = ModalFilter(3, 4)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(10), module(10))


def test_sizes_half_precision_and_repr():
    module = ModalFilter(3, 4).bfloat16()
    assert module.state_size == 8
    assert module.init_state(2).shape == (2, 3, 4)
    assert module.init_state(2).dtype == torch.complex128
    assert module(10).dtype == torch.float32
    assert "order=4" in repr(module)
    with pytest.raises(ValueError, match="dt_min"):
        ModalFilter(3, 4, dt_min=0.1, dt_max=0.01)
    with pytest.raises(ValueError, match="order"):
        ModalFilter(3, -1)
