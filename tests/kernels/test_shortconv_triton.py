"""`short_conv` in Triton: against its definition in the interpreter, compiled for every target, and on a GPU if any."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import assert_close

from longconv.kernels import gpu
from longconv.kernels.gpu import TARGETS, case_of, compile_all, table
from longconv.kernels.shortconv import short_conv, short_conv_reference, short_conv_step
from longconv.kernels.shortconv.fused_op import gated_short_conv_op, unsuitable

pytest.importorskip("triton")
from longconv.kernels.shortconv import triton_launch

NAMES = ("u", "weight", "bias", "pre_gate", "post_gate")
# Bytes of a thread that may go through local memory. The compiler moves a few of its own accord, in some kernels with
# both gates, to keep one more block on a processor; what does not fit takes hundreds.
SPILL_BUDGET = 32


@pytest.fixture
def device():
    if torch.cuda.is_available():
        return "cuda"
    if not gpu.interpreting():
        pytest.skip("needs a GPU, or TRITON_INTERPRET=1")
    return "cpu"


def make(B, D, L, K, dtype=torch.float32, last=False, gates="both", bias=True, device="cpu", outputs=None):
    """Inputs with an output of order one; `last`: channels beside each other."""

    def rows(length):
        x = torch.randn(B, length, D).mT if last else torch.randn(B, D, length)
        return x.to(device, dtype)

    return {
        "u": rows(L),
        "weight": (torch.randn(D, K) / K**0.5).to(device),
        "bias": torch.randn(D).to(device) if bias else None,
        "pre_gate": rows(L) if gates in ("pre", "both") else None,
        "post_gate": rows(outputs or L) if gates in ("post", "both") else None,
    }


def definition(u, weight, bias=None, pre_gate=None, post_gate=None, **options):
    """The float64 reference, with gates."""
    v = u.double() if pre_gate is None else u.double() * pre_gate.double()
    y = short_conv_reference(v, weight, bias, **options)
    return y if post_gate is None else y * post_gate.double()


def check(inputs, dy=None, f=None, expected=None, **options):
    """Compare output and gradients of the Triton implementation with the definition."""
    f = f or (lambda **x: short_conv(x.pop("u"), x.pop("weight"), impl="triton", **x, **options))
    expected = expected or (lambda **x: definition(**x, **options))
    given = {name: x.detach().requires_grad_() for name, x in inputs.items() if x is not None}
    wide = {name: x.detach().double().requires_grad_() for name, x in given.items()}
    y, wanted = f(**given), expected(**wide)
    u = inputs["u"]
    assert y.dtype == u.dtype
    assert y.is_contiguous()
    assert_close(y, wanted)
    dy = torch.randn(y.shape).to(y) if dy is None else dy
    grads = torch.autograd.grad(y, list(given.values()), dy)
    wanted = torch.autograd.grad(wanted, list(wide.values()), dy.double())
    for (name, x), grad, gradient in zip(given.items(), grads, wanted, strict=True):
        assert grad.dtype == x.dtype
        assert grad.shape == x.shape
        assert_close(grad, gradient, name=f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("K", [1, 2, 3, 4, 5, 9])
def test_values_and_gradients_equal_the_definition(K, dtype, device):
    options = itertools.cycle(itertools.product(["causal", "same"], [None, "silu"]))
    for (L, last, gates), (padding, activation) in zip(
        [(1, False, "both"), (2, True, "pre"), (63, False, None), (64, True, "both"), (131, True, "post")],
        options, strict=False,
    ):  # fmt: skip
        inputs = make(2, 5, L, K, dtype, last, gates, bias=L != 63, device=device)
        check(inputs, padding=padding, activation=activation)


@pytest.mark.parametrize(("K", "padding"), [(33, "same"), (128, "causal")])
def test_many_taps(K, padding, device):
    check(make(1, 2, 100, K, torch.float16, K == 33, device=device), padding=padding, activation="silu")


@pytest.mark.parametrize("K", [3, 6])
def test_many_tiles(K, device, monkeypatch):
    """Several tiles of channels and samples, several programs with several tiles each."""
    monkeypatch.setattr(triton_launch, "PROGRAMS", 12)
    for last in (False, True):
        check(make(2, 35, 140, K, last=last, device=device), activation="silu")
        check(make(1, 2, 1021, K, last=last, gates=None, device=device), padding="same")


@pytest.mark.parametrize("K", [3, 7])
def test_any_strides(K, device):
    x = make(2, 4, 60, K, device=device)
    check({**x, "u": x["u"][:1, :, :1].expand(2, 4, 60)})
    check({**x, "u": torch.randn(4, 60, 2, device=device).permute(2, 0, 1)}, activation="silu")
    check({name: None if t is None else t[..., 1::3] if t.ndim == 3 else t for name, t in x.items()})
    check({**x, "weight": x["weight"].mT.contiguous().mT, "bias": x["bias"][:1].expand(4)})
    check({**x, "pre_gate": torch.randn(2, 60, 4, device=device).mT}, padding="same")
    check(x, dy=torch.ones((), device=device).expand(2, 4, 60))  # from sum()
    check(x, dy=torch.randn(2, 60, 4, device=device).mT, activation="silu")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("K", [3, 6])
def test_gradients_lie_as_what_they_belong_to(K, last, device):
    """A linear layer's backward pass reads them as (B, L, D): another layout would be copied there."""
    projected = make(2, 12, 40, K, last=last, gates=None, device=device)
    u = projected["u"][:, 4:8].detach().requires_grad_()  # as `chunk` leaves it
    gate = torch.randn(2, 40, 4, device=device).mT.requires_grad_()
    y = short_conv(u, projected["weight"][4:8], pre_gate=gate, impl="triton")
    du, dgate = torch.autograd.grad(y.sum(), [u, gate])
    assert (du.stride(1) == 1) == last
    assert dgate.stride(1) == 1


