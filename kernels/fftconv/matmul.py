"""`fft_conv` in real matrix products alone: what an exported graph holds in place of the operator.

Interchange formats (ONNX) know neither our operator nor complex numbers, and their Fourier transforms are slow or
missing. Here the right-angle transform of plan.py (read its docstring first) is written with real and imaginary parts
side by side and factored all the way down, n = N1 N2 ... Nm: each factor is a product with a small real matrix, so that
a row costs O(n n^(1/m)). Short kernels are a grouped `conv1d`.

Everything is a plain torch operation on shapes that may be symbolic; no branch depends on a symbolic size. Matrices are
computed in the graph from `arange` in float64, so that tracing finds no tensors from outside; whoever runs the graph
folds them into constants.
"""

import itertools
import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Kernels of up to this many taps, both sides together, are evaluated directly.
DIRECT_TAPS = 128
# Factors of a transform are multiples of STEP (a vector of a CPU), of at most MAX_FACTOR, and at most three.
STEP, MAX_FACTOR = 16, 256
# What a further factor costs besides its products, in multiply-adds per sample: twiddles, and a trip through memory.
FACTOR_OVERHEAD = 384


def fft_conv_matmul(
    u: Tensor,
    k: Tensor,
    skip: Tensor | None = None,
    k_reverse: Tensor | None = None,
    circular: bool = False,
    pre_gate: Tensor | None = None,
    post_gate: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    impl: str = "auto",
    *,
    max_length: int | None = None,
) -> Tensor:
    """Evaluate `fft_conv` (see there; it checks the shapes) without complex numbers and without a custom operator.

    Args:
        u, k, skip, k_reverse, circular, pre_gate, post_gate: as in `fft_conv`, in the order of the operator.
        cu_seqlens: must be None.
        impl: taken because the operator has it; this is yet another way.
        max_length: with a symbolic length L and a long kernel, the largest L there will be; every call costs as much
            as that one.

    Returns:
        y (B, D, L) of u's dtype.

    Raises:
        ValueError: packed sequences; or L is symbolic, and the convolution is circular, or long without max_length.
    """
    if cu_seqlens is not None:
        raise ValueError("cu_seqlens: packed sequences have no form in matrix products; give them as rows of u")
    L, dtype = u.shape[-1], torch.float64 if torch.float64 in (u.dtype, k.dtype) else torch.float32
    v = u.to(dtype) if pre_gate is None else u.to(dtype) * pre_gate.to(dtype)
    k, k_reverse = k.to(dtype), None if k_reverse is None else k_reverse.to(dtype)
    if isinstance(L, int):
        max_length = L
        k, k_reverse = _circular_taps(k, k_reverse, L) if circular else _reaching_taps(k, k_reverse, L)
    elif circular:
        raise ValueError("a circular convolution wraps at its length, which must be fixed")
    if _is_short(k, k_reverse) and dtype == torch.float32:  # ONNX runtimes have no float64 convolution
        y = _direct(v, k, k_reverse)
    elif max_length is None:
        raise ValueError("a long convolution of dynamic length needs max_length")
    else:
        y = _by_matrices(v, k, k_reverse, max_length)
    if skip is not None:
        y = y + skip.to(dtype)[:, None] * v
    return (y if post_gate is None else y * post_gate.to(dtype)).to(u.dtype)


def _reaching_taps(k: Tensor, k_reverse: Tensor | None, L: int) -> tuple[Tensor, Tensor | None]:
    """Leave out taps that reach no sample; a side without taps is None."""
    if k_reverse is not None:
        k_reverse = k_reverse[:, : L - 1] if min(k_reverse.shape[-1], L - 1) > 0 else None
    return k[:, :L], k_reverse


def _circular_taps(k: Tensor, k_reverse: Tensor | None, L: int) -> tuple[Tensor, Tensor | None]:
    """Two-sided taps whose linear convolution with L samples is the circular one: lag s - L beside every lag s > 0."""
    kernel = _fold(k, L)
    if k_reverse is not None:
        back = _fold(F.pad(k_reverse, (1, 0)), L)  # lag -s at index s, to go to L - s
        kernel = kernel + torch.cat([back[:, :1], back[:, 1:].flip(-1)], dim=-1)
    return kernel, kernel[:, 1:].flip(-1) if L > 1 else None


def _fold(taps: Tensor, L: int) -> Tensor:
    """Sum taps (D, K) whose lags are equal modulo L: (D, L)."""
    return F.pad(taps, (0, -taps.shape[-1] % L)).view(taps.shape[0], -1, L).sum(1)


def _is_short(k: Tensor, k_reverse: Tensor | None) -> bool:
    sizes = [k.shape[-1], 0 if k_reverse is None else k_reverse.shape[-1]]
    return all(isinstance(size, int) for size in sizes) and sum(sizes) <= DIRECT_TAPS


def _direct(v: Tensor, k: Tensor, k_reverse: Tensor | None) -> Tensor:
    taps, ahead = k.flip(-1), 0
    if k_reverse is not None:
        taps, ahead = torch.cat([taps, k_reverse], dim=-1), k_reverse.shape[-1]
        # conv1d correlates: the tap at the highest index multiplies the sample furthest ahead.
    return F.conv1d(F.pad(v, (k.shape[-1] - 1, ahead)), taps[:, None], groups=k.shape[0])


