"""Which bins of a filter's spectrum a frequency-sparse convolution keeps: `SpectrumMask`, and the choice of one.

Frequency-sparse convolution (Fu et al., FlashFFTConv, 2023, section 3.3 and its appendix on frequency-sparse patterns):
the filter's spectrum, in the order (N1, N2, ...) in which a factored FFT produces it, is set to zero beyond a bound in
each of those dimensions, so that whole blocks of the transforms need not be computed.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SpectrumMask:
    """The bins of an n-point DFT that are kept, as bounds in factored order.

    Bin f = f1 + N1 (f2 + N2 (f3 + N3 f4)) with digits 0 <= fi < Ni is kept where every digit fi < kept[i]: the order of
    a decimation-in-frequency FFT, whose outermost DFT, over stretches of n / N1 samples, gives f1 = f mod N1.

    - A bound on the first factor keeps n / N1 teeth of a comb, runs of kept[0] bins. It is what saves time. In time it
      adds copies of the filter at multiples of n / N1 samples and leaves the fraction kept[0] / N1 in place.
    - A bound on the last factor alone keeps the lowest bins, f < n kept[-1] / N[-1]. It saves no transforms.

    Signals are real, so the real part is taken at the end, which symmetrises the mask m: the filter's response is
    multiplied by ``(m[f] + m[-f]) / 2``, one half where only one of the two is kept. With `symmetric` the mirror images
    of all kept bins are kept as well, as masking half a spectrum (rfft) does, and the factor is 0 or 1.

    Attributes:
        n: points of the DFT.
        factors: (N1, N2, ...) with product n, one or more.
        kept: 1 <= kept[i] <= factors[i].
        symmetric: whether the mirror image n - f of every kept bin f is kept too.

    Raises:
        ValueError: naming the attribute that does not fit.
    """

    n: int
    factors: tuple[int, ...]
    kept: tuple[int, ...]
    symmetric: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", tuple(self.factors))
        object.__setattr__(self, "kept", tuple(self.kept))
        if not self.factors or any(factor < 1 for factor in self.factors) or math.prod(self.factors) != self.n:
            raise ValueError(f"factors must be positive integers with product n = {self.n}; got {self.factors}")
        if len(self.kept) != len(self.factors) or not all(
            1 <= bound <= factor for bound, factor in zip(self.kept, self.factors, strict=True)
        ):
            raise ValueError(f"kept must have 1 <= kept[i] <= factors[i], factors {self.factors}; got {self.kept}")

    def bins(self) -> Tensor:
        """Return (n,) bool: which of the bins 0 ... n - 1 are kept."""
        inside = torch.zeros(self.factors[::-1], dtype=torch.bool)  # the last digit is the most significant
        inside[tuple(slice(bound) for bound in reversed(self.kept))] = True
        kept = inside.flatten()
        return kept | _mirrored(kept) if self.symmetric else kept

    def response(self) -> Tensor:
        """Return (n,) float64: what multiplies the response of a real filter, (m[f] + m[-f]) / 2."""
        kept = self.bins().double()
        return (kept + _mirrored(kept)) / 2

    @property
    def sparsity(self) -> float:
        """Fraction of the n bins that are not kept."""
        kept = math.prod(self.kept)
        if self.symmetric:
            kept = 2 * kept - _own_mirror_images(self.factors, self.kept)
        return 1 - kept / self.n


def _mirrored(x: Tensor) -> Tensor:
    """x[-f] for every bin f."""
    return x.roll(-1).flip(0)


def _own_mirror_images(factors: Sequence[int], kept: Sequence[int]) -> int:
    """How many of the kept bins have a mirror image that is kept by the bounds alone."""
    # Digits of -f: zeros up to the first digit i of f that is not zero, then Ni - fi, then Nj - 1 - fj.
    total = 1
    for i, (factor, bound) in enumerate(zip(factors, kept, strict=True)):
        behind = math.prod(max(0, 2 * b - f) for f, b in zip(factors[i + 1 :], kept[i + 1 :], strict=True))
        total += max(0, 2 * bound - 1 - factor) * behind
    return total


def choose_mask(
    k: Tensor,
    sparsity: float,
    n: int,
    *,
    factors: Iterable[Sequence[int]] | None = None,
    symmetric: bool | None = None,
    fast: bool = False,
) -> tuple[SpectrumMask, float]:
    """Choose the mask of at least the given sparsity that changes a filter, or a bank of filters, the least.

    All bounds of all `factors` are tried. The change is ``||k_masked - k|| / ||k||`` of the filters' n-point circular
    responses (all n samples, over the whole bank: a bank gets one mask in common), from their spectra by Parseval.

    Args:
        k: filter (K,) or bank of filters (D, K), K <= n, floating point.
        sparsity: fraction of bins to leave out, 0 <= sparsity < 1.
        n: points of the DFT. For `fft_conv_sparse`: at least L + K - 1, or L if circular.
        factors: factorisations (N1, N2, ...) of n to choose from. Default: those into two with N1 <= 128, and (n,).
        symmetric: whether masks keep mirror images; None tries both.
        fast: only masks with a bound on the first of several factors alone, which save time. They are for filters
            trained with them: one no longer than n / N1 has the same energy at every f mod N1, so that a symmetric mask
            changes it by exactly the square root of its sparsity, whatever the filter.

    Returns:
        the mask, and the change it makes. Of masks that change the filters equally, the sparsest.

    Raises:
        ValueError: naming the argument that does not fit, or if no mask is that sparse.
        TypeError: if k is not floating point.
    """
    if not k.is_floating_point():
        raise TypeError(f"k must be floating point; got {k.dtype}")
    if k.dim() not in (1, 2) or k.numel() == 0 or k.shape[-1] > n:
        raise ValueError(f"k must have shape (K,) or (D, K) with 1 <= K <= n = {n}; got {tuple(k.shape)}")
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be at least 0 and less than 1; got {sparsity}")
    spectrum = torch.fft.fft(k.detach().double().cpu().view(-1, k.shape[-1]), n)
    energy = spectrum.abs().square().sum(0)
    total = energy.sum().item()
    if total == 0:
        raise ValueError("k must not be zero everywhere")
    candidates = _splits(n) if factors is None else [tuple(f) for f in factors]
    if fast:  # a single factor leaves nothing to factor out
        candidates = [f for f in candidates if len(f) > 1]
    best: tuple[float, float, SpectrumMask] | None = None
    for candidate in candidates:
        full = SpectrumMask(n, candidate, candidate)  # raises if these are not factors of n
        for mirrored in (False, True) if symmetric is None else (symmetric,):
            found = _least_change(energy / total, full, sparsity, mirrored, fast)
            if found is None:
                continue
            mask = SpectrumMask(n, candidate, found[1], mirrored)
            entry = (round(found[0], 12), -mask.sparsity, mask)
            if best is None or entry[:2] < best[:2]:
                best = entry
    if best is None:
        raise ValueError(f"sparsity: no mask with factors {candidates} leaves out {sparsity:.3g} of {n} bins")
    mask = best[2]
    lost = ((1 - mask.response()).square() * energy).sum().item() / total
    return mask, math.sqrt(lost)


def _splits(n: int) -> list[tuple[int, ...]]:
    return [(n,), *((d, n // d) for d in range(2, min(n // 2, 128) + 1) if n % d == 0)]


def _least_change(
    energy: Tensor, full: SpectrumMask, sparsity: float, symmetric: bool, fast: bool
) -> tuple[float, tuple[int, ...]] | None:
    """The squared change by the best bounds for one factorisation, and these bounds; None if none is sparse enough.

    `energy` (n,) is that of the filters by bin, with sum 1. The energy of a box of bins is a difference of cumulative
    sums, so that all bounds, as many as there are bins, take little more than one pass over the spectrum.
    """
    factors, p = full.factors, len(full.factors)
    box = energy.view(factors[::-1]).permute(*reversed(range(p)))  # [f1, f2, ...]
    sums = [torch.nn.functional.pad(x, (1, 0) * p) for x in (box, torch.ones_like(box))]
    for dim in range(p):
        sums = [x.cumsum(dim) for x in sums]
    tried = [torch.arange(1, N + 1) if dim == 0 or not fast else torch.tensor([N]) for dim, N in enumerate(factors)]
    bounds = [b.view([-1 if d == dim else 1 for d in range(p)]) for dim, b in enumerate(tried)]

    def inside(of: Tensor, low: Sequence[Tensor], high: Sequence[Tensor]) -> Tensor:
        """Sum over the boxes low <= f < high, zero where one is empty."""
        result = torch.zeros(())
        for corner in range(2**p):
            at = [low[d] if corner >> d & 1 else torch.maximum(high[d], low[d]) for d in range(p)]
            result = result + (-1) ** corner.bit_count() * of[tuple(at)]
        return result

    zero, one = torch.zeros((1,) * p, dtype=torch.long), torch.ones((1,) * p, dtype=torch.long)
    kept, kept_bins = (inside(x, [zero] * p, bounds) for x in sums)
    # Kept bins whose mirror image is kept: see `_own_mirror_images`.
    both, both_bins = (inside(x, [zero] * p, [one] * p) for x in sums)
    for i in range(p):
        low = [zero] * i + [factors[i] - bounds[i] + 1] + [factors[j] - bounds[j] for j in range(i + 1, p)]
        high = [one] * i + bounds[i:]
        both, both_bins = (found + inside(x, low, high) for found, x in zip((both, both_bins), sums, strict=True))
    if symmetric:
        change, count = 1 - (2 * kept - both), 2 * kept_bins - both_bins
    else:  # bins kept on one side only count half: (1 - 1/2)^2 of their energy is lost, on either side
        change, count = 1 - (1.5 * kept - 0.5 * both), kept_bins
    change = change.expand(torch.broadcast_shapes(change.shape, count.shape)).clamp_min(0)
    change = change.masked_fill(count > (1 - sparsity) * full.n + 1e-6, math.inf)
    least = change.min()
    if least.isinf():
        return None
    # Of equals the sparsest.
    equal = torch.where(change <= least + 1e-12, count.expand_as(change), math.inf)
    flat = int(equal.argmin())
    index = torch.unravel_index(torch.tensor(flat), change.shape)
    return change.flatten()[flat].item(), tuple(int(tried[d][i]) for d, i in enumerate(index))
