"""What every filter of the table promises, whatever it computes."""

import copy
import math

import pytest
import torch
from numerics import assert_close

from longconv.filters import FILTERS, Filter, build_filter
from longconv.functional import fft_conv
from longconv.training import parameter_groups

D, M = 6, 150

#: Every filter in every form that differs in more than numbers.
CASES = {
    "dcls": {"kernel_count": 5, "dilated_kernel_size": 40},
    "dcls-nearest": {"kernel_count": 5, "dilated_kernel_size": 200, "version": "nearest"},
    "dcls-linear": {"kernel_count": 5, "dilated_kernel_size": 41, "version": "linear"},
    "dcls-triangle": {"kernel_count": 5, "dilated_kernel_size": 40, "version": "triangle"},
    "ema": {},
    "freeform": {},
    "freeform-all": {"squash": 0.001, "smooth": 5, "modulate": True, "init": "double_exp"},
    "hyena": {},
    "hyena-normalized": {"normalized": True, "modulation_lr": 1e-3, "emb_dim": 5},
    "modal": {"order": 5},
    "rtf": {"order": 8, "init": "montel"},
    "rtf-constrained": {"order": 8, "init": "xavier", "constraint": "l1_montel", "num_a": 2},
    "rtf-published": {"order": 8, "init": "montel", "trunc_len": M},
    "s4d": {"state_size": 8},
    "s4d-real": {"state_size": 8, "real": True, "disc": "bilinear"},
    "s4d-legs": {"state_size": 8, "init": "legs"},
    "sgconv": {"kernel_dim": 16, "decay_max": 4.0},
    "sgconv-sum": {"kernel_dim": 16, "combine": "sum", "kernel_init": "cos", "interpolation": "nearest"},
    "sgconv-learnable": {"kernel_dim": 16, "decay": "learnable", "init_scale": 1},
    "sgconv-fixed": {"kernel_dim": 16, "decay": "fixed", "num_scales": 2},
    "smpconv": {"points": 7, "radius": 0.2},
}
RECURRENT = [case for case in CASES if case.split("-")[0] in ("ema", "modal", "rtf", "s4d")]


def make(case: str, channels: int = D) -> Filter:
    f = build_filter({"name": case.split("-")[0], **CASES[case]}, channels, M)
    if case.startswith("dcls"):  # its positions start in the middle, and leave most taps zero
        with torch.no_grad():
            f.P.uniform_(-f.dilated_kernel_size / 2, f.dilated_kernel_size / 2)
    return f


def test_every_filter_is_tested():
    assert {case.split("-")[0] for case in CASES} == set(FILTERS)


@pytest.mark.parametrize("case", CASES)
def test_shape_dtype_and_limits(case):
    f = make(case)
    assert isinstance(f, Filter)
    assert f.channels == D
    assert f.max_length in (None, M)
    for L in (1, 2, M):
        h = f(L)
        assert h.shape == (D, L)
        assert h.dtype == torch.float32
        assert h.is_contiguous()
        assert h.isfinite().all()
    with pytest.raises(ValueError, match=r"must be.* 1"):
        f(0)
    if f.max_length is not None:
        with pytest.raises(ValueError, match=f"max_length = {M}"):
            f(M + 1)
    if f.support is not None and f.max_length is None:
        assert not f(f.support + 9)[:, f.support :].any()
        f.double()
        assert f(f.support)[:, -12:].any()
    assert "channels=6" in repr(f)


@pytest.mark.parametrize("case", CASES)
def test_a_shorter_kernel_is_the_beginning_of_a_longer_one(case):
    f = make(case).double()
    first = f(7)  # before the whole: the first call must not settle anything by its length
    h = f(M)
    assert_close(first, h[:, :7])
    for L in (1, 2, 16, 17, 64, 129, M - 1):
        assert_close(f(L), h[:, :L])
    g = copy.deepcopy(f).float()
    assert_close(g(M), h.float())


