"""Published weights of long filters into ours: one function for each filter, from the state dict of the public code.

Every `load_*` fills a filter that was built with the sizes and options of the original, in place; the skip weight, the
output projection and the like are the layer's. `prefix` is what stands before the names in the state dict, e.g.
`"layers.3.kernel."`. Names below without a module are of the repositories that the filters' modules cite.

Raises, all of them: TypeError for a filter of another class, and ValueError for a tensor that is missing, that has
another shape than the filter, or that says something the filter cannot represent. Then the filter is unchanged.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Filter
from .dcls import DCLSFilter
from .ema import DampedEMA
from .freeform import FreeFormFilter
from .rtf import RTFFilter
from .s4d import S4DFilter, S4DReadout
from .sgconv import SGConvFilter
from .smpconv import SMPConvFilter


class _Source:
    """A state dict that says what it lacks, and collects what to copy until all of it is known to fit."""

    def __init__(self, filter: Filter, kind: type[Filter], state_dict: Mapping[str, Tensor], prefix: str) -> None:
        if not isinstance(filter, kind):
            raise TypeError(f"filter must be a {kind.__name__}, got {type(filter).__name__}")
        self.filter, self.state_dict, self.prefix = filter, state_dict, prefix
        self._copies: list[tuple[Tensor, Tensor]] = []

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.state_dict

    def get(self, name: str, *shape: int | None) -> Tensor:
        """The tensor `name`, which must have `shape` (None: any size)."""
        if name not in self:
            raise ValueError(f"the state dict has no {self.prefix}{name}")
        tensor = self.state_dict[self.prefix + name]
        fits = len(shape) == tensor.dim() and all(n in (None, m) for n, m in zip(shape, tensor.shape, strict=True))
        if not fits:
            expected = "(" + ", ".join("*" if n is None else str(n) for n in shape) + ")"
            raise ValueError(f"{self.prefix}{name} has shape {tuple(tensor.shape)}, the filter expects {expected}")
        return tensor

    def put(self, name: str, tensor: Tensor) -> None:
        """Copy `tensor` to the filter's parameter or buffer `name`, later."""
        target = getattr(self.filter, name)
        assert target.shape == tensor.shape, f"{name}: {tuple(tensor.shape)} into {tuple(target.shape)}"
        self._copies.append((target, tensor))

    @torch.no_grad()
    def finish(self) -> None:
        for target, tensor in self._copies:
            target.copy_(tensor)


