"""The modal fit of the Laughing Hyena Distillery (Massaroli et al. 2023, section 3.2): descent from random poles.

Poles and residues are fitted together to the taps, by AdamW on the squared error in the time domain. As published the
poles start with radii uniform in [0.9, 0.99] and random angles, 30,000 steps are taken, and stability is not
guaranteed; here log(-log|lambda|) is the parameter, so it is. At the end residues are refitted as for every method,
which can only lower the error. It is there to be compared with: `best` is better and takes a thousandth of the time.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .bank import Bank
from .exponentials import Exponentials, padded

_RADII = (0.9, 0.99)


def gradient(
    bank: Bank,
    rows: Tensor,
    order: Tensor,
    *,
    tol: float | None = None,
    steps: int = 30_000,
    lr: float = 1e-2,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> None:
    """Offer the poles that AdamW finds: order // 2 conjugate pairs, and a real pole if the order is odd.

    Args:
        bank, rows, order, tol: see `longconv.distill.fitting.fit.Method`.
        steps: of AdamW, with a cosine schedule from
        lr: the learning rate at the start.
        seed: of the start.
        progress: called with a line now and then.

    Raises:
        ValueError: steps < 1 or lr <= 0.
    """
    if steps < 1 or not lr > 0:
        raise ValueError(f"steps must be at least 1 and lr positive, got {steps} and {lr}")
    g, norm = bank.g[rows], torch.linalg.vector_norm(bank.g[rows], dim=-1, keepdim=True)
    D, N = len(rows), int((order + 1).max()) // 2 if len(rows) else 0
    if D == 0 or N == 0:
        return
    n = torch.arange(N, device=g.device)
    used, real = n < ((order + 1) // 2)[:, None], (n == (order // 2)[:, None]) & (order % 2 == 1)[:, None]
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(4, D, N, generator=generator, dtype=torch.float64).to(g.device)
    radius = _RADII[0] + (_RADII[1] - _RADII[0]) * draw[0]
    turning = torch.where(real, 0.0, 1.0)
    columns = torch.cat([used, used & ~real], dim=1)
    target = padded(g / torch.where(norm > 0, norm, 1.0))
    log_rate, angle, residue = (-radius.log()).log(), math.pi * draw[1] * turning, 0.1 * (2 * draw[2:] - 1)
    optimizer = torch.optim.AdamW([log_rate, angle, residue], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def poles() -> Tensor:
        return torch.where(used, torch.polar((-log_rate.exp()).exp(), angle * turning), 0.0)

    for step in range(steps):
        basis = Exponentials(poles(), columns, g.shape[1])
        R = torch.complex(residue[0], residue[1] * turning) * used
        left = basis.residual(target, R)
        # Minus half the gradient of the squared error: for the residues, and for the logarithms of the poles.
        v, w = basis.correlate(left), R * basis.correlate(left, slope=True)
        residue.grad = -2 * torch.stack([v.real * used, -v.imag * used * turning])
        log_rate.grad, angle.grad = 2 * w.real * log_rate.exp(), 2 * w.imag * turning
        optimizer.step()
        schedule.step()
        if progress is not None and (step + 1) % 1000 == 0:
            loss = left.square().sum().item() / D
            progress(f"step {step + 1:,} of {steps:,}: mean squared relative error {loss:.3g}")
    bank.offer(rows, poles(), used, tol=tol)
