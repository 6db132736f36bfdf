"""Who takes part in the benchmark of `fft_conv` on a CPU, besides ours: torch.fft, julius, fft-conv-pytorch, scipy."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import fft_conv_pytorch
    import julius
    import scipy.fft
    import scipy.signal
except ImportError as error:
    raise ImportError(f"this benchmark needs {error.name}: pip install 'longconv[bench]'") from error

# fft-conv-pytorch indexes in a way that PyTorch warns of, at its first call.
warnings.filterwarnings("ignore", "Using a non-tuple sequence for multidimensional indexing", UserWarning)


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


def scipy_conv(u: Tensor, k: Tensor) -> Tensor:
    """`scipy.signal.fftconvolve` along time, with as many threads as torch has."""
    with scipy.fft.set_workers(torch.get_num_threads()):
        y = scipy.signal.fftconvolve(u.to(k.dtype).numpy(), k[None].numpy(), axes=-1)
    return torch.from_numpy(y[..., : u.shape[-1]]).to(u.dtype)


#: By name, those that autograd goes through.
DIFFERENTIABLE = {
    "torch rfft": _torch_rfft,
    "torch fft": _torch_fft,
    "julius": _julius,
    "fft-conv-pytorch": _fft_conv_pytorch,
}