def load_s4d(
    filter: S4DFilter | S4DReadout,
    state_dict: Mapping[str, Tensor],
    prefix: str = "",
    *,
    dt_transform: str = "exp",
    channel: int = 0,
) -> None:
    """Load an S4D kernel, in either form of state-spaces/s4.

    `S4DKernel` (`models/s4/s4d.py`): log_dt (H,), C (H, N/2, 2), log_A_real (H, N/2), A_imag (H, N/2).

    `SSMKernelDiag` (`kernels/ssm.py`), recognised by inv_dt: inv_dt (H, 1), A_real, A_imag (S, N/2),
    B (1, S, N/2, 2), C (1 or 2, H, N/2, 2), with S systems for H / S channels each; real: no A_imag, and B, C without
    the last axis. B is multiplied into C. The filter has `n_ssm` = S; or one for each channel, to which systems are
    copied. Of its options `disc` and `is_real` are the filter's; `real_transform` must be "exp", `imag_transform`
    "none", `dt_fast` off and `bandlimit` None, which no tensor tells.

    Args:
        filter, state_dict, prefix: see the module. An `S4DReadout` takes B and C only.
        dt_transform: of the original, `"exp"` or `"softplus"`.
        channel: which C of `SSMKernelDiag`. A bidirectional layer has two: 0 looks back, 1 ahead.
    """
    if dt_transform not in ("exp", "softplus"):
        raise ValueError(f"dt_transform must be exp or softplus, got {dt_transform!r}")
    readout = isinstance(filter, S4DReadout)
    source = _Source(filter, S4DReadout if readout else S4DFilter, state_dict, prefix)
    system: S4DFilter = filter.system if isinstance(filter, S4DReadout) else filter
    H, N = filter.channels, filter.order
    pair = () if system.real else (2,)
    if "inv_dt" not in source:
        if readout or system.n_ssm != H:
            raise ValueError(
                f"{prefix}log_dt is of the code without two directions and n_ssm: the filter needs neither"
            )
        source.put("log_dt", source.get("log_dt", H))
        source.put("C", source.get("C", H, N, *pair))
        source.put("log_A_real", source.get("log_A_real", H, N))
        if not filter.real:
            source.put("A_imag", source.get("A_imag", H, N))
        return source.finish()
    A_real = source.get("A_real", None, N)
    S = len(A_real)
    if S == 0 or system.n_ssm not in (S, H) or H % S:
        raise ValueError(f"{prefix}A_real has {S} systems, the filter {system.n_ssm} for {H} channels")
    B = source.get("B", 1, S, N, *pair)[0].repeat(H // S, *([1] * (1 + len(pair))))
    C = source.get("C", None, H, N, *pair)
    if not 0 <= channel < len(C):
        raise ValueError(f"channel must be in 0..{len(C) - 1}, got {channel}")
    C = C[channel]
    source.put("C", B * C if system.real else torch.view_as_real(_complex(B) * _complex(C)))
    if not readout:
        log_dt = source.get("inv_dt", H, 1)[:, 0]
        source.put("log_dt", log_dt if dt_transform == "exp" else F.softplus(log_dt.double()).log())
        copies = system.n_ssm // S
        source.put("log_A_real", A_real.repeat(copies, 1))
        if not system.real:  # their A is -exp(A_real) - i A_imag
            source.put("A_imag", -source.get("A_imag", S, N).repeat(copies, 1))
    return source.finish()


def load_sgconv(filter: SGConvFilter, state_dict: Mapping[str, Tensor], prefix: str = "", *, channel: int = 0) -> None:
    """Load one kernel of an SGConv layer (`gconv.GConv`).

    kernel_list.0 .. kernel_list.{S-1} (C, H, d), decay (H,) in the learnable modes, else multiplier (1, H, 1);
    kernel_norm (C, H, 1), and kernel_norm_initialized (), which tells whether the norm is frozen.

    Args:
        filter: made with `sgconv_options(mode)`, kernel_dim, init_scale and so on.
        state_dict, prefix: see the module.
        channel: which of the C kernels of each feature. A bidirectional layer has C = 2: 0 looks back, 1 ahead.
    """
    source = _Source(filter, SGConvFilter, state_dict, prefix)
    H, S = filter.channels, filter.num_scales
    kernels = [source.get(f"kernel_list.{i}", None, H, filter.kernel_dim) for i in range(S)]
    if f"kernel_list.{S}" in source:
        raise ValueError(f"the state dict has more than the filter's num_scales = {S} kernels: {prefix}kernel_list.{S}")
    if not 0 <= channel < len(kernels[0]):
        raise ValueError(f"channel must be in 0..{len(kernels[0]) - 1}, got {channel}")
    source.put("kernels", torch.stack([kernel[channel] for kernel in kernels]))
    if filter.decay is not None:
        source.put("decay", source.get("decay", H))
    else:
        source.put("multiplier", source.get("multiplier", 1, H, 1)[0, :, 0])
    if bool(source.get("kernel_norm_initialized")):
        source.put("kernel_norm", source.get("kernel_norm", len(kernels[0]), H, 1)[channel, :, 0])
    else:
        source.put("kernel_norm", torch.zeros(H))
    source.finish()
    filter._frozen = False


def sgconv_options(mode: str) -> dict[str, Any]:
    """The options of `SGConvFilter` that SGConv's `mode` string stands for, e.g. `"cat_randn"`, `"sum_cos_nearest"`.

    Raises:
        ValueError: the mode says neither or both of cat and sum, or neither of randn and cos.
    """
    if ("cat" in mode) == ("sum" in mode) or not ("randn" in mode or "cos" in mode):
        raise ValueError(f"mode must say cat or sum, and randn or cos, got {mode!r}")
    learnable = "fixed" if "fixed" in mode else "learnable"
    return {
        "combine": "cat" if "cat" in mode else "sum",
        "interpolation": "nearest" if "nearest" in mode else "linear",
        "kernel_init": "randn" if "randn" in mode else "cos",
        "decay": learnable if "learnable" in mode else "geometric",
    }


def load_ema(filter: DampedEMA, state_dict: Mapping[str, Tensor], prefix: str = "") -> Tensor:
    """Load MEGA's moving average (`MultiHeadEMA`): delta, alpha, beta (D', N, 1) and gamma (D', N), D' = D or 2D.

    Returns:
        omega (D,), the weight of the residual, for the layer's skip.
    """
    source = _Source(filter, DampedEMA, state_dict, prefix)
    rows, N = filter.channels, filter.order
    for name in ("delta", "alpha", "beta"):
        source.put(name, source.get(name, rows, N, 1)[..., 0])
    source.put("gamma", source.get("gamma", rows, N))
    omega = source.get("omega", rows // (1 + filter.bidirectional))
    source.finish()
    return omega


def load_smpconv(filter: SMPConvFilter, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Load an `SMPKernel` of a causal 1-D convolution: weight_coord, radius (O, n, 1), weights (O, I, n).

    The filter has O I rows, row `o * I + i` for input i of output o; a depthwise convolution has I = 1. Its
    `max_length` is the number of taps of the original (`train_length`).
    """
    source = _Source(filter, SMPConvFilter, state_dict, prefix)
    n = filter.points
    weights = source.get("weights", None, None, n)
    O, I = weights.shape[:2]
    if filter.channels != O * I:
        raise ValueError(f"{prefix}weights has {O} x {I} kernels, the filter has {filter.channels} channels")
    source.put("weights", weights.flatten(0, 1))
    for name in ("weight_coord", "radius"):
        source.put(name, source.get(name, O, n, 1)[..., 0].repeat_interleave(I, dim=0))
    source.finish()


#: Our name of each of DCLS's versions.
DCLS_VERSIONS = {"v0": "linear", "v1": "linear", "max": "triangle", "gauss": "gauss"}


def load_dcls(
    filter: DCLSFilter, state_dict: Mapping[str, Tensor], prefix: str = "", *, version: str = "gauss"
) -> None:
    """Load a depthwise `Dcls1d`: weight (D, 1, n), P (1, D, 1, n), SIG (1, D, 1, n) in versions "gauss" and "max".

    The filter gives the causal convolution that the original does with dilated_kernel_size - 1 zeros before the input.

    Args:
        filter: with the version `DCLS_VERSIONS[version]`; or `"nearest"`, to round the positions.
        state_dict, prefix: see the module.
        version: of the original. With "v0" all positions must be at or between taps.
    """
    source = _Source(filter, DCLSFilter, state_dict, prefix)
    D, n, K = filter.channels, filter.kernel_count, filter.dilated_kernel_size
    if version not in DCLS_VERSIONS:
        raise ValueError(f"version must be one of {', '.join(DCLS_VERSIONS)}, got {version!r}")
    if filter.version not in (DCLS_VERSIONS[version], "nearest"):
        raise ValueError(f"version {version!r} needs a filter of version {DCLS_VERSIONS[version]!r} or 'nearest'")
    weight = source.get("weight", D, 1, n)[:, 0]
    if version == "v0" and filter.version == "linear":
        weight = weight.double() * (1 + 1e-7)  # which "linear" divides by, and "v0" does not
    source.put("weight", weight)
    P = source.get("P", 1, D, 1, n)[0, :, 0]
    at = P + K // 2
    if version == "v0" and bool(((at < 0) | (at > K - 1)).any()):
        raise ValueError(f"{prefix}P has positions beyond the taps, where 'v0' drops what 'linear' keeps")
    if bool((P.abs() > K // 2).any()):
        raise ValueError(f"{prefix}P exceeds dilated_kernel_size // 2 = {K // 2}: clamp it first, as in training")
    source.put("P", P)
    if filter.SIG is not None:
        source.put("SIG", source.get("SIG", 1, D, 1, n)[0, :, 0])
    source.finish()


def load_freeform(
    filter: FreeFormFilter, state_dict: Mapping[str, Tensor], prefix: str = "", *, channel: int = 0
) -> None:
    """Load one kernel of safari's `LongConvKernel`: kernel (C, H, L). `lam` and the smoothing are the filter's options.

    Args:
        filter: with squash = lam, and smooth = ma_window_len or 1.
        state_dict, prefix: see the module.
        channel: which of the C kernels.
    """
    source = _Source(filter, FreeFormFilter, state_dict, prefix)
    kernel = source.get("kernel", None, filter.channels, filter.max_length)
    if not 0 <= channel < len(kernel):
        raise ValueError(f"channel must be in 0..{len(kernel) - 1}, got {channel}")
    source.put("taps", kernel[channel])
    source.finish()


def load_rtf(filter: RTFFilter, state_dict: Mapping[str, Tensor], prefix: str = "", *, variant: str = "RTF") -> None:
    """Load a causal RTF: ab (num_a + D, N), denominators first, h_0 (D,), and scalar (num_a,) with `l1_montel`.

    Args:
        filter: with the same constraint. For `"RTF"` with `trunc_len`, the original's, since its numerators are those
            of the aliased kernel. For `"RTF2"` without.
        state_dict, prefix: see the module.
        variant: the class of the original. `"RTF2"` has true numerators that start at lag 0, where ours start at lag 1:
            b(z) / a(z) z = b_1 + ((b_2 - b_1 a_1) z^-1 + ... + (0 - b_1 a_N) z^-N) / a(z), so b_1 goes to h_0.
    """
    source = _Source(filter, RTFFilter, state_dict, prefix)
    D, N, num_a = filter.channels, filter.order, filter.num_a
    if variant not in ("RTF", "RTF2"):
        raise ValueError(f"variant must be RTF or RTF2, got {variant!r}")
    if (variant == "RTF") != (filter.max_length is not None):
        needs = "trunc_len" if variant == "RTF" else "no trunc_len"
        raise ValueError(f"{variant} needs a filter with {needs}")
    a, b = source.get("ab", num_a + D, N).split([num_a, D])
    h_0 = source.get("h_0", D)
    if filter.scalar is not None:
        source.put("scalar", source.get("scalar", num_a))
    elif "scalar" in source:
        raise ValueError(f"the state dict has {prefix}scalar, so the filter needs constraint='l1_montel'")
    if variant == "RTF2":
        effective = a
        if filter.scalar is not None:
            scalar = source.get("scalar", num_a)
            effective = a / (a.abs().sum(-1) + scalar.abs() + 1e-6)[:, None]
        first = b[:, :1]
        later = torch.cat([b[:, 1:], torch.zeros_like(first)], dim=-1)
        b = later - first * effective.repeat_interleave(D // num_a, dim=0)
        h_0 = h_0 + first[:, 0]
    source.put("a", a)
    source.put("b", b)
    source.put("h_0", h_0)
    source.finish()


def _complex(pairs: Tensor) -> Tensor:
    return torch.view_as_complex(pairs.contiguous())
