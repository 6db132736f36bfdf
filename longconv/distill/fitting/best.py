"""The method to use: two starts that fail on different filters, and a descent from the better one."""

import torch
from torch import Tensor

from .bank import Bank, compact, count_states, widen
from .hankel import era, expected_error, offer_era
from .polish import polish
from .pursuit import pursue

_TRIAL = 6  # steps of a descent that decides between two starts
_CLOSE = 1.5  # starts whose errors are within this factor of the better one's are tried
_HOPELESS = 0.3  # error that ERA must promise to be tried at all
_ROUGH = 0.05  # error that ERA must promise for other orders of it to be tried where it fails
_STEEP = 4.0  # singular values this many times above that of the order are not among the flat ones
_NEAR = 20.0  # errors further from a tolerance are not worth a descent
_DONE = 16.0  # roundings of the taps


def best(bank: Bank, rows: Tensor, order: Tensor, *, tol: float | None = None, steps: int = 40) -> None:
    """Offer ERA's poles, and where those leave an error, poles polished from there or from a pursuit.

    Smooth filters, of steeply falling singular values, are ERA's; rough ones the pursuit's, which begins from the few
    poles of ERA for the values that do fall. Polished poles are kept where they are better with residues that cancel no
    more than the precision of the parameters allows.

    Args:
        bank, rows, order, tol: see `longconv.distill.fitting.fit.Method`.
        steps: most Levenberg-Marquardt steps.
    """
    expected = expected_error(bank, rows, order)
    smooth = expected < _HOPELESS
    offer_era(bank, rows[smooth], order[smooth], tol, give_up=_ROUGH)
    # With `tol` the bank may hold more states than this order has.
    start, used = bank.poles[rows], bank.used[rows]
    fits = count_states(start, used) <= order
    start, used = torch.where(fits[:, None], start, 0.0), used & fits[:, None]
    error = torch.where(smooth & fits, bank.error[rows], 1.0)
    goal = torch.maximum(_DONE * bank.taps_noise, torch.full_like(bank.norm, tol or 0.0))[rows]
    left = (error > goal) & (order > 0)
    if tol is not None:  # a higher order will be tried
        left &= (torch.where(smooth, error, expected) < _NEAR * tol) | (order >= bank.limit[rows])
    rows, order, start, used, error, goal = (x[left] for x in (rows, order, start, used, error, goal))
    floor = goal * bank.norm[rows]

    def descend(which: Tensor, poles: Tensor, used: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        moved, residual = polish(
            poles[which], used[which], bank.g[rows[which]], steps=steps, eps=bank.eps, floor=floor[which]
        )
        return moved, residual / bank.norm[rows[which]]

    # What falls steeply in the spectrum is left to ERA, the flat rest, or what ERA could not use, to a pursuit.
    sigma, states = bank.section.sigma[rows], count_states(start, used)
    level = sigma.gather(1, order.clamp(max=sigma.shape[1] - 1)[:, None])
    steep = torch.minimum((sigma > _STEEP * level).sum(-1), order)
    kept = (states <= steep) & (error < 1)
    begun = torch.where(kept, states, steep)
    rough = (order - begun >= 2).nonzero()[:, 0]
    if len(rough):
        poles, some = era(bank, rows[rough], steep[rough])
        width = max(poles.shape[1], start.shape[1])
        poles = torch.where(kept[rough, None], widen(start[rough], width), widen(bank.stable(poles), width))
        some = torch.where(kept[rough, None], widen(used[rough], width), widen(some, width))
        found, found_used, residual = pursue(bank.g[rows[rough]], (order - begun)[rough], poles, some)
        width = max(start.shape[1], found.shape[1])
        start, used, found, found_used = (widen(x, width) for x in (start, used, found, found_used))
        other, other_used, other_error = start.clone(), used.clone(), torch.full_like(error, torch.inf)
        other[rough], other_used[rough], other_error[rough] = found, found_used, residual / bank.norm[rows[rough]]
        contested = ((error < _CLOSE * other_error) & (other_error < _CLOSE * error)).nonzero()[:, 0]
        if len(contested):
            start[contested], error[contested] = descend(contested, start, used, _TRIAL)
            other[contested], other_error[contested] = descend(contested, other, other_used, _TRIAL)
        better = (other_error < error)[:, None]
        start, used = compact(torch.where(better, other, start), torch.where(better, other_used, used))
    if len(rows):
        bank.offer(rows, descend(torch.arange(len(rows), device=rows.device), start, used, steps)[0], used, tol=tol)