@settings(max_examples=10, deadline=None)
@given(
    B=st.integers(0, 2), D=st.integers(1, 5), L=st.integers(1, 70), K=st.integers(1, 20),
    padding=st.sampled_from(["causal", "same"]), activation=st.sampled_from([None, "silu"]), bias=st.booleans(),
    gates=st.sampled_from([None, "pre", "post", "both"]), last=st.booleans(),
    cuts=st.none() | st.lists(st.integers(0, 70), max_size=6), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_any_shape_and_option(B, D, L, K, padding, activation, bias, gates, last, cuts, seed):
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cu_seqlens = None if cuts is None else torch.tensor([0, *sorted(min(c, L) for c in cuts), L], device=device)
    inputs = make(B if cuts is None else 1, D, L, K, torch.float32, last, gates, bias, device)
    check(inputs, padding=padding, activation=activation, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("K", [1, 3, 34])
@pytest.mark.parametrize("cuts", [[20], [0, 0, 1, 2, 3, 19, 40, 40]], ids=str)
def test_packed_sequences_are_as_if_alone(K, cuts, device):
    cu_seqlens = torch.tensor([0, *cuts, 40], device=device)
    check(make(1, 3, 40, K, device=device), padding="same", activation="silu", cu_seqlens=cu_seqlens.int())
    check(make(1, 3, 40, K, torch.float16, True, device=device), cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("K", [3, 8])
def test_a_nan_stays_in_its_channel_reach_and_sequence(K, device):
    inputs = make(1, 3, 40, K, gates=None, device=device)
    for value in (None, torch.tensor([0, 10, 20, 40], device=device)):
        u = inputs["u"].clone()
        u[0, 1, 18] = float("nan")
        u.requires_grad_()
        weight = inputs["weight"].clone().requires_grad_()
        y = short_conv(u, weight, activation="silu", cu_seqlens=value, impl="triton")
        reached = torch.zeros(1, 3, 40, dtype=torch.bool, device=device)
        reached[0, 1, 18 : 18 + K if value is None else 20] = True
        assert torch.equal(y.isnan(), reached)
        du, dweight = torch.autograd.grad(y, [u, weight], torch.ones_like(y))
        near = torch.zeros(1, 3, 40, dtype=torch.bool, device=device)
        near[0, 1, max(0 if value is None else 10, 18 - K + 1) : 18 + K if value is None else 20] = True
        assert not (du.isnan() & ~near).any()
        assert torch.equal(dweight.isnan().any(1).cpu(), torch.tensor([False, True, False]))


@pytest.mark.parametrize("K", [1, 4, 7])
def test_chunks_and_steps_equal_the_whole(K, device):
    x = make(2, 5, 12, K, device=device)
    whole, last = short_conv(x["u"], x["weight"], x["bias"], pre_gate=x["pre_gate"], post_gate=x["post_gate"],
                             activation="silu", return_state=True, impl="triton")  # fmt: skip
    state, outputs = None, []
    for u, pre, post in zip(*(x[name].split([1, 2, 9], -1) for name in ("u", "pre_gate", "post_gate")), strict=True):
        y, state = short_conv(u, x["weight"], x["bias"], pre_gate=pre, post_gate=post, activation="silu", state=state,
                              return_state=True, impl="triton")  # fmt: skip
        outputs.append(y)
    assert_close(torch.cat(outputs, -1), whole)
    assert torch.equal(state, last)
    state = torch.zeros(2, 5, K - 1, device=device)
    for t in range(12):
        y, state = short_conv_step(x["u"][..., t] * x["pre_gate"][..., t], state, x["weight"], x["bias"], "silu")
        assert_close(y * x["post_gate"][..., t], whole[..., t])


@pytest.mark.parametrize("K", [2, 4, 9])
@pytest.mark.parametrize("more", [(-1, 3), (0, 0), (4, -2)], ids=str)
def test_zeros_before_and_behind_and_cut_ends(K, more, device):
    """The operator's own options, wider than the public ones: outputs longer and shorter than inputs."""
    left, right = K - 1 + more[0], more[1]
    T = 30 + left + right - K + 1
    x = make(2, 3, 30, K, outputs=T, device=device)

    def expected(u, weight, bias, pre_gate, post_gate):
        v = F.pad(u * pre_gate, (left, right))
        return F.silu(F.conv1d(v, weight.flip(-1)[:, None], bias, groups=3)) * post_gate

    check(
        x,
        f=lambda **y: gated_short_conv_op(**y, cu_seqlens=None, left=left, right=right, silu=True, impl="triton"),
        expected=expected,
    )


@pytest.mark.parametrize("wanted", NAMES)
def test_only_what_is_wanted_is_computed(wanted, device, monkeypatch):
    launched = []
    start = triton_launch._start
    monkeypatch.setattr(
        triton_launch, "_start", lambda kernel, *a: launched.append(kernel.fn.__name__) or start(kernel, *a)
    )
    for K in (3, 6):
        x = make(2, 3, 40, K, device=device)
        wide = {name: t.double().requires_grad_() for name, t in x.items()}
        (expected,) = torch.autograd.grad(definition(**wide).sum(), [wide[wanted]])
        x[wanted].requires_grad_()
        y = short_conv(**x, impl="triton")
        launched.clear()
        assert_close(*torch.autograd.grad(y.sum(), [x[wanted]]), expected)
        assert ("tap_gradient_kernel" in launched) == (K > 4 and wanted in ("weight", "bias"))
        assert ("input_gradient_kernel" in launched) == (K > 4 and wanted in ("u", "pre_gate"))


@pytest.mark.parametrize("K", [3, 6])
def test_the_gradient_of_taps_is_the_same_in_every_run(K, device):
    x = make(2, 4, 300, K, gates=None, device=device)
    grads = []
    for _ in range(2):
        weight = x["weight"].clone().requires_grad_()
        short_conv(x["u"], weight, activation="silu", impl="triton").sin().sum().backward()
        grads.append(weight.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("K", [3, 6])
@pytest.mark.parametrize("packed", [False, True])
def test_second_derivatives(K, packed, device):
    x = make(1, 2, 12, K, device=device)
    cu_seqlens = torch.tensor([0, 5, 12], device=device) if packed else None

    def second(f, inputs):
        y = f(**inputs, activation="silu", cu_seqlens=cu_seqlens)
        first = torch.autograd.grad(y.sin().sum(), list(inputs.values()), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), list(inputs.values()))

    given = {name: t.clone().requires_grad_() for name, t in x.items()}
    wide = {name: t.double().requires_grad_() for name, t in x.items()}
    for g, e in zip(second(lambda **y: short_conv(**y, impl="triton"), given), second(definition, wide), strict=True):
        assert_close(g, e)


def test_the_operator_saves_its_inputs_only(device):
    inputs = {name: x.requires_grad_() for name, x in make(2, 3, 40, 5, torch.float16, device=device).items()}
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        short_conv(**inputs, activation="silu", impl="triton")
    assert {x.data_ptr() for x in saved} == {x.data_ptr() for x in inputs.values()}


@pytest.mark.parametrize("K", [3, 6])
@pytest.mark.parametrize("last", [False, True])
def test_opcheck(K, last, device):
    x = {name: t.requires_grad_() for name, t in make(2, 3, 20, K, last=last, device=device).items()}
    torch.library.opcheck(gated_short_conv_op, (*x.values(), None, K - 1, 0, True, "triton"))
    packed = (torch.tensor([0, 5, 20], device=device), K - 1 - K // 2, K // 2, False, "triton")
    torch.library.opcheck(
        gated_short_conv_op, (*(t[:1].detach().requires_grad_() if t.ndim == 3 else t for t in x.values()), *packed)
    )


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_without_a_graph_break_for_any_length(packed, device):
    weight, bias = (x.requires_grad_() for x in (torch.randn(3, 3, device=device), torch.randn(3, device=device)))

    def f(u, gate, cu_seqlens):
        y = short_conv(u.tanh(), weight, bias, post_gate=gate, activation="silu", cu_seqlens=cu_seqlens, impl="triton")
        return short_conv(y, weight, padding="same", impl="triton")

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for L in (20, 33):
        u, gate = (torch.randn(1, 3, L, device=device, requires_grad=True) for _ in range(2))
        args = (u, gate, torch.tensor([0, 3, 3, 10, L], device=device) if packed else None)
        y, expected = compiled(*args), f(*args)
        assert_close(y, expected)
        inputs = (u, gate, weight, bias)
        grads, wanted = (torch.autograd.grad(out.sin().sum(), inputs) for out in (y, expected))
        for a, b in zip(grads, wanted, strict=True):
            assert_close(a, b)


def test_autocast_lowers_activations_and_leaves_taps(device):
    x = {name: t.requires_grad_() for name, t in make(2, 3, 40, 3, device=device).items()}
    lowered = {name: t.detach().half() if t.ndim == 3 else t for name, t in x.items()}
    with torch.autocast(device, dtype=torch.float16):
        y, state = short_conv(**x, return_state=True, impl="triton")
    assert y.dtype == state.dtype == torch.float16
    assert_close(y, definition(**lowered))
    y.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 and t.grad.any() for t in x.values())


@pytest.mark.parametrize("impl", ["torch", "auto"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_gates_without_triton(impl, dtype):
    for K, packed in itertools.product((3, 9), (False, True)):
        x = make(1, 3, 40, K, dtype)
        x["weight"] = x["weight"].to(torch.promote_types(dtype, torch.float32))
        x["bias"] = x["bias"].to(x["weight"])
        options = {"activation": "silu", "cu_seqlens": torch.tensor([0, 7, 40]) if packed else None}
        check(
            x,
            f=lambda o=options, **y: short_conv(**y, **o, impl=impl),
            expected=lambda o=options, **y: definition(**y, **o),
        )
    x = {name: t.double() for name, t in make(2, 2, 6, 3).items()}
    assert torch.autograd.gradcheck(lambda *a: short_conv(a[0], a[1], a[2], pre_gate=a[3], post_gate=a[4], impl=impl),
                                    [t.requires_grad_() for t in x.values()])  # fmt: skip


def test_what_triton_cannot_do_is_said_and_auto_does_it_otherwise(device, monkeypatch):
    x = make(2, 3, 300, 3, device=device)
    u, weight = x["u"], x["weight"]
    long = torch.randn(3, 129, device=device)
    for bad, taps, message in (
        (u.double(), weight, "float64"),
        (u, weight.double(), "float64"),
        (u, long, "up to 128 taps, not 129"),
    ):
        with pytest.raises(ValueError, match=f"impl='triton' is not possible here: .*{message}"):
            short_conv(bad, taps, impl="triton")
        assert_close(short_conv(bad, taps), short_conv_reference(bad, taps))
    with pytest.raises(ValueError, match=r"not possible here.*torch\.func"):
        torch.func.grad(lambda u: short_conv(u, weight, impl="triton").sum())(u)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(ValueError, match="forward mode"):
        short_conv(torch.autograd.forward_ad.make_dual(u, u), weight, impl="triton")
    monkeypatch.setattr("longconv.kernels.shortconv.fused_op.MAX_LENGTH", 100)
    assert "rows of up to 100 samples, not 300" in unsuitable("triton", u, weight, None, None, None)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        short_conv(u.cpu(), weight.cpu(), impl="triton")


def test_errors_name_the_argument():
    u, weight = torch.ones(2, 3, 4), torch.ones(3, 3)
    with pytest.raises(ValueError, match="impl must be one of auto, native, torch, triton; got 'cuda'"):
        short_conv(u, weight, impl="cuda")
    for name in ("pre_gate", "post_gate"):
        with pytest.raises(ValueError, match=rf"{name} must have the shape of u, \(2, 3, 4\); got \(2, 3, 1\)"):
            short_conv(u, weight, **{name: u[..., :1]})
        with pytest.raises(ValueError, match=f"{name} must be on the device of u"):
            short_conv(u, weight, **{name: u.to("meta")})
        with pytest.raises(TypeError, match=f"{name} must be floating point"):
            short_conv(u, weight, **{name: u.long()})


# --- Compiled for GPUs that are not there -----------------------------------------------------------------------------


def launches(monkeypatch, dtype, last, K, silu=True, gates="both", shape=(1, 768, 2048), cu_seqlens=None):
    """What forward and backward launch, with every candidate configuration."""
    cases = []

    def every_candidate(kernel, length, traits, candidates, device, run):
        for config in candidates[1:]:
            run(config)
        return candidates[0]

    def record(kernel, programs, arguments, config):
        given = {name: arguments[name] for name in kernel.arg_names if name in arguments}
        tile = f"{config.constants['BD']}x{config.constants['BL']}"
        layout = "channels" if last else "samples"
        name = kernel.fn.__name__.removesuffix("_kernel")
        cases.append(case_of(kernel, given, config, f"{name} K={K} {str(dtype)[6:]} {layout} {tile}"))

    monkeypatch.setattr(triton_launch, "choose", every_candidate)
    monkeypatch.setattr(triton_launch, "_start", record)
    x = list(make(*shape, K, dtype, last, gates).values())
    triton_launch.forward(*x, cu_seqlens, K - 1, 0, silu)
    triton_launch.backward(torch.empty(shape, dtype=dtype), *x, cu_seqlens, K - 1, 0, silu, [True] * 5)
    return cases


def assert_fits(reports):
    print("\n" + table(reports))
    for report in reports:
        assert report.fits, table([report])
        assert report.spill_bytes <= SPILL_BUDGET, table([report])
    assert sum(r.spill_bytes > 0 for r in reports) <= len(reports) // 20


@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors on a GPU are launched, not recorded")
def test_every_configuration_fits_every_target(monkeypatch):
    """With everything that a call can ask for; both layouts, a kernel of few taps and one of many."""
    cases = launches(monkeypatch, torch.bfloat16, True, 4) + launches(monkeypatch, torch.float32, False, 16)
    reports = compile_all(cases)
    assert len(reports) == len(cases) * len(TARGETS)
    assert_fits(reports)


@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors on a GPU are launched, not recorded")
def test_sizes_of_one_and_packed_rows_compile(monkeypatch):
    """A size of one is a constant of the program; odd sizes leave nothing aligned."""
    cases = []
    for K in (1, 3, 5):
        cases += launches(monkeypatch, torch.float16, False, K, shape=(1, 1, 1))
        cases += launches(monkeypatch, torch.float16, True, K, shape=(1, 3, 37), cu_seqlens=torch.tensor([0, 5, 37]))
    assert_fits(compile_all(cases, [TARGETS["sm_90"]]))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tensors on a GPU are launched, not recorded")
def test_every_configuration_of_every_dtype_fits_every_target(monkeypatch):
    dtypes, cases = (torch.float32, torch.float16, torch.bfloat16), []
    for dtype, last, K in itertools.product(dtypes, (False, True), (4, 16)):
        cases += launches(monkeypatch, dtype, last, K)
    assert_fits(compile_all(cases))


# --- On a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
class TestOnGPU:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("K", [1, 3, 4, 7, 16, 128])
    def test_auto_is_triton_and_equals_the_definition(self, K, dtype):
        for L, last in ((1, True), (1021, False), (2048, True), (20_011, False)):
            x = make(3, 111, L, K, dtype, last, device="cuda")
            assert unsuitable("triton", **x) is None
            check(x, f=lambda **y: short_conv(**y, activation="silu"), activation="silu")
            check(make(2, 64, L, K, dtype, last, gates=None, device="cuda"), padding="same")

    def test_packed_rows(self):
        cu_seqlens = torch.tensor([0, 1, 1, 700, 1500, 3001], device="cuda")
        for K in (3, 9):
            check(make(1, 100, 3001, K, torch.bfloat16, True, device="cuda"), activation="silu", cu_seqlens=cu_seqlens)

    @pytest.mark.parametrize("last", [False, True])
    @pytest.mark.parametrize("K", [3, 6])
    def test_more_than_2_to_the_31_elements(self, K, last):
        B, D, L = 3, 768, 1_000_003  # 2.3e9 elements
        rows = torch.randn(B, L, D, device="cuda", dtype=torch.bfloat16)
        u = (rows.mT if last else rows.view(B, D, L)).requires_grad_()
        weight = (torch.randn(D, K, device="cuda") / K**0.5).requires_grad_()
        y = short_conv(u, weight)
        d = torch.tensor([0, 1, 400, D - 1], device="cuda")
        dy = torch.zeros_like(y)
        dy[-1, d] = 1
        du, dweight = torch.autograd.grad(y, [u, weight], dy)
        few, taps = u[-1:, d].detach().double().requires_grad_(), weight[d].detach().double().requires_grad_()
        expected = short_conv_reference(few, taps)
        wanted = torch.autograd.grad(expected.sum(), [few, taps])
        assert_close(y[-1:, d], expected)
        assert_close(du[-1:, d], wanted[0])
        assert_close(dweight[d], wanted[1])

    def test_another_stream(self):
        x = make(4, 256, 4096, 3, torch.bfloat16, True, device="cuda")
        expected = short_conv(**x, activation="silu")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)
            u = x["u"] + 0  # done only after the sleep: a launch on another stream would read too early
            y = short_conv(**{**x, "u": u}, activation="silu")
        stream.synchronize()
        assert torch.equal(y, expected)

    @pytest.mark.parametrize("packed", [False, True])
    def test_compiled_whole(self, packed):
        weight, bias = torch.randn(64, 3, device="cuda", requires_grad=True), torch.randn(64, device="cuda")
        cu_seqlens = torch.tensor([0, 100, 1000], device="cuda") if packed else None

        def f(u, gate):
            return short_conv(u.tanh(), weight, bias, post_gate=gate, activation="silu", cu_seqlens=cu_seqlens) * 2

        u, gate = (torch.randn(1, 1000, 64, device="cuda").mT.requires_grad_() for _ in range(2))
        y, expected = torch.compile(f, fullgraph=True)(u, gate), f(u, gate)
        assert_close(y, expected)
        grads, wanted = (torch.autograd.grad(out.sin().sum(), [u, gate, weight]) for out in (y, expected))
        for a, b in zip(grads, wanted, strict=True):
            assert_close(a, b)

    def test_fallbacks(self):
        x = make(2, 3, 100, 5, torch.float64, device="cuda")
        check(x, f=short_conv)
        u, weight = torch.randn(2, 3, 400, device="cuda"), torch.randn(3, 200, device="cuda")
        assert_close(short_conv(u, weight), short_conv_reference(u, weight))
        grad = torch.func.grad(lambda u: short_conv(u, weight[:, :4]).square().sum())(u)
        (expected,) = torch.autograd.grad(short_conv(u.requires_grad_(), weight[:, :4]).square().sum(), [u])
        assert_close(grad, expected)
