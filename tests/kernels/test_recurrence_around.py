"""Steps of the recurrence with what other layers than Hyena have around it, in PyTorch and in Triton's interpreter,
against the definition: skip, bias and activation; and MultiHyena's heads.
"""

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close
from recurrence_cases import HYENA, impls, lengths, make, modes, ragged

from longconv.kernels.recurrence import (
    modal_scan_reference,
    modal_step_,
    multi_hyena_step_,
    multi_hyena_step_reference,
)
from longconv.kernels.recurrence.op import modal_step_op, multi_hyena_step_op, spread

ACTIVATIONS = {None: lambda x: x, "gelu": F.gelu, "silu": F.silu, "relu": F.relu}


def heads(B, M, H, N, K, dtype=torch.float32, state=torch.complex128):
    """Arguments of `multi_hyena_step_` by name."""
    x = make(B, M * H, N, K, dtype)
    poles, residues, passthrough = modes(M, N)
    own = {"poles": poles, "residues": residues, "passthrough": passthrough, "skip": x["skip"][:M]}
    return {**x, **own, "state": torch.randn(B * H * H, M, N, dtype=state)}


def check_heads(x, impl, table=None):
    """Outputs and states of a step; `table`: the same arguments with modes in a table."""
    table = table or x
    y_ref, short_ref, state_ref = multi_hyena_step_reference(*(table[name] for name in HYENA))
    x = {name: t.clone() if name in ("short_state", "state") else t for name, t in x.items()}
    y = multi_hyena_step_(**x, impl=impl)
    state, dtype = x["state"], x["u_t"].dtype
    assert y.dtype == dtype
    assert_close(y, y_ref)
    assert torch.equal(x["short_state"], short_ref.to(dtype))
    if table is not x and (layout := x.get("layout")) is not None:
        there = table["residues"] != 0
        state, state_ref = layout.unpack(state) * there, state_ref * there
    assert_close(state, state_ref, torch.float64 if dtype == torch.float64 else torch.float32, "state")


