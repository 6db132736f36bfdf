"""Published weights into our layers: each original's forward pass is written out here, with its names and shapes."""

import math

import pytest
import torch
import torch.nn.functional as F
from numerics import assert_close

from longconv.layers import S4D, GlobalConv, Hyena, HyenaND, MultiHyena, SGConv, convert

L = 40


def fft_conv(u, k):
    """Causal, of real rows, in float64."""
    n = 2 * max(u.shape[-1], k.shape[-1])
    return torch.fft.irfft(torch.fft.rfft(u.double(), n) * torch.fft.rfft(k.double(), n), n)[..., : u.shape[-1]]


def two_sided(u, k0, k1):
    """Theirs: the second kernel reversed at the end of a circle of 2 L points, so that its first tap is at lag -1."""
    n = u.shape[-1]
    k = F.pad(k0, (0, n)) + F.pad(k1.flip(-1), (n, 0))
    return torch.fft.irfft(torch.fft.rfft(u.double(), 2 * n) * torch.fft.rfft(k.double(), 2 * n), 2 * n)[..., :n]


def with_prefix(tensors):
    return {**{f"layers.0.{name}": t for name, t in tensors.items()}, "head.weight": torch.ones(1)}


# Layers around one filter


def s4d_tensors(H=6, N=8):
    return {
        "D": torch.randn(H),
        "kernel.log_dt": torch.rand(H) * 3 - 5,
        "kernel.C": torch.randn(H, N // 2, 2),
        "kernel.log_A_real": torch.randn(H, N // 2) - 1,
        "kernel.A_imag": 3 * torch.randn(H, N // 2),
        "output_linear.0.weight": torch.randn(2 * H, H, 1),
        "output_linear.0.bias": torch.randn(2 * H),
    }


def test_s4d():
    p = s4d_tensors()
    layer = S4D(6, filter={"name": "s4d", "state_size": 8})
    convert.load_s4d_state_dict(layer, with_prefix(p), "layers.0.")
    d = {name: t.double() for name, t in p.items()}
    dt, C = d["kernel.log_dt"].exp(), torch.view_as_complex(d["kernel.C"])
    dtA = (-d["kernel.log_A_real"].exp() + 1j * d["kernel.A_imag"]) * dt[:, None]
    C = C * (dtA.exp() - 1) / (dtA / dt[:, None])
    k = 2 * torch.einsum("hn,hnl->hl", C, torch.exp(dtA[..., None] * torch.arange(L))).real
    u = torch.randn(2, 6, L)
    y = F.gelu(fft_conv(u, k) + u * d["D"][:, None])
    y = F.glu(F.conv1d(y, d["output_linear.0.weight"], d["output_linear.0.bias"]), dim=-2)
    assert_close(layer(u.mT), y.mT)


def test_s4d_errors():
    layer, p = S4D(6, filter={"name": "s4d", "state_size": 8}), s4d_tensors()
    for name in p:
        with pytest.raises(ValueError, match=f"the state dict has no {name}"):
            convert.load_s4d_state_dict(layer, {key: t for key, t in p.items() if key != name})
    with pytest.raises(ValueError, match=r"kernel.C has shape \(6, 4, 2\), the filter expects \(6, 5, 2\)"):
        convert.load_s4d_state_dict(S4D(6, filter={"name": "s4d", "state_size": 10}), p)
    with pytest.raises(ValueError, match=r"output_linear.0.weight gives shape \(6, 6\), the layer has \(12, 6\)"):
        convert.load_s4d_state_dict(layer, {**p, "output_linear.0.weight": torch.randn(6, 6, 1)})
    with pytest.raises(ValueError, match=r"no place for norm\.weight"):
        convert.load_s4d_state_dict(layer, {**p, "norm.weight": torch.ones(6)})
    with pytest.raises(ValueError, match="must be causal"):
        convert.load_s4d_state_dict(S4D(6, filter={"name": "s4d", "state_size": 8}, bidirectional=True), p)
    with pytest.raises(TypeError, match="filter must be a S4DFilter, got HyenaFilter"):
        convert.load_s4d_state_dict(S4D(6, 40, filter="hyena"), p)


def sgconv_tensors(C, H=6, d=8, scales=4, glu=False):
    norm = 1 + torch.rand(C, H, 1)
    stem, width = ("output_linear.0.", 2 * H) if glu else ("output_linear.", H)
    return {
        "D": torch.randn(1, H),
        **{f"kernel_list.{i}": torch.randn(C, H, d) for i in range(scales)},
        "multiplier": torch.linspace(1.5, 2.5, H).view(1, -1, 1),
        "kernel_norm": norm,
        "kernel_norm_initialized": torch.tensor(1, dtype=torch.bool),
        stem + "weight": torch.randn(width, H),
        stem + "bias": torch.randn(width),
    }


@pytest.mark.parametrize("glu", [False, True], ids=["linear", "glu"])
@pytest.mark.parametrize("C", [1, 2], ids=["causal", "two-sided"])
def test_sgconv(C, glu):
    """Mode "cat_randn": 4 kernels of 8 taps are 64 taps."""
    p = sgconv_tensors(C, glu=glu)
    layer = SGConv(
        6,
        L,
        filter={"name": "sgconv", "kernel_dim": 8, **convert_mode("cat_randn")},
        bidirectional=C == 2,
        output="glu" if glu else "linear",
    )
    convert.load_sgconv_state_dict(layer, with_prefix(p), "layers.0.")
    d = {name: t.double() for name, t in p.items()}
    parts = []
    for i in range(4):
        part = F.interpolate(d[f"kernel_list.{i}"], scale_factor=2 ** max(0, i - 1), mode="linear")
        parts.append(part * d["multiplier"] ** (3 - i))
    k = torch.cat(parts, -1)[..., :L] / d["kernel_norm"]
    u = torch.randn(2, 6, L)
    y = fft_conv(u, k[0]) if C == 1 else two_sided(u, k[0], k[1])
    y = F.gelu(y + u * d["D"][0][:, None])
    stem = "output_linear.0." if glu else "output_linear."
    y = torch.einsum("bul,vu->bvl", y, d[stem + "weight"]) + d[stem + "bias"][:, None]
    y = F.glu(y, dim=1) if glu else y
    assert_close(layer(u.mT), y.mT)


def convert_mode(mode):
    from longconv.filters.convert import sgconv_options

    return sgconv_options(mode)


def test_sgconv_errors():
    layer = SGConv(6, L, filter={"name": "sgconv", "kernel_dim": 8})
    with pytest.raises(ValueError, match="has 2 kernels, the layer 1"):
        convert.load_sgconv_state_dict(layer, sgconv_tensors(2))
    with pytest.raises(ValueError, match=r"has no output_linear\.weight"):
        convert.load_sgconv_state_dict(layer, sgconv_tensors(1, glu=True))
    with pytest.raises(ValueError, match=r"D gives shape \(2, 6\), the layer has \(6,\)"):
        convert.load_sgconv_state_dict(layer, {**sgconv_tensors(1), "D": torch.randn(2, 6)})
    with pytest.raises(ValueError, match="more than the filter's num_scales"):
        convert.load_sgconv_state_dict(layer, sgconv_tensors(1, scales=5))


@pytest.mark.parametrize("C", [1, 2], ids=["causal", "two-sided"])
def test_safari_long_conv(C):
    H, lam = 6, 0.05
    p = {
        "D": torch.randn(1, H),
        "kernel.kernel": 0.2 * torch.randn(C, H, L),
        "output_linear.0.weight": torch.randn(2 * H, H),
        "output_linear.0.bias": torch.randn(2 * H),
    }
    layer = GlobalConv(H, L, filter={"name": "freeform", "squash": lam}, bidirectional=C == 2)
    convert.load_long_conv_state_dict(layer, with_prefix(p), "layers.0.")
    d = {name: t.double() for name, t in p.items()}
    k = F.relu(d["kernel.kernel"].abs() - lam) * d["kernel.kernel"].sign()
    u = torch.randn(2, H, L)
    y = fft_conv(u, k[0]) if C == 1 else two_sided(u, k[0], k[1])
    y = F.gelu(y + u * d["D"][0][:, None])
    y = F.glu(torch.einsum("bul,vu->bvl", y, d["output_linear.0.weight"]) + d["output_linear.0.bias"][:, None], dim=1)
    assert_close(layer(u.mT), y.mT)


# Hyena


def hyena_filter_tensors(channels, positions, width=8, emb=5, inner=2, network="implicit_filter."):
    p = {}
    for i in range(inner + 1):
        p[f"{network}{2 * i}.weight"] = torch.randn(width, width if i else emb) / 2
        p[f"{network}{2 * i}.bias"] = torch.randn(width)
    freq = 2 * torch.rand(1, width)
    p |= {f"{network}{2 * i + 1}.freq": freq for i in range(inner + 1)}
    p[f"{network}{2 * inner + 2}.weight"] = torch.randn(channels, width)
    bands = (emb - 1) // 2
    phase = torch.linspace(1e-4, bands - 1, bands) * 2 * math.pi * torch.arange(positions)[None, :, None] / positions
    t = torch.linspace(0, 1, positions)[None, :, None]
    return {**p, "pos_emb.z": torch.cat([t, phase.cos(), -phase.sin()], -1), "pos_emb.t": t}


def run_network(p, z, network, inner=2):
    for i in range(inner + 1):
        z = torch.sin(p[f"{network}1.freq"] * (z @ p[f"{network}{2 * i}.weight"].T + p[f"{network}{2 * i}.bias"]))
    return z @ p[f"{network}{2 * inner + 2}.weight"].T


def deltas(channels):
    return torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, channels)[None, None]


def projections(D, branches, K, axes=1):
    wide = branches * D
    return {
        "in_proj.weight": torch.randn(wide, D) / D**0.5,
        "in_proj.bias": torch.randn(wide),
        "out_proj.weight": torch.randn(D, D) / D**0.5,
        "out_proj.bias": torch.randn(D),
        "short_filter.weight": torch.randn(wide, 1, *[K] * axes),
        "short_filter.bias": torch.randn(wide),
    }


@pytest.mark.parametrize("head_dim", [1, 2, 6])
def test_multi_head_hyena(head_dim):
    """What they call num_heads is the size of the outer products."""
    D = 12
    M = D // head_dim
    filter = {**hyena_filter_tensors(M, L), "modulation.deltas": deltas(M)}
    p = {**projections(D, 3, 3), "long_conv.bias": torch.randn(M)}
    p |= {f"long_conv.filter.{name}": t for name, t in filter.items()}
    layer = MultiHyena(D, L, num_heads=M, filter={"name": "hyena", "emb_dim": 5, "order": 8})
    convert.load_multi_hyena_state_dict(layer, with_prefix(p), "layers.0.")
    d, f = ({name: t.double() for name, t in tensors.items()} for tensors in (p, filter))
    n, x = 23, torch.randn(2, 23, D)
    h = run_network(f, f["pos_emb.z"][0, :n], "implicit_filter.")
    h = (h * torch.exp(-f["pos_emb.t"][0, :n] * f["modulation.deltas"][0].abs())).T
    u = (x.double() @ d["in_proj.weight"].T + d["in_proj.bias"]).mT
    u = F.conv1d(u, d["short_filter.weight"], d["short_filter.bias"], padding=2, groups=3 * D)[..., :n]
    q, v, k = (branch.reshape(2, M, head_dim, n) for branch in u.split(D, dim=1))
    kv = k.transpose(1, 2)[:, :, None] * v.transpose(1, 2)[:, None]  # (b, d1, d2, heads, l)
    out = fft_conv(kv, h) + kv * d["long_conv.bias"][:, None]
    y = (out * q.transpose(1, 2)[:, :, None]).sum(1).transpose(1, 2).reshape(2, D, n)
    assert_close(layer(x), y.mT @ d["out_proj.weight"].T + d["out_proj.bias"])


def hyena_dna(D=8, layers=3, between=""):
    """A checkpoint as LongSafari's on the hub: a model around the operators."""
    p = {"hyena.backbone.embeddings.word_embeddings.weight": torch.randn(16, D), "lm_head.weight": torch.randn(16, D)}
    for i in range(layers):
        operator = {**projections(D, 3, 3), "filter_fn.bias": torch.randn(D)}
        filter = {**hyena_filter_tensors(D, L), "modulation.deltas": deltas(D)}
        operator |= {f"filter_fn.{name}": t for name, t in filter.items()}
        p |= {f"hyena.backbone.layers.{i}.mixer.{between}{name}": t for name, t in operator.items()}
        p[f"hyena.backbone.layers.{i}.norm1.weight"] = torch.ones(D)
    return p


@pytest.mark.parametrize("between", ["", "layer."], ids=["plain", "checkpointed"])
def test_hyena_dna(between):
    p, n = hyena_dna(layers=11, between=between), 23
    prefixes = convert.hyena_prefixes(p)
    assert prefixes == [f"hyena.backbone.layers.{i}.mixer.{between}" for i in range(11)]
    layer = Hyena(8, L, filter={"name": "hyena", "emb_dim": 5, "order": 8, "shift": 0.05})
    convert.load_safari_state_dict(layer, p, prefixes[10])
    d = {name.removeprefix(prefixes[10]): t.double() for name, t in p.items() if name.startswith(prefixes[10])}
    h = run_network(d, d["filter_fn.pos_emb.z"][0, :n], "filter_fn.implicit_filter.")
    window = torch.exp(-d["filter_fn.pos_emb.t"][0, :n] * d["filter_fn.modulation.deltas"][0].abs()) + 0.05
    x = torch.randn(2, n, 8)
    u = (x.double() @ d["in_proj.weight"].T + d["in_proj.bias"]).mT
    u = F.conv1d(u, d["short_filter.weight"], d["short_filter.bias"], padding=2, groups=24)[..., :n]
    x0, x1, v = u.split(8, dim=1)
    v = v * x1
    v = fft_conv(v, (h * window).T) + v * d["filter_fn.bias"][:, None]
    assert_close(layer(x), (v * x0).mT @ d["out_proj.weight"].T + d["out_proj.bias"])
    with pytest.raises(ValueError, match="no Hyena operator"):
        convert.hyena_prefixes({"a": torch.ones(1)})
    p[prefixes[10] + "ord_proj_w"] = torch.ones(1)
    with pytest.raises(ValueError, match=r"no place for hyena.backbone.layers.10.mixer.*ord_proj_w"):
        convert.load_safari_state_dict(layer, p, prefixes[10])


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("kind", ["implicit", "product"])
def test_hyena_nd(kind, order):
    D, l = 4, 6
    C = D * (order - 1)
    if kind == "implicit":
        filter = hyena_filter_tensors(C, l, emb=10)
        filter |= {k: t for k, t in hyena_filter_tensors(C, l).items() if k.startswith("pos_emb")}
        filter |= {"modulation.Xdeltas": deltas(C), "modulation.Ydeltas": 2 * deltas(C)}
    else:
        filter = hyena_filter_tensors(C, l, network="Ximplicit_filter.")
        filter |= hyena_filter_tensors(C, l, network="Yimplicit_filter.")
        filter |= {"Xmodulation.deltas": deltas(C), "Ymodulation.deltas": 2 * deltas(C)}
    p = {**projections(D, order + 1, 3, axes=2), "filter_fn.bias": torch.randn(C)}
    p |= {f"filter_fn.{name}": t for name, t in filter.items()}
    layer = HyenaND(D, l * l, order=order, filter={"kind": kind, "emb_dim": 5, "order": 8})
    convert.load_hyena_nd_state_dict(layer, with_prefix(p), "layers.0.")
    d, f = ({name: t.double() for name, t in tensors.items()} for tensors in (p, filter))
    z, t = f["pos_emb.z"][0], f["pos_emb.t"][0]
    if kind == "implicit":
        grid = torch.cat([z[:, None].expand(l, l, 5), z[None].expand(l, l, 5)], -1)
        first, second = (torch.exp(-t * f[f"modulation.{axis}deltas"][0].abs()) for axis in "XY")
        k = run_network(f, grid, "implicit_filter.") * first[:, None] * second[None]
    else:
        first, second = (
            run_network(f, z, f"{axis}implicit_filter.") * torch.exp(-t * f[f"{axis}modulation.deltas"][0].abs())
            for axis in "XY"
        )
        k = first[:, None] * second[None]
    k = k.reshape(l, l, order - 1, D).permute(2, 3, 0, 1)
    x = torch.randn(2, l * l, D)
    u = (x.double() @ d["in_proj.weight"].T + d["in_proj.bias"]).mT.reshape(2, -1, l, l)
    u = F.conv2d(u, d["short_filter.weight"], d["short_filter.bias"], padding=1, groups=u.shape[1])
    *gates, v = u.split(D, dim=1)
    bias = d["filter_fn.bias"].view(order - 1, D)
    for o, gate in enumerate(reversed(gates[1:])):
        v = v * gate
        spectrum = torch.fft.rfft2(k[o], s=(2 * l, 2 * l)) / (2 * l)  # and nothing undoes the division
        y = torch.fft.irfft2(torch.fft.rfft2(v, s=(2 * l, 2 * l)) * spectrum, s=(2 * l, 2 * l))[..., :l, :l]
        v = y + bias[o][:, None, None] * v
    y = (v * gates[0]).flatten(2).mT @ d["out_proj.weight"].T + d["out_proj.bias"]
    assert_close(layer(x), y)
    with pytest.raises(ValueError, match="must be causal"):
        convert.load_hyena_nd_state_dict(HyenaND(D, l * l, bidirectional=True), p)
