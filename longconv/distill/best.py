"""The method to use: two starts that fail on different filters, and a descent from the better one."""

import torch
from torch import Tensor

from .bank import Bank, count_states
from .hankel import hankel
from .polish import polish
from .pursuit import pursue

_TRIAL = 6  # steps of a descent that decides between two starts
_DONE = 4.0  # roundings of the taps


def best(bank: Bank, rows: Tensor, order: Tensor, *, tol: float | None = None, steps: int = 40) -> None:
    """Offer ERA's poles, and where those leave an error, poles polished from there or from a pursuit.

    Smooth filters, of steeply falling singular values, are ERA's; rough ones the pursuit's. Poles that were polished are
    kept where they are better with residues that cancel no more than the precision of the parameters allows.
    """
    hankel(bank, rows, order, tol=tol)
    goal = torch.maximum(_DONE * bank.taps_noise, torch.full_like(bank.norm, tol or 0.0))
    left = (bank.error[rows] > goal[rows]) & (order > 0)
    rows, order = rows[left], order[left]
    if not len(rows):
        return
    g, floor = bank.g[rows], (goal * bank.norm)[rows]
    poles, used = bank.poles[rows], bank.used[rows]
    # With `tol` the bank may hold more states than this order has.
    fits = (count_states(poles, used) <= order)[:, None]
    poles, used = torch.where(fits, poles, 0.0), used & fits
    starts = [(poles, used), pursue(g, order)]
    tried = [(polish(p, u, g, steps=_TRIAL, eps=bank.eps, floor=floor), u) for p, u in starts]
    (poles, error), used = tried[0]
    (other, other_error), other_used = tried[1]
    width = max(poles.shape[1], other.shape[1])
    second = (other_error < error)[:, None]
    poles = torch.where(second, _widen(other, width), _widen(poles, width))
    used = torch.where(second, _widen(other_used, width), _widen(used, width))
    poles, _ = polish(poles, used, g, steps=steps - _TRIAL, eps=bank.eps, floor=floor)
    bank.offer(rows, poles, used, tol=tol)


def _widen(x: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, width - x.shape[1]))