@impls
@pytest.mark.parametrize("state", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_heads_equal_the_definition(dtype, state, impl):
    for (B, M, H, N), K in zip([(1, 1, 1, 1), (2, 3, 4, 5), (9, 2, 3, 17), (1, 5, 8, 2)], (3, 1, 2, 7), strict=True):
        check_heads(heads(B, M, H, N, K, dtype, state), impl)


def test_heads_in_double_precision():
    check_heads(heads(3, 2, 3, 6, 4, torch.float64), "torch")


@impls
@pytest.mark.parametrize("state", [torch.complex64, torch.complex128], ids=str)
def test_heads_with_packed_modes(state, impl):
    keep = lengths(6, 9, low=0)
    keep[0] = False
    table, x = ragged(heads(3, 6, 3, 9, 3, state=state), keep)
    assert x["state"].dim() == 2
    check_heads(x, impl, table)


@impls
def test_heads_one_after_the_other(impl):
    """What a step leaves is what the next one takes."""
    x = heads(2, 3, 2, 5, 3)
    short, state = x["short_state"].clone(), x["state"].clone()
    for _ in range(6):
        x["u_t"] = torch.randn_like(x["u_t"])
        y_ref, short, state = multi_hyena_step_reference(
            *({**x, "short_state": short, "state": state}[name] for name in HYENA)
        )
        assert_close(multi_hyena_step_(**x, impl=impl), y_ref)


@impls
def test_heads_of_one_channel_are_hyena(impl):
    from longconv.kernels.recurrence import hyena_step_

    x = heads(3, 7, 1, 4, 3)
    other = {**x, "short_state": x["short_state"].clone(), "state": x["state"].clone()}
    assert_close(multi_hyena_step_(**x, impl=impl), hyena_step_(**other, impl=impl).double())
    assert_close(x["state"], other["state"], torch.float32)


@impls
def test_heads_with_nothing_there_and_strides(impl):
    check_heads(heads(0, 2, 3, 4, 3), impl)
    check_heads(heads(2, 2, 3, 0, 3), impl)
    x = heads(3, 2, 2, 5, 4)
    wide = {
        "u_t": torch.randn(3, 24)[:, ::2],
        "short_state": torch.randn(3, 3, 12).mT,
        "short_weight": torch.randn(4, 12).mT.flip(-1),
        "short_bias": torch.randn(24)[::2],
        "skip": torch.randn(1).expand(2),
        "passthrough": torch.randn(4).double()[::2],
    }
    for name, t in wide.items():
        check_heads({**x, name: t}, impl)


def test_heads_errors_name_the_argument():
    x = heads(2, 3, 2, 5, 3)
    bad = {
        "u_t": (x["u_t"][:, :17], r"u_t must be \(B, 3D\) and skip \(M,\), D a multiple of M, got \(2, 17\)"),
        "skip": (x["skip"][:, None], r"skip \(M,\)"),
        "short_state": (x["short_state"][..., :1], r"short_state must have shape .* = \(2, 18, 2\)"),
        "short_weight": (x["short_weight"][:7], "short_weight must have shape"),
        "short_bias": (x["short_bias"].long(), "short_bias must be floating point"),
        "residues": (x["residues"][:2], "residues must be a complex tensor"),
        "state": (x["state"][:1], r"state must be a complex tensor \(8, 3, 5\)"),
    }
    for name, (value, message) in bad.items():
        with pytest.raises(ValueError, match=message):
            multi_hyena_step_(**{**x, name: value})
    with pytest.raises(ValueError, match="skip is on meta"):
        multi_hyena_step_(**{**x, "skip": x["skip"].to("meta")})
    with pytest.raises(ValueError, match="impl must be one of"):
        multi_hyena_step_(**x, impl="cuda")


@impls
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_skip_bias_and_activation(dtype, activation, impl):
    B, D, N = 3, 6, 9
    x = make(B, D, N, 1, dtype)
    table, packed = ragged(x, lengths(D, N))
    u, vector = x["u_t"][:, :D], torch.randn(D)
    names = ("poles", "residues", "passthrough", "state")
    for skip, bias in ((x["skip"], vector), (None, vector), (x["skip"], None)):
        y_ref, _ = modal_scan_reference(u[..., None], *(table[name] for name in names))
        y_ref = y_ref[..., 0] + (0 if skip is None else skip.double() * u.double())
        y_ref = ACTIVATIONS[activation](y_ref + (0 if bias is None else bias.double()))
        for layout, given in ((None, table), (packed.get("layout"), packed)):
            state = given["state"].clone()
            args = u, *(given[name] for name in names[:3]), state, layout
            y = modal_step_(*args, skip=skip, bias=bias, activation=activation, impl=impl)
            assert y.dtype == dtype
            assert_close(y, y_ref)


@impls
def test_nan_is_not_hidden_by_an_activation(impl):
    x = make(2, 3, 2, 1)
    u = x["u_t"][:, :3].clone()
    u[1, 2] = torch.nan
    for activation in ACTIVATIONS:
        args = x["poles"], x["residues"], x["passthrough"], x["state"].clone()
        y = modal_step_(u, *args, activation=activation, impl=impl)
        assert torch.equal(y.isnan().nonzero(), torch.tensor([[1, 2]]))


def test_vectors_errors_name_the_argument():
    x = make(2, 4, 5, 1)
    args = x["u_t"][:, :4], x["poles"], x["residues"], x["passthrough"], x["state"]
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got \(3,\)"):
        modal_step_(*args, bias=torch.randn(3))
    with pytest.raises(ValueError, match="skip must be floating point"):
        modal_step_(*args, skip=torch.ones(4).long())
    with pytest.raises(ValueError, match="skip is on meta"):
        modal_step_(*args, skip=torch.ones(4, device="meta"))
    with pytest.raises(ValueError, match="activation must be None or one of gelu, silu, relu, got 'tanh'"):
        modal_step_(*args, activation="tanh")


@pytest.mark.parametrize("packed", [False, True])
@impls
def test_opcheck_and_graphs(packed, impl):
    x = heads(2, 4, 2, 5, 3)
    if packed:
        _, x = ragged(x, lengths(4, 5) & (torch.arange(5) < 3))
    layout = x.pop("layout", None)
    given = [x[name] for name in HYENA]
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(multi_hyena_step_op, (*given, *spread(layout), impl), test_utils=tests)
    modal = x["u_t"][:1, :4].repeat(8, 1), *(x[name] for name in ("poles", "residues", "passthrough", "state"))
    around = x["skip"], x["skip"], "gelu"
    torch.library.opcheck(modal_step_op, (*modal, *spread(layout), *around, impl), test_utils=tests)

    def two(u_t, short_state, state):
        y = multi_hyena_step_(u_t, short_state, *given[2:8], state, layout, impl=impl)
        w = y[:, :4].repeat(4, 1)
        return modal_step_(w, *modal[1:4], state, layout, skip=x["skip"], activation="silu", impl=impl) + 1

    compiled = torch.compile(two, fullgraph=True, backend="aot_eager")
    results = []
    for f in (two, compiled):
        u_t, short_state, state = (x[name].clone() for name in ("u_t", "short_state", "state"))
        results.append((f(u_t, short_state, state), short_state, state))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
