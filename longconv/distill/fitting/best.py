"""The method to use: two starts that fail on different filters, and a descent from the better one."""

import torch
from torch import Tensor

from .bank import Bank, count_states, widen
from .hankel import expected_error, hankel
from .polish import polish
from .pursuit import pursue

_TRIAL = 6  # steps of a descent that decides between two starts
_CLOSE = 1.5  # starts whose errors are within this factor of the better one's are tried
_HOPELESS = 0.3  # error that ERA must promise to be tried at all
_DONE = 4.0  # roundings of the taps


def best(bank: Bank, rows: Tensor, order: Tensor, *, tol: float | None = None, steps: int = 40) -> None:
    """Offer ERA's poles, and where those leave an error, poles polished from there or from a pursuit.

    Smooth filters, of steeply falling singular values, are ERA's; rough ones the pursuit's. Polished poles are kept
    where they are better with residues that cancel no more than the precision of the parameters allows.

    Args:
        bank, rows, order, tol: see `longconv.distill.fitting.fit.Method`.
        steps: most Levenberg-Marquardt steps.
    """
    smooth = expected_error(bank, rows, order) < _HOPELESS
    hankel(bank, rows[smooth], order[smooth], tol=tol)
    goal = torch.maximum(_DONE * bank.taps_noise, torch.full_like(bank.norm, tol or 0.0))
    left = (bank.error[rows] > goal[rows]) & (order > 0)
    rows, order = rows[left], order[left]
    if not len(rows):
        return
    # With `tol` the bank may hold more states than this order has.
    fits = count_states(bank.poles[rows], bank.used[rows]) <= order
    start, start_used = bank.poles[rows], bank.used[rows] & fits[:, None]
    start_error = torch.where(fits & start_used.any(-1), bank.error[rows], torch.inf)
    found, found_used, residual = pursue(bank.g[rows], order)
    found_error = residual / bank.norm[rows]

    def descend(which: Tensor, poles: Tensor, used: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        floor = (goal * bank.norm)[rows[which]]
        return polish(poles[which], used[which], bank.g[rows[which]], steps=steps, eps=bank.eps, floor=floor)

    contested = (start_error < _CLOSE * found_error) & (found_error < _CLOSE * start_error)
    which = contested.nonzero()[:, 0]
    if len(which):
        start[which], start_error[which] = descend(which, start, start_used, _TRIAL)
        found[which], found_error[which] = descend(which, found, found_used, _TRIAL)
    width = max(start.shape[1], found.shape[1])
    first = (start_error <= found_error)[:, None]
    poles = torch.where(first, widen(start, width), widen(found, width))
    used = torch.where(first, widen(start_used, width), widen(found_used, width))
    poles, _ = descend(torch.arange(len(rows), device=rows.device), poles, used, steps)
    bank.offer(rows, poles, used, tol=tol)
