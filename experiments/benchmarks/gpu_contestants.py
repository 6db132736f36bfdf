"""Who takes part in the benchmark of `fft_conv` on a GPU: ours, torch.fft, and packages that are installed.

FlashFFTConv       `flashfftconv.FlashFFTConv`, github.com/HazyResearch/flash-fft-conv: circular at its FFT size, causal
                   for inputs of half of it; float16 and bfloat16; both gates or none
cuDNN              `cudnn.ops.fft_causal_conv1d` of nvidia-cudnn-frontend, with cuDNN 9.26 or newer: causal; filters
                   of the input's dtype
subquadratic-ops   `subquadratic_ops_torch.fft_causal_conv1d`, subquadratic-ops-torch-cu12 or -cu13: likewise
"""

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from longconv.functional import fft_conv

from .gpu_points import PUBLISHED_SIZES, Point

# Takes u (B, D, L), k (D, K) and, if the point is gated, pre_gate and post_gate (B, D, L); returns y (B, D, L).
Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Contestant:
    """One of those that are compared.

    Attributes:
        name: as it appears in the table, the CSV file and the plot.
        prepare: gives what computes a point on a device, or None if it does not take part there.
    """

    name: str
    prepare: Callable[[Point, torch.device], Call | None]


#: The names that the table of targets looks for.
OURS, RFFT, FFT = "longconv triton", "torch rfft", "torch fft"


def contestants() -> list[Contestant]:
    """Everyone, ours first."""
    return [
        Contestant(OURS, functools.partial(_longconv, "triton")),
        Contestant("longconv torch", functools.partial(_longconv, "torch")),
        Contestant(RFFT, functools.partial(_torch, _rfft_conv)),
        Contestant(FFT, functools.partial(_torch, _complex_fft_conv)),
        Contestant(f"{RFFT} compiled", functools.partial(_compiled, _rfft_conv)),
        Contestant(f"{FFT} compiled", functools.partial(_compiled, _complex_fft_conv)),
        Contestant("FlashFFTConv", _flashfftconv),
        Contestant("cuDNN", _cudnn),
        Contestant("subquadratic-ops", _subquadratic_ops),
    ]


def _longconv(impl: str, point: Point, device: torch.device) -> Call | None:
    if impl == "torch" and not point.headline:  # what runs where Triton does not: enough to see it once
        return None

    def call(u: Tensor, k: Tensor, pre: Tensor | None = None, post: Tensor | None = None) -> Tensor:
        return fft_conv(u, k, circular=point.circular, pre_gate=pre, post_gate=post, impl=impl)

    return call


def _torch(conv: Callable[..., Tensor], point: Point, device: torch.device) -> Call:
    return functools.partial(conv, point.fft_size)


def _compiled(conv: Callable[..., Tensor], point: Point, device: torch.device) -> Call | None:
    """Compilation takes seconds at every size, so only the published table has it."""
    if not (point.headline and point.fft_size in PUBLISHED_SIZES):
        return None
    compiled = torch.compile(functools.partial(conv, point.fft_size), dynamic=False)

    def call(*tensors: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*complex operators", UserWarning)  # it leaves those as they are
            return compiled(*tensors)

    return call


def _rfft_conv(n: int, u: Tensor, k: Tensor, pre: Tensor | None = None, post: Tensor | None = None) -> Tensor:
    """The usual lines, with real FFTs of n points in float32."""
    v = u.float() if pre is None else u.float() * pre.float()
    y = torch.fft.irfft(torch.fft.rfft(v, n) * torch.fft.rfft(k, n), n)[..., : u.shape[-1]]
    return (y if post is None else y * post.float()).to(u.dtype).contiguous()


def _complex_fft_conv(n: int, u: Tensor, k: Tensor, pre: Tensor | None = None, post: Tensor | None = None) -> Tensor:
    """With complex FFTs of n points in float32: what FlashFFTConv's published speed-ups refer to."""
    v = u.float() if pre is None else u.float() * pre.float()
    y = torch.fft.ifft(torch.fft.fft(v, n) * torch.fft.fft(k, n), n).real[..., : u.shape[-1]]
    return (y if post is None else y * post.float()).to(u.dtype).contiguous()


def _flashfftconv(point: Point, device: torch.device) -> Call | None:
    if importlib.util.find_spec("flashfftconv") is None or point.dtype == "float32":
        return None
    from flashfftconv import FlashFFTConv

    # A module in training mode: otherwise it keeps nothing for its backward pass, and fails there.
    return FlashFFTConv(point.fft_size, dtype=point.torch_dtype).to(device)


def _cudnn(point: Point, device: torch.device) -> Call | None:
    if importlib.util.find_spec("cudnn") is None or point.circular:
        return None
    from cudnn.ops import fft_causal_conv1d

    return functools.partial(_with_gates, fft_causal_conv1d)


def _subquadratic_ops(point: Point, device: torch.device) -> Call | None:
    if importlib.util.find_spec("subquadratic_ops_torch") is None or point.circular:
        return None
    from subquadratic_ops_torch.fft_causal_conv1d import fft_causal_conv1d

    return functools.partial(_with_gates, fft_causal_conv1d)


def _with_gates(conv: Call, u: Tensor, k: Tensor, pre: Tensor | None = None, post: Tensor | None = None) -> Tensor:
    y = conv(u if pre is None else u * pre, k.to(u.dtype))
    return y if post is None else y * post
