"""Long convolution against torch.fft, scipy, julius and fft-conv-pytorch: `longconv bench fftconv`."""

import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longconv.functional import fft_conv
from longconv.kernels.fftconv import fft_conv_reference

from .harness import Case, Implementation, compare
from .report import Row, Shape, append_rows, default_output, plot, print_table

try:
    import fft_conv_pytorch
    import julius
    import scipy.fft
    import scipy.signal
    from rich.console import Console
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error


# fft-conv-pytorch indexes in a way that PyTorch warns of, at its first call.
warnings.filterwarnings("ignore", "Using a non-tuple sequence for multidimensional indexing", UserWarning)


def run(
    lengths: tuple[int, ...] = (256, 1024, 4096, 16384, 65536, 262144, 1048576),
    taps: tuple[int, ...] = (0, 1024, 64),
    elements: int = 2**21,
    batch: int | None = None,
    dtype: Literal["float32", "float64", "float16", "bfloat16"] = "float32",
    repeats: int = 20,
    threads: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    fresh: bool = False,
    memory: bool = True,
    output: Path | None = None,
) -> list[Row]:
    """Time the causal long convolution of u (B, D, L) with filters k (D, K), ours and others', forward and backward.

    All run interleaved in one process after a warm-up. An implementation whose output or gradients differ from the
    float64 reference by more than the dtype's tolerance is not timed. Prints a table, appends its rows to a CSV file
    and draws a PNG beside it.

    Args:
        lengths: sequence lengths L.
        taps: filter lengths K; 0 for filters as long as the sequence. A K that is not below L is left out.
        elements: about B * D * L, which decides how many channels there are; at least one.
        batch: B; by default 8, or less where there would be fewer channels than batch rows.
        dtype: of u and the output. Filters are float32, or float64 if u is.
        repeats: timed calls of each implementation.
        threads: CPU threads; by default what torch chooses.
        device: "auto" takes a GPU if there is one.
        fresh: give freed memory back to the system before every timed call, so that each call has to get its own anew,
            as in training with changing shapes. Otherwise calls may reuse what earlier ones left behind.
        memory: measure peak memory too, each implementation in a process of its own.
        output: the CSV file. By default experiments/benchmarks/results/fftconv.csv of a source checkout, elsewhere
            longconv-bench-fftconv.csv in the current folder.

    Returns:
        A row for every length, mode and implementation.

    Raises:
        ValueError: a number below 1, "cuda" without a GPU, or an existing CSV file with other columns.
        DisagreementError: ours is wrong.
    """
    for name, value in (("elements", elements), ("batch", batch), ("repeats", repeats), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lengths must be one or more numbers from 1 up, got {lengths}")
    if min(taps, default=-1) < 0:
        raise ValueError(f"taps must be one or more numbers from 0 up, got {taps}")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': torch finds no GPU here")
    console = Console()
    whole = [choose_shape(L, elements, batch) for L in sorted(set(lengths))]
    console.print("Shapes (B, D, L): " + ", ".join(f"({s.B}, {s.D}, {s.L})" for s in whole))
    shapes = [s if K == 0 else s._replace(K=K) for K in dict.fromkeys(taps) for s in whole if s.L > K]
    if not shapes:
        raise ValueError(f"taps: no filter of {taps} taps is shorter than a sequence of {lengths}")
    rows = compare(
        __name__,
        shapes,
        dtype=dtype,
        device=device,
        repeats=repeats,
        threads=threads,
        fresh=fresh,
        memory=memory,
        console=console,
    )
    print_table(rows, console)
    output = default_output("fftconv") if output is None else output
    append_rows(output, rows)
    plot(rows, output.with_suffix(".png"))
    console.print(f"{len(rows)} rows appended to {output}; drawn in {output.with_suffix('.png')}", soft_wrap=True)
    return rows


def choose_shape(L: int, elements: int, batch: int | None) -> Shape:
    """Sizes with B * D * L about `elements`: 8 batch rows, halved while there are fewer channels than that."""
    rows = max(1, elements // L)
    B = batch or 8
    while batch is None and B > 1 and rows < B * B:
        B //= 2
    return Shape(B, max(1, rows // B), L, L)


def implementations(device: str) -> list[Implementation]:
    """Ours and the others that run on `device`, "cpu" or "cuda"."""
    everywhere = [
        Implementation("longconv", fft_conv),
        Implementation("torch rfft", _torch_rfft),
        Implementation("torch fft", _torch_fft),
        Implementation("julius", _julius),
        Implementation("fft-conv-pytorch", _fft_conv_pytorch),
    ]
    return everywhere + ([Implementation("scipy", _scipy, differentiable=False)] if device == "cpu" else [])


def make_case(shape: Shape, dtype: torch.dtype, device: str) -> Case:
    """Normally distributed u (B, D, L), k (D, K) and incoming gradient, the same at every call."""
    B, D, L, K = shape
    generator = torch.Generator().manual_seed(0)
    u, dy, k = (torch.randn(size, generator=generator) for size in ((B, D, L), (B, D, L), (D, K)))
    filter_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = (u.to(device, dtype), k.to(device, filter_dtype))
    return Case(shape, inputs, dy.to(device, dtype), fft_conv_reference)


def _torch_rfft(u: Tensor, k: Tensor) -> Tensor:
    """The usual three lines. FFTs take no half precision on a CPU, so all compute in the dtype of k."""
    L, n = u.shape[-1], u.shape[-1] + k.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(u.to(k.dtype), n) * torch.fft.rfft(k, n), n)[..., :L].to(u.dtype)


def _torch_fft(u: Tensor, k: Tensor) -> Tensor:
    """With complex FFTs, as in the baseline that FlashFFTConv's published speed-ups refer to."""
    L, n = u.shape[-1], u.shape[-1] + k.shape[-1]
    product = torch.fft.fft(u.to(k.dtype), n) * torch.fft.fft(k, n)
    return torch.fft.ifft(product, n).real[..., :L].to(u.dtype)


def _julius(u: Tensor, k: Tensor) -> Tensor:
    """`julius.fft_conv1d` has no groups, so it is mapped over the channels: several times faster than a loop.

    It correlates; the padding by K instead of K - 1 zeros gives its FFT the fast length L + K.
    """

    def one_channel(x_BT: Tensor, taps_K: Tensor) -> Tensor:
        return julius.fft_conv1d(x_BT[:, None], taps_K[None, None])[:, 0]

    x = F.pad(u.to(k.dtype), (k.shape[-1], 0))
    return torch.vmap(one_channel, in_dims=(1, 0), out_dims=1)(x, k.flip(-1))[..., 1:].to(u.dtype)


def _fft_conv_pytorch(u: Tensor, k: Tensor) -> Tensor:
    """`fft_conv_pytorch.fft_conv` with a group for every channel. It correlates, as `torch.nn.functional.conv1d`."""
    x = F.pad(u.to(k.dtype), (k.shape[-1] - 1, 0))
    return fft_conv_pytorch.fft_conv(x, k.flip(-1)[:, None], groups=k.shape[0]).to(u.dtype)


def _scipy(u: Tensor, k: Tensor) -> Tensor:
    """`scipy.signal.fftconvolve` along time, with as many threads as torch has."""
    with scipy.fft.set_workers(torch.get_num_threads()):
        y = scipy.signal.fftconvolve(u.to(k.dtype).numpy(), k[None].numpy(), axes=-1)
    return torch.from_numpy(y[..., : u.shape[-1]]).to(u.dtype)