@pytest.mark.parametrize("case", CASES)
def test_gradcheck(case):
    f = make(case, 2).double()
    f(M)
    with torch.no_grad():
        for p in f.parameters():  # off the kinks at which some filters start
            p.add_(0.01 * torch.randn_like(p))
    names, values = zip(*((n, p) for n, p in f.named_parameters() if p.requires_grad), strict=True)

    def kernel(*values):
        return torch.func.functional_call(f, dict(zip(names, values, strict=True)), (13,))

    assert torch.autograd.gradcheck(kernel, tuple(v.detach().requires_grad_() for v in values), fast_mode=True)
    f(M).square().sum().backward()
    positions = {"dcls-nearest": {"P"}}.get(case, set())
    for name in set(names) - positions:
        assert f.get_parameter(name).grad.isfinite().all()
        assert f.get_parameter(name).grad.any(), name


@pytest.mark.parametrize("case", CASES)
def test_half_precision_casts_and_autocast_change_nothing(case):
    f = make(case)
    h = f(100)
    for cast in (f.bfloat16, f.half, lambda: f.to("cpu", torch.bfloat16)):
        assert torch.equal(cast()(100), h)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(f(100), h)
    assert f.double()(100).dtype == torch.float64
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert make(case)(5).dtype == torch.float32
    finally:
        torch.set_default_dtype(default)


@pytest.mark.parametrize("case", CASES)
def test_state_dict_copies_and_the_meta_device(case, monkeypatch):
    # The poisoned torch.empty of conftest.py is not one that `torch.device` as a context knows.
    monkeypatch.undo()
    torch.utils._device._device_constructors.cache_clear()
    f, g = make(case), make(case)
    untouched = copy.deepcopy(f)
    h = f(M)
    g.load_state_dict(f.state_dict())
    assert torch.equal(g(M), h)
    assert torch.equal(copy.deepcopy(f)(M), h)
    assert torch.equal(untouched(M), h)
    with torch.device("meta"):
        g = make(case)
        assert g(9).is_meta
    assert all(t.is_meta for t in g.state_dict().values())
    marks = {name: getattr(p, "_optim", None) for name, p in f.named_parameters()}
    loaded = copy.deepcopy(g)
    loaded.load_state_dict(f.state_dict(), assign=True)
    assert torch.equal(loaded(M), h)
    g.to_empty(device="cpu")
    for tensor in g.state_dict().values():
        tensor.fill_(math.nan)
    torch.manual_seed(1)
    g.reset_parameters()
    torch.manual_seed(1)
    f.reset_parameters()
    assert torch.equal(g(M), f(M))
    assert {name: getattr(p, "_optim", None) for name, p in g.named_parameters()} == marks


@pytest.mark.parametrize("case", CASES)
def test_marks_are_known_to_the_optimiser(case):
    f = make(case)
    groups = parameter_groups(f, lr=0.123, weight_decay=0.456)
    trained = sum(p.requires_grad for p in f.parameters())
    assert sum(len(group["params"]) for group in groups) == trained
    assert trained > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", RECURRENT)
def test_recurrence_equals_convolution(case, dtype):
    f = make(case).to(dtype)
    with torch.no_grad():
        for p in f.parameters():
            p.add_(0.02 * torch.randn_like(p))
    u = torch.randn(2, D, M, dtype=dtype)
    expected = fft_conv(u.double(), f.double()(M) if dtype == torch.float64 else f(M).double())
    y, last = f.scan(u)
    assert y.dtype == dtype
    assert_close(y, expected, dtype, "scan")
    first, state = f.scan(u[..., :61])
    second, state = f.scan(u[..., 61:], state)
    assert_close(torch.cat([first, second], -1), expected, dtype, "scan in pieces")
    modes, outputs, state = f.prepare_step(), [], f.init_state(2)
    assert state.shape[:2] == (2, D)
    for u_t in u.unbind(-1):
        y_t, state = f.step(u_t, state, modes)
        outputs.append(y_t)
    assert outputs[0].dtype == dtype
    assert_close(torch.stack(outputs, -1), expected, dtype, "steps")
    for name, other in {
        "scan": last,
        "prefill": f.final_state(u),
        "in pieces": f.final_state(u[..., 5:], f.final_state(u[..., :5])),
    }.items():
        assert_close(other, state, dtype, f"state, {name}")


