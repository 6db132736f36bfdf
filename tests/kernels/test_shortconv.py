"""`short_conv` against its definition in float64, its streaming forms, and its gradients."""

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close

from longconv.kernels.shortconv import short_conv, short_conv_step


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def oracle(u, weight, bias, activation=None):
    u, weight = u.double(), weight.double()
    y = torch.zeros_like(u) if bias is None else bias.double()[:, None].expand_as(u).clone()
    for s in range(min(weight.shape[1], u.shape[-1])):
        y[..., s:] += weight[:, s, None] * u[..., : u.shape[-1] - s]
    return F.silu(y) if activation == "silu" else y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("L", [1, 2, 3, 64, 65])
@pytest.mark.parametrize("K", [1, 2, 3, 4, 7])
def test_equals_definition(K, L, dtype):
    u, weight, bias = torch.randn(2, 5, L, dtype=dtype), torch.randn(5, K, dtype=dtype), torch.randn(5, dtype=dtype)
    y = short_conv(u, weight, bias, activation="silu")
    assert y.dtype == dtype
    assert_close(y, oracle(u, weight, bias, "silu"))
    assert_close(short_conv(u, weight), oracle(u, weight, None))


def test_float32_taps_on_half_inputs_are_not_rounded():
    u, weight = torch.randn(2, 5, 64, dtype=torch.bfloat16), torch.randn(5, 3)
    y = short_conv(u, weight)
    assert y.dtype == torch.bfloat16
    assert_close(y, oracle(u, weight, None))


def test_conv1d_taps_are_reversed():
    conv = torch.nn.Conv1d(5, 5, 3, padding=2, groups=5)
    u = torch.randn(2, 5, 20)
    assert_close(short_conv(u, conv.weight[:, 0].flip(-1), conv.bias), conv(u)[..., :20].double(), torch.float32)


def test_any_strides_and_an_empty_batch():
    u, weight = torch.randn(2, 20, 5), torch.randn(5, 3)
    assert_close(short_conv(u.mT, weight), oracle(u.mT, weight, None))
    expanded = torch.randn(1, 5, 1).expand(2, 5, 20)
    assert_close(short_conv(expanded, weight), oracle(expanded, weight, None))
    assert short_conv(torch.randn(0, 5, 20), weight).shape == (0, 5, 20)


@pytest.mark.parametrize("K", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 8], [2, 3, 7], [12]], ids=str)
def test_chunks_and_steps_equal_the_whole(K, sizes):
    u, weight, bias = torch.randn(2, 5, 12), torch.randn(5, K), torch.randn(5)
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


@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradients(activation):
    u, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(2, 3, 5), (3, 3), (3,)])
    state = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda u, w, b, s: short_conv(u, w, b, activation=activation, state=s, return_state=True),
        (u, weight, bias, state),
    )
    assert torch.autograd.gradcheck(
        lambda u, s, w, b: short_conv_step(u, s, w, b, activation),
        (u[..., 0].detach().requires_grad_(), state, weight, bias),
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: short_conv(torch.ones(2, 3), torch.ones(3, 3)), "u must be"),
        (lambda: short_conv(torch.ones(2, 3, 4), torch.ones(4, 3)), "weight must be"),
        (lambda: short_conv(torch.ones(2, 3, 4), torch.ones(3, 3), activation="relu"), "activation must be"),
        (lambda: short_conv(torch.ones(2, 3, 4), torch.ones(3, 3), state=torch.ones(2, 3, 3)), "state must be"),
        (lambda: short_conv_step(torch.ones(2, 3, 1), torch.ones(2, 3, 2), torch.ones(3, 3)), "u_t must be"),
        (lambda: short_conv_step(torch.ones(2, 3), torch.ones(1, 3, 2), torch.ones(3, 3)), "state must be"),
    ],
)
def test_errors_name_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_state_does_not_hold_on_to_the_chunk():
    _, state = short_conv(torch.randn(2, 3, 1000), torch.randn(3, 4), return_state=True)
    assert state.untyped_storage().nbytes() == state.numel() * state.element_size()
