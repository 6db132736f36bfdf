"""Steps of the recurrence in place, alone and fused with a Hyena layer's surroundings, in PyTorch and in Triton's
interpreter, against the definition; with modes in a table and packed.
"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close, relative_l2
from recurrence_cases import HYENA, impls, lengths, make, ragged

from longconv.kernels import gpu
from longconv.kernels.recurrence import (
    hyena_step_,
    hyena_step_reference,
    modal_scan,
    modal_scan_reference,
    modal_step,
    modal_step_,
    mode_layout,
)
from longconv.kernels.recurrence.dispatch import unsuitable
from longconv.kernels.recurrence.layout import MAX_PADDING
from longconv.kernels.recurrence.op import hyena_step_op, modal_step_op, spread


def check_hyena(x, impl, table=None, **options):
    """Outputs and states of a step; `table`: the same arguments with modes in a table."""
    table = table or x
    y_ref, short_ref, state_ref = hyena_step_reference(*(table[name] for name in HYENA))
    x = {name: t.clone() if name in ("short_state", "state") else t for name, t in x.items()}
    y = hyena_step_(**x, impl=impl, **options)
    state, dtype = x["state"], x["u_t"].dtype
    assert y.dtype == dtype
    assert_close(y, y_ref)
    assert torch.equal(x["short_state"], short_ref.to(dtype))
    if table is not x and (layout := x.get("layout")) is not None:
        there = table["residues"] != 0
        state, state_ref = layout.unpack(state) * there, state_ref * there
    # The input of the recurrence is a product of sums of the inputs, in float32.
    assert_close(state, state_ref, torch.float64 if dtype == torch.float64 else torch.float32, "state")


def check_modal(x, impl, table=None):
    D = len(x["passthrough"])
    names = ("poles", "residues", "passthrough", "state")
    u, table = x["u_t"][:, :D], table or x
    y_ref, state_ref = modal_scan_reference(u[..., None], *(table[name] for name in names))
    state = x["state"].clone()
    y = modal_step_(u, *(x[name] for name in names[:3]), state, x.get("layout"), impl=impl)
    assert y.dtype == u.dtype
    assert_close(y, y_ref[..., 0])
    if (layout := x.get("layout")) is not None:
        there = table["residues"] != 0
        state, state_ref = layout.unpack(state) * there, state_ref * there
    assert_close(state, state_ref, state.dtype.to_real(), "state")


SIZES = [(1, 1, 1), (2, 5, 3), (3, 9, 17), (9, 4, 40), (1, 17, 2)]


@impls
@pytest.mark.parametrize("state", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_the_definition(dtype, state, impl):
    taps = itertools.cycle([3, 1, 2, 7])
    for (B, D, N), K in zip(SIZES, taps, strict=False):
        x = make(B, D, N, K, dtype, state)
        check_modal(x, impl)
        check_hyena(x, impl)


@impls
def test_all_in_single_precision(impl):
    x = make(3, 5, 6, 3, torch.float32, torch.complex64, torch.complex64)
    check_modal(x, impl)
    check_hyena(x, impl)


def test_all_in_double_precision():
    for K in (1, 4):
        x = make(3, 5, 6, K, torch.float64)
        check_modal(x, "torch")
        check_hyena(x, "torch")


@impls
@pytest.mark.parametrize("empty", ["B", "N"])
def test_nothing_there(empty, impl):
    x = make(0 if empty == "B" else 2, 4, 0 if empty == "N" else 3, 3)
    check_modal(x, impl)
    check_hyena(x, impl)


@impls
def test_steps_equal_the_sequence(impl):
    x = make(2, 3, 5, 3)
    inputs, D = torch.randn(2, 3, 12), 3
    y_ref, state_ref = modal_scan_reference(inputs, x["poles"], x["residues"], x["passthrough"], x["state"])
    parts = (x["poles"], x["residues"], x["passthrough"])
    y = torch.stack([modal_step_(u_t, *parts, x["state"], impl=impl) for u_t in inputs.unbind(-1)], -1)
    assert_close(y, y_ref)
    assert_close(x["state"], state_ref, torch.float64)
    rows, out = torch.randn(2, 3 * D, 9), []
    wanted, short, state = [], x["short_state"].clone(), x["state"].clone()
    for u_t in rows.unbind(-1):
        out.append(hyena_step_(**{**x, "u_t": u_t}, impl=impl))
        y_t, short, state = hyena_step_reference(**{**x, "u_t": u_t, "short_state": short, "state": state})
        wanted.append(y_t)
    assert_close(torch.stack(out), torch.stack(wanted))


@impls
@pytest.mark.parametrize("state", [torch.complex64, torch.complex128], ids=str)
def test_packed_modes(state, impl):
    for (B, D, N), K, dtype in zip(
        [(1, 6, 4), (3, 11, 17), (5, 8, 40)], (1, 3, 6), (torch.float32, torch.float16, torch.float32), strict=True
    ):
        keep = lengths(D, N, low=0)
        keep[0] = False
        table, x = ragged(make(B, D, N, K, dtype, state), keep)
        check_modal(x, impl, table)
        check_hyena(x, impl, table)


@settings(max_examples=100, deadline=None)
@given(D=st.integers(1, 30), N=st.integers(1, 20), low=st.integers(0, 20), seed=st.integers(0, 2**20))
def test_layouts(D, N, low, seed):
    torch.manual_seed(seed)
    keep = lengths(D, N, min(low, N))
    layout, used = mode_layout(keep), int(keep.sum())
    if layout is None:
        assert D * N - used <= MAX_PADDING * D * N
        return
    assert used <= layout.size <= used / (1 - MAX_PADDING)
    assert torch.equal(layout.order[layout.place], torch.arange(D))
    table = torch.randn(2, D, N) * keep
    packed = layout.pack(table)
    assert packed.shape == (2, layout.size)
    assert torch.equal(layout.unpack(packed), table)
    for d in range(D):
        start, count = int(layout.starts[d]), int(layout.counts[d])
        assert torch.equal(packed[:, start : start + count], table[:, d, keep[d]])
    assert torch.equal(torch.cat([which for which, _ in layout.split(packed)]), layout.order)
    for which, part in layout.split(packed):
        assert_close(part.sum(-1), table.sum(-1)[:, which].double(), torch.float32)


def test_as_few_groups_as_the_padding_allows():
    """Brute force over all ways to cut the sorted numbers of modes into groups."""
    for seed in range(5):
        torch.manual_seed(seed)
        keep = lengths(12, 9)
        layout = mode_layout(keep)
        counts, total = keep.sum(-1).sort().values, int(keep.sum())
        if layout is None:
            continue

        def padded(cuts, counts=counts):
            ends = [*cuts, 12]
            return sum(
                (end - start) * int(counts[end - 1]) for start, end in zip([0, *cuts], ends, strict=True) if end > start
            )

        fewest = next(
            n
            for n in range(1, 13)
            if min(padded(cuts) for cuts in itertools.combinations(range(1, 12), n - 1)) * (1 - MAX_PADDING) <= total
        )
        least = min(padded(cuts) for cuts in itertools.combinations(range(1, 12), fewest - 1))
        assert (len(layout.groups), layout.size) == (fewest, least)


@impls
def test_strides(impl):
    x = make(3, 4, 5, 4)
    wide = {
        "u_t": torch.randn(3, 24)[:, ::2],
        "short_state": torch.randn(3, 3, 12).mT,
        "short_weight": torch.randn(4, 12).mT.flip(-1),
        "short_bias": torch.randn(24)[::2],
        "skip": torch.randn(1).expand(4),
        "passthrough": torch.randn(8).double()[::2],
    }
    for name, t in wide.items():
        check_hyena({**x, name: t}, impl)
    whole = torch.randn(3, 9, 5, dtype=torch.complex128)
    part, rest = whole[:, 2:6], whole[:, [0, 1, 6, 7, 8]].clone()
    y = modal_step_(x["u_t"][:, :4], x["poles"], x["residues"], x["passthrough"], part, impl=impl)
    assert y.isfinite().all()
    assert torch.equal(whole[:, [0, 1, 6, 7, 8]], rest)


def test_a_state_in_pieces_is_left_to_pytorch():
    x = make(2, 4, 5, 3)
    x["state"] = torch.randn(2, 5, 4, dtype=torch.complex128).mT
    check_modal(x, "auto")
    if gpu.interpreting():
        assert unsuitable(x["u_t"], x["state"]) == "it takes a state whose rows are contiguous"
        with pytest.raises(ValueError, match=r"impl='triton' is not possible here: .*contiguous"):
            check_modal(x, "triton")


def test_many_rows_are_taken_in_blocks(monkeypatch):
    monkeypatch.setattr("longconv.kernels.recurrence.step._BLOCK_MODES", 50)
    x = make(7, 4, 5, 3, state=torch.complex64)
    check_modal(x, "torch")
    check_hyena(x, "torch")
    table, packed = ragged(x, lengths(4, 5))
    check_modal(packed, "torch", table)


def test_conjugate_residues_and_the_value_form():
    x = make(3, 4, 5, 3, state=torch.complex64)
    u, state = x["u_t"][:, :4], x["state"]
    lazy = x["residues"].conj().resolve_conj().conj()
    assert lazy.is_conj()
    y, after = modal_step(u, x["poles"], lazy, x["passthrough"], state)
    assert after.dtype == torch.complex64
    assert_close(modal_step_(u, x["poles"], lazy, x["passthrough"], state), y.double())
    assert_close(state, after.to(torch.complex128), torch.float32)


@impls
def test_nothing_is_recorded_and_autocast_changes_nothing(impl):
    x = make(2, 4, 5, 3)
    x["short_weight"].requires_grad_()
    x["poles"].requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        check_hyena(x, impl)
        assert not hyena_step_(**x, impl=impl).requires_grad
    assert not x["state"].requires_grad


@pytest.mark.parametrize("packed", [False, True])
@impls
def test_opcheck_and_graphs(packed, impl):
    x = make(2, 4, 5, 3)
    if packed:
        _, x = ragged(x, lengths(4, 5))
    layout = x.pop("layout", None)
    hyena = [x[name] for name in HYENA]
    modal = [x["u_t"][:, :4], *(x[name] for name in ("poles", "residues", "passthrough", "state"))]
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(hyena_step_op, (*hyena, *spread(layout), impl), test_utils=tests)
    torch.library.opcheck(modal_step_op, (*modal, *spread(layout), None, None, None, impl), test_utils=tests)

    def two(u_t, short_state, state):
        y = hyena_step_(u_t, short_state, *hyena[2:8], state, layout, impl=impl)
        return modal_step_(y, *modal[1:4], state, layout, impl=impl) + 1

    compiled = torch.compile(two, fullgraph=True, backend="aot_eager")
    results = []
    for f in (two, compiled):
        u_t, short_state, state = (x[name].clone() for name in ("u_t", "short_state", "state"))
        results.append((f(u_t, short_state, state), short_state, state))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_errors_name_the_argument():
    x = make(2, 4, 5, 3)
    bad = {
        "u_t": (x["u_t"][:, :11], r"u_t must have shape \(B, 3D\) with 3D = 12, got \(2, 11\)"),
        "short_state": (x["short_state"][..., :1], r"short_state must have shape .* = \(2, 12, 2\)"),
        "short_weight": (x["short_weight"][:7], "short_weight must have shape"),
        "short_bias": (x["short_bias"][:7], "short_bias must have shape"),
        "skip": (x["skip"][:, None], "skip must have shape"),
        "poles": (x["poles"].real, "poles must be a complex tensor"),
        "residues": (x["residues"][:3], "residues must be a complex tensor"),
        "passthrough": (x["passthrough"][:3], "passthrough must be a real tensor"),
        "state": (x["state"][:1], r"state must be a complex tensor \(2, 4, 5\)"),
    }
    for name, (value, message) in bad.items():
        with pytest.raises(ValueError, match=message):
            hyena_step_(**{**x, name: value})
    for name in ("short_state", "skip", "residues", "state"):
        with pytest.raises(ValueError, match=f"{name} is on meta"):
            hyena_step_(**{**x, name: x[name].to("meta")})
    with pytest.raises(ValueError, match="u_t must be floating point"):
        hyena_step_(**{**x, "u_t": x["u_t"].long()})
    with pytest.raises(ValueError, match="u_t must be a real tensor"):
        modal_step_(x["u_t"][:, :4].long(), x["poles"], x["residues"], x["passthrough"], x["state"])
    with pytest.raises(ValueError, match="impl must be one of auto, torch, triton, got 'cuda'"):
        hyena_step_(**x, impl="cuda")
    _, packed = ragged(x, lengths(4, 5) & (torch.arange(5) < 3))
    for name in ("poles", "residues", "passthrough", "state"):
        with pytest.raises(ValueError, match=f"{name} must be"):
            hyena_step_(**{**packed, name: packed[name][..., :3]})
    with pytest.raises(ValueError, match="u_t must be a real tensor"):
        modal_step_(packed["u_t"], *(packed[n] for n in ("poles", "residues", "passthrough", "state", "layout")))
    if gpu.interpreting():
        with pytest.raises(ValueError, match=r"not possible here: it takes .* not torch.float64"):
            hyena_step_(**make(2, 4, 5, 3, torch.float64), impl="triton")
        with pytest.raises(ValueError, match="up to 128 taps, not 200"):
            hyena_step_(**make(2, 4, 5, 200), impl="triton")


def test_what_a_state_in_less_precision_costs():
    """The reason for complex128 by default, and what complex64 can be trusted with (the table in step.py).

    One mode that lasts a million steps; and modes of 100 whose difference is of order one.
    """
    radius = torch.tensor([[1 - 1e-6, 0, 0], [0.99, 0.98999, 0.97]]).double()
    poles = torch.polar(radius, torch.tensor([[0.3, 0, 0], [0.1, 0.1, 0.3]]).double())
    residues = torch.tensor([[1.0, 0, 0], [100.0, -100.0, 1.0]]).cdouble()
    u, h = torch.randn(1, 2, 8192).double(), torch.zeros(2).double()
    expected = modal_scan(u, poles, residues, h)[0][0]

    def errors(state, arithmetic):
        x = torch.zeros(1, 2, 3, dtype=state)
        args = poles.to(arithmetic), residues.to(arithmetic), h.to(arithmetic.to_real()), x
        y = torch.stack([modal_step_(u_t, *args)[0] for u_t in u.unbind(-1)], -1)
        return [relative_l2(*rows) for rows in zip(y, expected, strict=True)]

    assert max(errors(torch.complex128, torch.complex128)) < 1e-12
    slow, cancelling = errors(torch.complex64, torch.complex128)
    assert slow < 1e-5 < cancelling
    assert min(errors(torch.complex64, torch.complex64)) > 1e-5
