"""Poles one at a time: orthogonal matching pursuit over damped exponentials, for a bank of filters at once.

Each round takes the pole whose plane, spanned by Re lambda^t and Im lambda^t, holds most of what is left of the taps,
and refits all residues (Pati, Rezaiifar & Krishnaprasad 1993; with damped sinusoids: Goodwin & Vetterli 1999). A
subspace method spreads its poles over the strongest singular vectors; for rough filters, of slowly falling singular
values, the poles that are found here are the better start for a descent.

The dictionary is a grid of decay rates, and for each the frequencies of an FFT as long as the exponential lasts, so
that its size is that of a few transforms of the taps.

Shapes: D filters, M taps after lag 0, N modes found.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .bank import compact, widen
from .exponentials import Exponentials, Normal, padded

_LAST = 7.0  # an exponential counts as gone after so many time constants
_FASTEST = 0.7
_RATIO = 2.5  # between neighbouring decay rates
_OVERSAMPLING = 1  # of frequencies: finer grids make a better start, but after the descent no better fit
_BLOCK = 64  # filters at a time


def pursue(
    g: Tensor, order: Tensor, poles: Tensor | None = None, used: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Find `order` (D,) states' worth of poles for taps g (D, M) float64, beside poles (D, N) and used, if given.

    Returns all poles and used (D, N'), those given first, and the norm of the residual (D,).

    A conjugate pair takes two states; a real pole, or the last state of an odd order, one.
    """
    if poles is None or used is None:
        poles, used = torch.zeros(len(g), 0, dtype=torch.complex128, device=g.device), torch.zeros_like(g[:, :0]).bool()
    residual = torch.linalg.vector_norm(g, dim=-1)
    if len(g) == 0 or g.shape[1] == 0:
        return poles, used, residual
    dictionary = [_Rate.of(rate, g.shape[1], g.device) for rate in _rates(g.shape[1])]
    found = []
    for rows in torch.arange(len(g), device=g.device).split(_BLOCK):
        *block, residual[rows] = _pursue_block(g[rows], order[rows], poles[rows], used[rows], dictionary)
        found.append(block)
    width = max(block.shape[1] for block, _ in found)
    poles = torch.cat([widen(block, width) for block, _ in found])
    return poles, torch.cat([widen(block, width) for _, block in found]), residual


def _rates(taps: int) -> list[float]:
    slowest = 0.3 / taps
    count = max(2, math.ceil(math.log(_FASTEST / slowest) / math.log(_RATIO)))
    return [slowest * (_FASTEST / slowest) ** (i / (count - 1)) for i in range(count)]


