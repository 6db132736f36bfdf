"""Long depthwise convolution by FFT: `fft_conv`.

    reference.py  the definition in float64             online.py    one sample at a time: `OnlineConv`
    dispatch.py   which way a call goes                 stream.py    in chunks: `fft_conv_chunk`
    native/       rows in C, on a CPU
    blocked.py    whole rows, in cache-sized blocks     conv2d.py    images: `fft_conv2d`
    overlap.py    few taps (halo.py, direct.py)         sparse.py    zeros in the spectrum (mask.py)
    packed.py     sequences of different lengths        spectral*.py what the last two share
    plan.py       transforms, and the choice of one     matmul.py    in real matrix products, for export
    fft.py        FFTs whose set-up is kept             checks.py, transforms.py: what all share
    op.py         the PyTorch operator              monarch/     Triton kernels

Imports torch only, and triton where it is used.
"""

from torch import Tensor

from .checks import check_companions, check_rows
from .dispatch import compiled, on_matrix_units
from .op import conv
from .packed import boundaries, check_cu_seqlens
from .reference import fft_conv_reference

IMPLEMENTATIONS = ("auto", "native", "torch", "reference", "triton")


def fft_conv(
    u: Tensor,
    k: Tensor,
    *,
    skip: Tensor | None = None,
    k_reverse: Tensor | None = None,
    circular: bool = False,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Long depthwise convolution with optional gates, skip connection and anti-causal taps.

    With ``v = pre_gate * u``::

        y[b,d,t] = post_gate[b,d,t] * (  sum_{s=0}^{K-1}   k[d,s]           v[b,d,t-s]
                                       + sum_{s=1}^{K'}    k_reverse[d,s-1] v[b,d,t+s]
                                       + skip[d] v[b,d,t] )

    where v is zero outside 0 ... L-1: causal unless `k_reverse` is given, and lag 0 is counted once. Without gates,
    skip and `k_reverse` it is equivalent to ``irfft(rfft(u, 2L) * rfft(k, 2L), 2L)[..., :L]``, the FFT convolution of
    Hyena (Poli et al., 2023, section 3.3), which it computes in blocks that stay in cache.

    Args:
        u: input (B, D, L), floating point, any strides; L >= 1.
        k: causal taps (D, K), K >= 1, lag 0 first; K may exceed L.
        skip: (D,) weight of the input itself.
        k_reverse: anti-causal taps (D, K'), lag -1 first.
        circular: indices wrap modulo L (also for K > L). Otherwise nothing wraps.
        pre_gate: (B, D, L), multiplies the input.
        post_gate: (B, D, L), multiplies the output.
        cu_seqlens: (N+1,) int32 or int64, 0 = c_0 <= c_1 <= ... <= c_N = L: row 0 of u (B = 1) holds N sequences, the
            samples c_n ... c_{n+1} - 1, which do not see each other; with `circular` each wraps at its own length.
        impl: "native" (C, compiled at its first use; what "auto" takes on a CPU with a C compiler, unless a tensor is
            float64, a gate not of u's dtype, or the convolution circular), "torch" (PyTorch's operators), "triton"
            (matrix products in half precision with float32 sums, or in float32; what "auto" takes on a GPU, unless a
            tensor is float64), "reference" (float64, differentiable by autograd).

    Returns:
        y (B, D, L) of u's dtype, contiguous. Arithmetic is float32, or float64 if u or k is; that of "triton" is in u's
        dtype with sums in float32. Under autocast u and the gates take the autocast dtype and filters keep theirs.

    Raises:
        ValueError: naming the argument whose shape, device or value does not fit, or why there is no `impl`.
        TypeError: for a tensor that is not floating point.
    """
    check_rows(u, k)
    check_companions(u, k, skip, pre_gate, post_gate, k_reverse)
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl must be one of {', '.join(IMPLEMENTATIONS)}; got {impl!r}")
    if impl == "triton":
        on_matrix_units(impl, u, k, skip, k_reverse, pre_gate, post_gate)
    if impl == "native":
        compiled(impl, u, (k, skip, k_reverse), (pre_gate, post_gate), circular)
    if cu_seqlens is not None:
        check_cu_seqlens(cu_seqlens, u)
    if impl == "reference":
        if cu_seqlens is not None:
            boundaries(cu_seqlens, u)
        return fft_conv_reference(
            u,
            k,
            skip=skip,
            k_reverse=k_reverse,
            circular=circular,
            pre_gate=pre_gate,
            post_gate=post_gate,
            cu_seqlens=cu_seqlens,
        )
    return conv(u, k, skip, k_reverse, circular, pre_gate, post_gate, cu_seqlens, impl)


__all__ = ["fft_conv", "fft_conv_reference"]
