"""The Triton steps of the recurrence on a GPU: values, streams, offsets, graphs; Hyena's `step_` in a CUDA graph."""

import pytest
import torch
from gpu_cases import DTYPES, at_each_place
from numerics import assert_close

from longconv.functional import hyena_step_, modal_step_, multi_hyena_step_
from longconv.kernels.recurrence import (
    hyena_step_reference,
    modal_scan_reference,
    mode_layout,
    multi_hyena_step_reference,
)
from longconv.kernels.recurrence.dispatch import unsuitable
from longconv.layers import GlobalConv, Hyena, MultiHyena

HYENA = ("u_t", "short_state", "short_weight", "short_bias", "poles", "residues", "passthrough", "skip", "state")
STATES = (torch.complex64, torch.complex128)


def make(place, B, D, N, K, dtype, state, packed=False):
    """Arguments of `hyena_step_`, with modes in a table, and as they are to be given."""
    poles = torch.polar(0.3 + 0.69 * torch.rand(D, N).double(), 6.3 * torch.rand(D, N).double())
    keep = torch.rand(D, N).argsort(-1) < torch.randint(0, N + 1, (D, 1)) if packed else torch.ones(D, N).bool()
    x = {
        "u_t": torch.randn(B, 3 * D).to(dtype),
        "short_state": torch.randn(B, 3 * D, K - 1).to(dtype),
        "short_weight": torch.randn(3 * D, K) / K**0.5,
        "short_bias": torch.randn(3 * D),
        "poles": poles,
        "residues": torch.where(keep, torch.randn(D, N, dtype=torch.complex128), 0),
        "passthrough": torch.randn(D).double(),
        "skip": torch.randn(D),
        "state": torch.where(keep, torch.randn(B, D, N, dtype=state), 0),
    }
    x = {name: t.to(place) for name, t in x.items()}
    layout = mode_layout(keep.to(place))
    given = x if layout is None else {**x, **{name: layout.pack(x[name]) for name in ("poles", "residues", "state")}}
    return x, {**{name: t.clone() for name, t in given.items()}, "layout": layout}