class _Rate(NamedTuple):
    """One decay rate of the dictionary, with F frequencies from 0 to pi.

    `energy` (3, F): with x + i y = sum_t r_t (conj lambda)^t, the energy of r in the plane is
    energy[0] x^2 + energy[1] x y + energy[2] y^2.
    """

    radius: float
    window: Tensor
    size: int
    energy: Tensor

    @classmethod
    def of(cls, rate: float, taps: int, device: torch.device) -> "_Rate":
        length = min(taps, math.ceil(_LAST / rate))
        size = _OVERSAMPLING * (1 << max(1, (length - 1).bit_length()))
        window = torch.zeros(size, device=device)
        window[:length] = torch.exp(-rate * torch.arange(length, dtype=torch.float64, device=device))
        radius = math.exp(-rate)
        angle = 2 * math.pi / size * torch.arange(size // 2 + 1, dtype=torch.float64, device=device)
        # The Gram matrix of Re lambda^t and -Im lambda^t, from the sums of |lambda|^2t and lambda^2t.
        z = torch.polar(torch.full_like(angle, radius**2), 2 * angle)
        P, Q = (1 - radius ** (2 * length)) / (1 - radius**2), (1 - z**length) / (1 - z)
        a, b, c = 0.5 * (P + Q.real), 0.5 * (P - Q.real), -0.5 * Q.imag
        det = a * b - c * c
        plane = det > 1e-6 * P * P  # elsewhere the two columns are parallel, or one of them zero: a real pole
        det = torch.where(plane, det, 1.0)
        energy = torch.stack([torch.where(plane, b / det, 1 / a), -2 * c / det * plane, a / det * plane])
        # The FFT gives x + i y for lambda with a positive angle: y = -sum r Im lambda^t.
        return cls(radius, window, size, energy.float())

    def energies(self, r: Tensor) -> Tensor:
        """(D, F) of r (D, at least `size`) float32."""
        spectrum = torch.fft.rfft(r[:, : self.size] * self.window)
        x, y = spectrum.real, spectrum.imag
        return x * (self.energy[0] * x + self.energy[1] * y) + self.energy[2] * y * y


def _pursue_block(
    g: Tensor, order: Tensor, poles: Tensor, used: Tensor, dictionary: list[_Rate]
) -> tuple[Tensor, Tensor, Tensor]:
    """`pursue` for a few filters."""
    scale = torch.linalg.vector_norm(g, dim=-1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    poles, used = compact(poles, used)
    target = padded(g / scale)
    residues, left, states = torch.zeros_like(poles), target, order

    def refit(sweeps: int) -> tuple[Tensor, Tensor]:
        basis = Exponentials(poles, torch.cat([used, used & (poles.imag != 0)], dim=1), g.shape[1])
        normal = Normal.of(basis.sums(slopes=False)[0], basis.columns)
        return normal.fit(basis, target, widen(residues, poles.shape[1]), sweeps, left=left)

    # As long as the longest transform, so that none has to pad.
    rest = torch.zeros(len(g), max(target.shape[1], *(rate.size for rate in dictionary)), device=g.device)
    if poles.shape[1]:
        poles = torch.where(used, poles, 0.0)
        residues, left = refit(sweeps=2)
    while (states > 0).any():
        rest[:, : left.shape[1]] = left
        choice = _apart(_strongest(rest, states == 1, dictionary), poles)
        wanted = states > 0
        states = (states - torch.where(choice.imag == 0, 1, 2)).clamp(min=0)
        # Into the first free place of each row: all tables grow with the number of columns.
        place = torch.where(wanted, used.sum(-1), 0)
        width = max(poles.shape[1], int(place.max()) + 1)
        here = (torch.arange(width, device=g.device) == place[:, None]) & wanted[:, None]
        poles, used = torch.where(here, choice[:, None], widen(poles, width)), widen(used, width) | here
        # What is left is orthogonal to the columns before, up to rounding, so one sweep from there is enough.
        residues, left = refit(sweeps=1)
    return poles, used, torch.linalg.vector_norm(left, dim=-1) * scale[:, 0]


def _strongest(r: Tensor, last: Tensor, dictionary: list[_Rate]) -> Tensor:
    """The pole (D,) whose plane holds most of r (D, ·) float32, taps and zeros; a real one where one state is left."""
    best = torch.full_like(r[:, 0], -1.0)
    choice = torch.zeros(len(r), dtype=torch.complex128, device=r.device)
    for rate in dictionary:
        energies = rate.energies(r)
        if bool(last.any()):
            energies[:, 1:-1].masked_fill_(last[:, None], 0.0)
        energy, index = energies.max(dim=1)
        angle = index.double() * (2 * math.pi / rate.size)
        value = torch.polar(torch.full_like(angle, rate.radius), angle)
        value = torch.where((index == 0) | (index == rate.size // 2), value.real + 0j, value)
        choice = torch.where(energy > best, value, choice)
        best = torch.maximum(energy, best)
    return choice


def _apart(choice: Tensor, poles: Tensor) -> Tensor:
    """Move a choice that has been made before a little: two equal poles are one, and a descent cannot part them."""
    again = (poles == choice[:, None]).any(1)
    faster = torch.polar(choice.abs() ** 1.2, choice.angle() * 1.01)
    faster = torch.where(choice.imag == 0, choice.real.sign() * choice.abs() ** 1.2 + 0j, faster)
    return torch.where(again, faster, choice)