@pytest.mark.parametrize("case", RECURRENT)
def test_gradients_of_the_recurrence(case):
    f = make(case, 2).double()
    with torch.no_grad():
        for p in f.parameters():
            p.add_(0.02 * torch.randn_like(p))
    u = torch.randn(1, 2, 40, dtype=torch.float64)
    weights = torch.randn(40, dtype=torch.float64)
    names, values = zip(*f.named_parameters(), strict=True)
    expected = torch.autograd.grad((fft_conv(u, f(40)) * weights).sum(), values, allow_unused=True)
    got = torch.autograd.grad((f.scan(u)[0] * weights).sum(), values, allow_unused=True)
    for name, g, e in zip(names, got, expected, strict=True):
        assert_close(g, e, name=name)


@pytest.mark.parametrize("case", ["sgconv", "s4d", "rtf"])
def test_compiles_without_a_graph_break(case):
    f = make(case)
    h = torch.compile(f, backend="aot_eager", fullgraph=True)(M)
    assert_close(h, f(M).double(), torch.float32)


def test_build_filter_errors():
    with pytest.raises(ValueError, match=r"unknown filter 'wavelet'; known: dcls, ema, .*, smpconv$"):
        build_filter("wavelet", 4)
    with pytest.raises(ValueError, match="has no option embdim"):
        build_filter({"name": "hyena", "embdim": 3}, 4, 10)
    for name in ("hyena", "sgconv", "smpconv", "freeform"):
        with pytest.raises(ValueError, match="needs max_length"):
            build_filter(name, 4)
    with pytest.raises(ValueError, match="'dcls' needs kernel_count, dilated_kernel_size"):
        build_filter("dcls", 4)
    with pytest.raises(ValueError, match="'modal' needs order"):
        build_filter("modal", 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "sgconv", "combine": "mean"}, "combine must be one of cat, sum, got 'mean'"),
        ({"name": "sgconv", "init_scale": -1}, "init_scale must not be negative"),
        ({"name": "sgconv", "kernel_dim": 0}, "kernel_dim must be at least 1, got 0"),
        ({"name": "s4d", "state_size": 7}, "state_size must be even"),
        ({"name": "s4d", "init": "random"}, "init must be one of lin, inv, legs, real"),
        ({"name": "s4d", "init": "lin", "real": True}, "init must be real"),
        ({"name": "s4d", "disc": "euler"}, "disc must be one of zoh, bilinear"),
        ({"name": "s4d", "dt_min": 0.2}, "dt_min"),
        ({"name": "ema", "order": 0}, "order must be at least 1"),
        ({"name": "smpconv", "radius": 0.0}, "radius"),
        ({"name": "smpconv", "points": 0}, "points must be at least 1"),
        ({"name": "dcls", "kernel_count": 3, "dilated_kernel_size": 0}, "dilated_kernel_size must be at least 1"),
        (
            {"name": "dcls", "kernel_count": 3, "dilated_kernel_size": 9, "version": "v7"},
            "version must be one of nearest",
        ),
        ({"name": "freeform", "smooth": 4}, "smooth must be odd"),
        ({"name": "freeform", "squash": -0.1}, "squash must not be negative"),
        ({"name": "freeform", "init": "zeros"}, "init must be one of random, double_exp"),
        ({"name": "freeform", "target": 1.0}, "target must be in"),
        ({"name": "rtf", "num_a": 4}, "num_a must divide channels = 6"),
        ({"name": "rtf", "order": 8, "trunc_len": 8}, "trunc_len must be larger than order = 8"),
        ({"name": "rtf", "constraint": "l2"}, "constraint must be one of no, l1_montel"),
        ({"name": "hyena", "target": 0.0}, "target must be in"),
        ({"name": "hyena", "inner_layers": -1}, "inner_layers must not be negative"),
    ],
    ids=lambda x: "" if isinstance(x, str) else "-".join(map(str, x.values())),
)
def test_what_a_user_can_get_wrong(spec, message):
    with pytest.raises(ValueError, match=message):
        build_filter(spec, D, M)