def _by_matrices(v: Tensor, k: Tensor, k_reverse: Tensor | None, longest: int) -> Tensor:
    transform = MatrixTransform(factors(longest), v.dtype, v.device)
    re, im = transform.forward(v)
    k_re, k_im = transform.forward(k)
    if k_reverse is not None:  # a tap at lag -s has the conjugate phase of one at lag s
        r_re, r_im = transform.forward(F.pad(k_reverse, (1, 0)))
        k_re, k_im = k_re + r_re, k_im - r_im
    y = transform.inverse(re * k_re - im * k_im, re * k_im + im * k_re)
    return y[..., : v.shape[-1]]


@lru_cache(maxsize=1024)
def factors(length: int) -> tuple[int, ...]:
    """Return (N1, ..., Nm) whose product is at least `length`, for the least work that `MatrixTransform` can do it in.

    Raises:
        ValueError: length > MAX_FACTOR^3.
    """
    if length > MAX_FACTOR**3:
        raise ValueError(f"length must be at most {MAX_FACTOR}^3 = {MAX_FACTOR**3}, got {length}")
    inner = range(STEP, MAX_FACTOR + 1, STEP)
    candidates = [
        (-(-length // math.prod(rest)), *rest) for m in range(3) for rest in itertools.product(inner, repeat=m)
    ]
    return min((c for c in candidates if c[0] <= MAX_FACTOR), key=_cost)


def _cost(sizes: tuple[int, ...]) -> int:
    """Multiply-adds for a row, there and back: the outer matrix meets real rows, the others complex ones."""
    return math.prod(sizes) * (4 * sizes[0] + sum(8 * size for size in sizes[1:]) + FACTOR_OVERHEAD * len(sizes))


class MatrixTransform:
    """Right-angle transform of n = N1 ... Nm points, by matrix products on real and imaginary parts.

    One factor at a time. With t = t1 R + t2 and f = f1 + N f2, where N R is the number of points still to transform:
    the DFT over t1, a twiddle exp(-2 pi i t2 f1 / (N R)), and the same again for R points. The first factor also
    carries the turn psi^t = exp(-i pi t / 2n) that makes the angle right. Spectra stay in the order in which they come
    out, (..., N1, ..., Nm).
    """

    def __init__(self, sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.sizes, self.n, self.dtype = sizes, math.prod(sizes), dtype
        self.matrices: list[tuple[Tensor, Tensor]] = []  # (N, N), the same read either way but for the turn
        self.twiddles: list[tuple[Tensor, Tensor]] = []  # (N, R)
        rest = self.n
        for stage, size in enumerate(sizes):
            points, rest = rest, rest // size
            turn = 0.25 if stage == 0 else 0.0  # psi^t is a quarter of a turn over n points
            near, far = torch.arange(size, device=device), torch.arange(rest, device=device)
            f = near[:, None]
            self.matrices.append(self._circle(f * near % size, turn * near.double(), size))
            self.twiddles.append(self._circle(f * far, turn * far.double(), points))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Transform x (..., m) real, m <= n, zero-extended: (..., N1, ..., Nm), real and imaginary part."""
        re, im, rest = F.pad(x, (0, self.n - x.shape[-1])), None, self.n
        for size, (cos, sin), twiddle in zip(self.sizes, self.matrices, self.twiddles, strict=True):
            rest //= size
            shape = (*re.shape[:-1], size, rest)
            matrix = torch.cat([cos, sin])  # (2N, N) for real rows, (2N, 2N) for complex ones
            z = re.reshape(shape)
            if im is not None:
                matrix = torch.cat([matrix, torch.cat([-sin, cos])], dim=1)
                z = torch.cat([z, im.reshape(shape)], dim=-2)
            z = _product(matrix, z)
            re, im = z[..., :size, :], z[..., size:, :]
            if rest > 1:
                re, im = _times(re, im, *twiddle)
        assert im is not None
        return re.squeeze(-1), im.squeeze(-1)

    def inverse(self, re: Tensor, im: Tensor) -> Tensor:
        """Undo `forward`: the n samples (..., n) of the real part."""
        rest, re, im = 1, re[..., None], im[..., None]
        stages = list(zip(self.sizes, self.matrices, self.twiddles, strict=True))
        for stage, (size, (cos, sin), (t_cos, t_sin)) in reversed(list(enumerate(stages))):
            if rest > 1:
                re, im = _times(re, im, t_cos, -t_sin)
            z = torch.cat([re, im], dim=-2)
            matrix = torch.cat([cos.mT, sin.mT], dim=1) / size  # conjugate and transposed: the real part
            rest *= size
            if stage == 0:
                return _product(matrix, z).flatten(-2)
            matrix = torch.cat([matrix, torch.cat([-sin.mT, cos.mT], dim=1) / size])
            z = _product(matrix, z)
            re, im = z[..., :size, :].flatten(-2), z[..., size:, :].flatten(-2)
            shape = (*re.shape[:-2], self.sizes[stage - 1], rest)
            re, im = re.reshape(shape), im.reshape(shape)
        raise AssertionError("a transform has at least one factor")

    def _circle(self, steps: Tensor, more: Tensor, points: int) -> tuple[Tensor, Tensor]:
        """exp(-2 pi i (steps + more) / points), in float64 and then rounded; `steps` are integers."""
        angle = (steps.double() + more) * (-2 * math.pi / points)
        return angle.cos().to(self.dtype), angle.sin().to(self.dtype)


def _product(matrix: Tensor, z: Tensor) -> Tensor:
    """matrix (P, N) times z (..., N, R), as one large product where R = 1."""
    return (z.squeeze(-1) @ matrix.mT)[..., None] if z.shape[-1] == 1 else matrix @ z


def _times(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """(a + ib)(c + id), as a pair."""
    return a * c - b * d, a * d + b * c
