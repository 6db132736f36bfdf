"""The implicit filter against its definition, its limits, its precision and its optimiser options."""

import math

import numpy as np
import pytest
import torch
from numerics import assert_close

from longconv.filters import HyenaFilter


def define(f, L):
    """The definition in numpy, float64, tap by tap; only the trainable numbers come from the module."""
    p = {name: tensor.detach().double().numpy() for name, tensor in f.state_dict().items()}
    M, D, bands = f.max_length, f.channels, (p["z"].shape[1] - 1) // 2
    h = np.empty((D, L))
    for t in range(L):
        frequencies = np.linspace(1e-4, bands - 1, bands)
        angle = 2 * np.pi * frequencies * t / M
        x = np.concatenate([[t / (M - 1)], np.cos(angle), -np.sin(angle)])
        layers = len(f.mlp)
        for i in range(layers - 1):
            x = np.sin(p["freq"] * (p[f"mlp.{i}.weight"] @ x + p[f"mlp.{i}.bias"]))
        x = p[f"mlp.{layers - 1}.weight"] @ x
        for d in range(D):
            slow, fast = math.log(f.target) / f.slow_decay_pct, math.log(f.target) / f.fast_decay_pct
            delta = slow + (fast - slow) * d / (D - 1)
            window = math.exp(-t / (M - 1) * abs(delta)) + f.shift
            h[d, t] = x[d] * (window if f.modulate else 1.0)
    if f.normalized:  # safari: over the channels
        h /= np.abs(h).sum(axis=0, keepdims=True)
    return torch.from_numpy(h)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"emb_dim": 33, "w": 14.0},
        {"modulate": False},
        {"shift": 0.05, "inner_layers": 0, "order": 16},
        {"normalized": True, "modulation_lr": 1e-3},
    ],
    ids=str,
)
def test_equals_definition(options):
    f = HyenaFilter(6, 50, **options).double()
    f.reset_parameters()
    assert_close(f(50), define(f, 50), name="all taps")
    assert_close(f(13), define(f, 13), name="first taps")


@pytest.mark.parametrize("options", [{}, {"emb_dim": 33, "w": 14.0}], ids=str)
def test_float32_equals_float64(options):
    f = HyenaFilter(6, 500, **options)
    h = f(500)
    assert h.dtype == torch.float32
    for L in (1, 2, 5, 100):  # other matrix sizes, the same taps
        assert_close(f(L), h[:, :L].double(), torch.float32)
    assert_close(h, f.double()(500), torch.float32)


def test_window_decays_to_the_target():
    ones = HyenaFilter(5, 1001, fast_decay_pct=0.5, slow_decay_pct=1.0)
    ratio = ones(1001) / HyenaFilterWithoutWindow(ones)(1001)
    assert ratio[0, 1000].item() == pytest.approx(1e-2, rel=1e-3)
    assert ratio[4, 500].item() == pytest.approx(1e-2, rel=1e-3)


def HyenaFilterWithoutWindow(f):
    other = HyenaFilter(f.channels, f.max_length, modulate=False)
    other.load_state_dict(f.state_dict())
    return other


def test_limits():
    f = HyenaFilter(4, 10)
    assert f(10).shape == (4, 10)
    assert HyenaFilter(4, 1)(1).isfinite().all()
    for L in (0, 11):
        with pytest.raises(ValueError, match="max_length = 10"):
            f(L)
    with pytest.raises(ValueError, match="emb_dim"):
        HyenaFilter(4, 10, emb_dim=4)


def test_optimiser_options():
    f = HyenaFilter(4, 10, lr=2e-3)
    assert f.z._optim == {"lr": 1e-5, "weight_decay": 0.0}
    rest = {name: p._optim for name, p in f.named_parameters() if name != "z"}
    assert set(map(str, rest.values())) == {str({"lr": 2e-3, "weight_decay": 0.0})}
    assert "freq" in rest
    assert "deltas" not in rest
    trained = HyenaFilter(4, 10, modulation_lr=5e-4)
    assert trained.deltas._optim == {"lr": 5e-4, "weight_decay": 0.0}
    trained(10).sum().backward()
    assert trained.deltas.grad.any()
    assert trained.state_dict().keys() == f.state_dict().keys()


def test_half_precision_casts_leave_it_alone_and_autocast_too():
    f = HyenaFilter(4, 100, emb_dim=9)
    h = f(100)
    for cast in (f.bfloat16, f.half, lambda: f.to("cpu", torch.bfloat16)):
        assert torch.equal(cast()(100), h)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(f(100), h)
    assert f.double()(100).dtype == torch.float64
    assert f.float()(100).dtype == torch.float32
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        assert HyenaFilter(4, 100)(5).dtype == torch.float32
    finally:
        torch.set_default_dtype(default)


def test_state_dict_round_trip_from_the_meta_device():
    f = HyenaFilter(4, 10, emb_dim=5)
    with torch.device("meta"):
        g = HyenaFilter(4, 10, emb_dim=5)
    g.load_state_dict(f.state_dict(), assign=True)
    assert torch.equal(f(10), g(10))