@at_each_place(
    [((2, 5, 7), 3, torch.float32, torch.complex128), ((3, 9, 4), 2, torch.float16, torch.complex64)],
    [
        (sizes, K, dtype, state)
        for sizes, K in (((1, 768, 16), 3), ((64, 768, 16), 4), ((7, 111, 33), 1), ((256, 64, 2), 7), ((1, 1, 64), 3))
        for dtype in DTYPES
        for state in STATES
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_steps_equal_the_definition(place, case, packed):
    (B, D, N), K, dtype, state = case
    table, x = make(place, B, D, N, K, dtype, state, packed)
    assert unsuitable(x["u_t"], x["state"]) is None
    layout = x["layout"]
    there = (table["residues"] != 0) if layout is not None else torch.ones_like(table["residues"]).bool()
    for _ in range(2):  # the second time from what the first one wrote
        y_ref, short_ref, state_ref = hyena_step_reference(*(table[name] for name in HYENA))
        y = hyena_step_(**x, impl="triton")
        assert_close(y, y_ref)
        assert torch.equal(x["short_state"], short_ref.to(dtype))
        after = x["state"] if layout is None else layout.unpack(x["state"])
        assert_close(after * there, state_ref * there, torch.float32, "state")
        table = {**table, "short_state": short_ref, "state": after}
    u, names = x["u_t"][:, D : 2 * D], ("poles", "residues", "passthrough", "state")
    y_ref, state_ref = modal_scan_reference(u[..., None], *(table[name] for name in names))
    assert_close(modal_step_(u, *(x[name] for name in names), layout, impl="triton"), y_ref[..., 0])
    after = x["state"] if layout is None else layout.unpack(x["state"])
    assert_close(after * there, state_ref * there, torch.float32, "state")


@at_each_place(
    [((2, 3, 4, 5), 3, torch.float32, torch.complex128), ((3, 2, 3, 4), 2, torch.bfloat16, torch.complex64)],
    [
        (sizes, K, dtype, state)
        for sizes, K in (((1, 96, 8, 16), 3), ((64, 32, 8, 16), 4), ((7, 5, 33, 9), 1), ((16, 768, 1, 2), 3))
        for dtype in DTYPES
        for state in STATES
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_heads_equal_the_definition(place, case, packed):
    (B, M, H, N), K, dtype, state = case
    modes, short = make(place, B * H * H, M, N, K, dtype, state, packed), make(place, B, M * H, 1, K, dtype, state)
    given = ("u_t", "short_state", "short_weight", "short_bias")
    table, x = ({**modes[i], **{name: short[i][name] for name in given}} for i in (0, 1))
    layout = x["layout"]
    there = (table["residues"] != 0) if layout is not None else torch.ones_like(table["residues"]).bool()
    for _ in range(2):
        y_ref, short_ref, state_ref = multi_hyena_step_reference(*(table[name] for name in HYENA))
        assert_close(multi_hyena_step_(**x, impl="triton"), y_ref)
        assert torch.equal(x["short_state"], short_ref.to(dtype))
        after = x["state"] if layout is None else layout.unpack(x["state"])
        assert_close(after * there, state_ref * there, torch.float32, "state")
        table = {**table, "short_state": short_ref, "state": after}


@at_each_place(
    [((2, 5, 7), torch.bfloat16, torch.complex64)],
    [(sizes, dtype, state) for sizes in ((1, 768, 16), (64, 257, 33)) for dtype in DTYPES for state in STATES],
)
@pytest.mark.parametrize("activation", [None, "gelu", "silu", "relu"])
def test_skip_bias_and_activation(place, case, activation):
    (B, D, N), dtype, state = case
    _, x = make(place, B, D, N, 1, dtype, state)
    u, names = x["u_t"][:, :D], ("poles", "residues", "passthrough", "state")
    y_ref, _ = modal_scan_reference(u[..., None], *(x[name] for name in names))
    y_ref = y_ref[..., 0] + x["skip"].double() * u.double() + x["short_bias"][:D].double()
    y_ref = y_ref if activation is None else getattr(torch.nn.functional, activation)(y_ref)
    around = {"skip": x["skip"], "bias": x["short_bias"][:D], "activation": activation}
    assert_close(modal_step_(u, *(x[name] for name in names), **around, impl="triton"), y_ref)


@pytest.mark.gpu
class TestOnGPU:
    def test_auto_is_triton_except_for_float64(self):
        _, x = make("cuda", 4, 64, 8, 3, torch.float32, torch.complex128)
        outputs = [
            hyena_step_(**{**x, **{name: x[name].clone() for name in ("short_state", "state")}}, impl=impl)
            for impl in ("auto", "triton", "torch")
        ]
        assert torch.equal(outputs[0], outputs[1])
        assert_close(outputs[0], outputs[2].double())
        wide = {name: t.double() if name in HYENA and not t.is_complex() else t for name, t in x.items()}
        y_ref, *_ = hyena_step_reference(*(wide[name] for name in HYENA))
        assert_close(hyena_step_(**wide), y_ref)

    def test_another_stream(self):
        _, x = make("cuda", 64, 768, 16, 3, torch.bfloat16, torch.complex64)
        copies = [{**x, **{name: x[name].clone() for name in ("short_state", "state")}} for _ in range(2)]
        expected = hyena_step_(**copies[0])
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            u = x["u_t"] + 0  # done only after the sleep: a launch on another stream would read too early
            y = hyena_step_(**{**copies[1], "u_t": u})
        stream.synchronize()
        assert torch.equal(y, expected)

    def test_a_state_of_more_than_2_to_the_31_numbers(self):
        if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
            pytest.skip("needs 40 GiB")
        B, D, N = 90_000, 768, 32  # 2.2e9 complex64
        state = torch.zeros(B, D, N, dtype=torch.complex64, device="cuda")
        poles = torch.full((D, N), 0.5 + 0.25j, dtype=torch.complex128, device="cuda")
        u = torch.randn(B, D, device="cuda")
        args = poles, torch.ones_like(poles), torch.zeros(D, device="cuda").double(), state
        assert not modal_step_(u, *args).any()
        assert_close(modal_step_(u, *args), N * u.double())
        assert_close(state[-1], (u[-1, :, None] * (1.5 + 0.25j)).expand(D, N).to(torch.complex128), torch.float32)

    def test_compiled_whole(self):
        _, x = make("cuda", 4, 64, 8, 3, torch.bfloat16, torch.complex128)
        layout = x.pop("layout")

        def f(x):
            return hyena_step_(**x, layout=layout).sin()

        copies = [{**x, **{name: x[name].clone() for name in ("short_state", "state")}} for _ in range(2)]
        assert_close(torch.compile(f, fullgraph=True)(copies[0]), f(copies[1]).double())
        assert torch.equal(copies[0]["state"], copies[1]["state"])

    @pytest.mark.parametrize("Layer", [Hyena, MultiHyena, GlobalConv])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_a_layer_in_a_cuda_graph(self, dtype, Layer):
        """The step is recorded once; replays give what the convolution does."""
        layer = Layer(64, filter={"name": "modal", "order": 8}).eval().cuda().to(dtype)
        with torch.no_grad():
            filter = layer.long_filters[0]
            filter.residue[: 3 * filter.channels // 4, 3:] = 0  # states without padding
            x = torch.randn(3, 40, 64, device="cuda", dtype=dtype)
            expected = layer(x)
            _, state = layer(x[:, :20], return_state=True)
            long = state.long[0] if isinstance(state.long, tuple) else state.long
            assert long.state.dim() == 2
            fixed, x_t = state.clone(), x[:, 20].clone()
            kept = fixed.clone()
            warm = torch.cuda.Stream()
            with torch.cuda.stream(warm):
                layer.step_(x_t, fixed)
            torch.cuda.synchronize()
            fixed.copy_(kept)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y_t = layer.step_(x_t, fixed)
            fixed.copy_(kept)
            for t in range(20, 40):
                x_t.copy_(x[:, t])
                graph.replay()
                y, state = layer.step(x[:, t], state)
                assert_close(y_t, y.double(), dtype)
                if dtype == torch.float32:
                    assert_close(y_t, expected[:, t].double())
