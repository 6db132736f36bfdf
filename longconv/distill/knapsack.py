"""One choice for each of many items, of least total loss within a total cost: the multiple-choice knapsack problem.

The choices on the lower convex hull of an item's (cost, loss) are those that some price per unit of cost makes the best
(Everett 1963; Shoham & Gersho 1988 for allocating bits). So the steepest steps down the hulls are taken first, for as
long as they can be paid: no other choices of at most the same cost have less loss. What is left then is spent on
whatever lowers the loss most per unit of cost, on the hull or not. The loss is above the optimum by less than the one
step on a hull that could not be paid.

Shapes: F items, R choices of each.
"""

import torch
from torch import Tensor


def choose(cost: Tensor, loss: Tensor, budget: int) -> Tensor:
    """Return which choice to take of each item.

    Args:
        cost: (F, R) int64, ascending in each row, >= 0.
        loss: (F, R) float64, descending in each row; choices of equal cost have equal losses.
        budget: of the total cost.

    Returns:
        (F,) int64 indices into the rows. Every row's first choice that is as good as the one taken.

    Raises:
        ValueError: not even the cheapest choices can be paid.
    """
    choice = torch.zeros(len(cost), dtype=torch.long)
    left = budget - int(cost[:, 0].sum())
    if left < 0:
        raise ValueError(f"budget must be at least {budget - left}, the cost of the cheapest choices, got {budget}")
    slope, price, item, target = _hull_steps(cost, loss)
    order = slope.sort(descending=True, stable=True).indices
    spent = price[order].cumsum(0)
    taken = order[: int((spent <= left).sum())]
    if len(taken):
        # Steps of one item stand in the order of its hull, so the last has the largest target.
        choice.scatter_reduce_(0, item[taken], target[taken], "amax")
        left -= int(price[taken].sum())
    return _spend(cost, loss, choice, left)


def _hull_steps(cost: Tensor, loss: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every step from one choice on an item's hull to the next: loss per cost, cost, item, and where it leads."""
    F, R = cost.shape
    items, at = torch.arange(F), torch.zeros(F, dtype=torch.long)
    last = torch.full((F,), torch.inf, dtype=torch.float64)
    steps = []
    for _ in range(R - 1):
        gain, price = _from(loss, items, at), -_from(cost, items, at)
        ratio = torch.where(price > 0, gain / price.clamp(min=1), -torch.inf)
        best, target = ratio.max(1)
        ahead = best > 0
        items, at, best, last = items[ahead], target[ahead], best[ahead], last[ahead]
        if not len(items):
            break
        last = torch.minimum(best, last)  # convex, up to rounding
        steps.append((last, price[ahead].gather(1, at[:, None])[:, 0], items, at))
    if not steps:
        none = torch.zeros(0, dtype=torch.long)
        return none.double(), none, none, none
    slope, price, item, target = (torch.cat(parts) for parts in zip(*steps, strict=True))
    return slope, price, item, target


def _spend(cost: Tensor, loss: Tensor, choice: Tensor, left: int) -> Tensor:
    """Spend what is left on the steps, on the hull or off it, that lower the loss most per unit of cost."""
    items = torch.arange(len(cost))
    while len(items):
        gain, price = _from(loss[items], None, choice[items]), -_from(cost[items], None, choice[items])
        ratio = torch.where((price > 0) & (price <= left) & (gain > 0), gain / price.clamp(min=1), -torch.inf)
        best, target = ratio.max(1)
        open_ = best > -torch.inf
        items, best, target = items[open_], best[open_], target[open_]
        order = best.sort(descending=True, stable=True).indices
        items, target = items[order], target[order]
        price = cost[items, target] - cost[items, choice[items]]
        count = int((price.cumsum(0) <= left).sum())
        choice[items[:count]] = target[:count]
        left -= int(price[:count].sum())
    return choice


def _from(table: Tensor, rows: Tensor | None, at: Tensor) -> Tensor:
    """What is lost from column `at` of each of the rows to each other column."""
    table = table if rows is None else table[rows]
    return table.gather(1, at[:, None]) - table
