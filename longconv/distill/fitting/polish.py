"""Poles moved to a local optimum of the fit: variable projection by Levenberg-Marquardt, for a bank of filters at once.

Minimised over the poles is min over the residues of ||g - sum_n Re(R_n lambda_n^t)||_2 (Golub & Pereyra 1973, with
Kaufman's approximation of the Jacobian; Ruhe & Wedin 1980). The unknowns are the logarithms of the poles, so that decay
rates keep their sign. The residual is computed in the time domain; the normal equations of `exponentials` decide how
fast the iteration converges, and not to what.

Shapes: D filters, M taps after lag 0, N modes (a conjugate pair each, or a real pole).
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from .exponentials import Exponentials, Normal, inner_products, padded, pair, to_complex

_BLOCK_ELEMENTS = 1 << 17  # complex numbers of one (D, 2N, N) table in flight: few operations, and not much memory
_SHRINK = 0.1  # a decay rate goes down to this fraction of itself in one step, at most
_FASTEST = -7.0  # log|lambda| below which a pole has no more say than a delta at lag 1
_TURN = 0.5  # radians in one step, at most
_CONVERGED = 2e-3  # gain of a step, relative to what it had to gain from


def polish(
    poles: Tensor, used: Tensor, g: Tensor, *, steps: int, eps: float, floor: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Move the poles of each filter downhill.

    Args:
        poles: (D, N) complex128, |lambda| < 1; of a conjugate pair the one with positive imaginary part. Real poles
            stay real.
        used: (D, N) bool: modes that are no padding.
        g: (D, M) float64, the taps after lag 0.
        steps: most Levenberg-Marquardt steps.
        eps: -log|lambda| stays at least this.
        floor: (D,) residual norms that are good enough; None to go on to convergence.

    Returns:
        The poles (D, N), and the residual norms (D,) with the residues that were found for them.
    """
    D, N = poles.shape
    out, error = poles.clone(), torch.linalg.vector_norm(g, dim=-1)
    if D == 0 or N == 0 or g.shape[1] == 0:
        return out, error
    block = max(1, _BLOCK_ELEMENTS // (2 * N * N))
    for start in range(0, D, block):
        rows = slice(start, start + block)
        target = torch.zeros_like(error[rows]) if floor is None else floor[rows]
        out[rows], error[rows] = _polish_block(poles[rows], used[rows], g[rows], steps, eps, target)
    return out, error


def _polish_block(
    poles: Tensor, used: Tensor, g: Tensor, steps: int, eps: float, floor: Tensor
) -> tuple[Tensor, Tensor]:
    scale = torch.linalg.vector_norm(g, dim=-1)
    scale = torch.where(scale > 0, scale, 1.0)
    count, g, floor = g.shape[1], padded(g / scale[:, None]), floor / scale
    real = poles.imag == 0
    turn = torch.where(real & (poles.real < 0), math.pi, poles.angle())
    logs = torch.complex(poles.abs().log().clamp(min=_FASTEST - 1, max=-eps), turn)
    here = _Point.at(logs, used, real, g, count, torch.zeros_like(poles), sweeps=2)
    best_logs, best_loss = here.logs.clone(), here.loss.clone()
    mu = torch.full_like(scale, 1e-3)
    rows = torch.arange(len(g), device=g.device)
    for _ in range(steps):
        step, foreseen, residues = here.step(mu)
        logs = here.logs + step
        logs = torch.complex(logs.real.clamp(_FASTEST - 1, -eps), logs.imag)
        trial = _Point.at(logs, here.used, here.real, g, count, residues, sweeps=1)
        gain = here.loss - trial.loss
        better = gain > 0
        # Nielsen's rule for the damping would do no better here than fixed ratios.
        mu = torch.where(better, mu * 0.2, mu * 6.0).clamp(1e-12, 1e8)
        done = better & (gain <= _CONVERGED * here.loss)
        done |= ~better & ((mu > 1e3) | (foreseen <= 1e-6 * here.loss))
        here = here.replaced(better, trial)
        best_logs[rows], best_loss[rows] = here.logs, here.loss
        going = ~(done | (here.loss.sqrt() <= floor[rows]))
        if not going.any():
            break
        if not going.all():
            rows, g, mu, here = rows[going], g[going], mu[going], here.select(going)
    moved = torch.polar(best_logs.real.exp(), best_logs.imag)
    moved = torch.where(real, moved.real + 0j, moved)
    return torch.where(used, moved, poles), best_loss.sqrt() * scale


@dataclasses.dataclass
class _Point:
    """Poles with their residues, what is left of the taps, and what the next step needs. All (D, ...)."""

    logs: Tensor
    used: Tensor
    real: Tensor
    residues: Tensor
    loss: Tensor
    down: Tensor  # inner products of the residual with the derivatives for the logarithms of the poles, (D, N) complex
    sloped: Tensor  # sums over the taps for the next Jacobian, as `Exponentials.sums` gives them
    curved: Tensor
    factor: Tensor
    norm: Tensor

    @classmethod
    def at(
        cls, logs: Tensor, used: Tensor, real: Tensor, g: Tensor, count: int, residues: Tensor, sweeps: int
    ) -> "_Point":
        """The point of these logarithms, for `count` taps g, padded, from residues that are close."""
        poles = torch.where(used, torch.polar(logs.real.exp(), logs.imag), 0.0)
        poles = torch.where(real, poles.real + 0j, poles)
        basis = Exponentials(poles, torch.cat([used, used & ~real], dim=1), count)
        plain, sloped, curved = basis.sums(slopes=True)
        normal = Normal.of(plain, basis.columns)
        residues, left = normal.fit(basis, g, residues, sweeps)
        down = residues * basis.correlate(left, slope=True)
        loss = left.square().sum(-1)
        return cls(logs, used, real, residues, loss, down, sloped, curved, normal.factor, normal.norm)

    def step(self, mu: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The damped step of the logarithms, the gain the linear model foresees, and the residues it puts there."""
        R, free = self.residues, self.used & (self.logs.real > _FASTEST)
        present = torch.cat([self.used, self.used & ~self.real], dim=1).to(R.real.dtype)
        moving = torch.cat([free, free & ~self.real], dim=1).to(R.real.dtype)
        Q1, P1 = (R[:, :, None] * self.sloped).chunk(2, dim=-1)
        Q2, P2 = (R[:, :, None] * self.curved).chunk(2, dim=-1)
        cross = inner_products(Q1, P1) * moving[:, :, None] * present[:, None]
        square = inner_products(Q2 * R[:, None], P2 * R[:, None].conj()) * moving[:, :, None] * moving[:, None]
        normal = Normal(self.factor, self.norm)
        half = torch.linalg.solve_triangular(normal.factor, cross.mT / normal.norm[:, :, None], upper=False)
        size = square.diagonal(dim1=1, dim2=2)
        scale = torch.where(size > 0, size, 1.0).sqrt()
        reduced = (square - half.mT @ half) / (scale[:, :, None] * scale[:, None])
        reduced.diagonal(dim1=1, dim2=2).add_(mu[:, None] + 1e-12 + (size <= 0))
        down = pair(self.down) * moving / scale
        factor, failed = torch.linalg.cholesky_ex(reduced)
        delta = torch.cholesky_solve(down[..., None], factor)[..., 0]
        delta = torch.where((failed == 0)[:, None], delta, down)
        foreseen = (delta * down).sum(-1)
        step = to_complex(delta / scale)
        rate = -self.logs.real
        slower, faster = rate * (1 - _SHRINK), rate * (1 - 1 / _SHRINK)
        step = torch.complex(step.real.minimum(slower).maximum(faster), step.imag.clamp(-_TURN, _TURN))
        moved = torch.cat([step.real, step.imag], dim=1)
        return step, foreseen, R - to_complex(normal.solve((cross.mT @ moved[..., None])[..., 0]))

    def replaced(self, better: Tensor, trial: "_Point") -> "_Point":
        """The trial where it is better, else this."""
        return self._map(lambda a, b: torch.where(better.view(-1, *[1] * (a.dim() - 1)), b, a), trial)

    def select(self, rows: Tensor) -> "_Point":
        """Those rows only."""
        return self._map(lambda a, _: a[rows], self)

    def _map(self, fn: Callable[[Tensor, Tensor], Tensor], other: "_Point") -> "_Point":
        names = [field.name for field in dataclasses.fields(self)]
        return _Point(*(fn(getattr(self, name), getattr(other, name)) for name in names))
