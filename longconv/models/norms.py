"""The norms between blocks, channels last: RMSNorm and LayerNorm of torch, and a BatchNorm that knows of padding."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Statistics(NamedTuple):
    """Of one batch, per channel: mean (D,) and unbiased variance (D,), without gradients."""

    mean: Tensor
    var: Tensor


class BatchNorm(nn.Module):
    """`torch.nn.BatchNorm1d` over batch and time of (B, L, D), of which only real positions count.

    In training, with N real positions (Ioffe and Szegedy 2015, algorithm 1):

        y = weight (x - mean) / sqrt(var + eps) + bias,   mean = sum x / N,   var = sum (x - mean)^2 / N
        running <- 0.9 running + 0.1 (mean, var N / (N - 1))

    In eval mode mean and var are the running ones, so that it is a map of each position by itself. Parameters and
    buffers have the names of `nn.BatchNorm1d`, and without a mask the numbers are the same.

    Under data parallelism every process has the statistics of its own share of the batch, as `nn.BatchNorm1d` has
    them; `DistributedDataParallel` hands out the running ones of rank 0. `SyncBatchNorm.convert_sync_batchnorm` leaves
    this class as it is (torch's would normalise the wrong axis, and count padding).

    Args:
        channels: D.
        eps: added to the variance.
    """

    momentum = 0.1
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels, self.eps = channels, eps
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise to the identity: weight and variance one, bias and mean zero."""
        self.weight.fill_(1)
        self.bias.zero_()
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked.zero_()

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise x (B, L, D), and in training update the running statistics.

        Args:
            x: (B, L, D); in eval mode any (..., D).
            mask: (B, L) bool, true for real positions; None if all are. What comes out at others means nothing.

        Raises:
            ValueError: in training, x has another shape or, without a mask, a single position.
        """
        y, statistics = self.normalise(x, mask)
        if statistics is not None:
            self.update(statistics)
        return y

    def normalise(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Statistics | None]:
        """What `forward` returns, and in training what it gives to `update`: for a forward pass that may run again."""
        if not self.training:
            running = (self.running_mean, self.running_var)
            return F.batch_norm(x.reshape(-1, self.channels), *running, *self._affine, eps=self.eps).view(x.shape), None
        if x.ndim != 3:
            raise ValueError(
                f"a batch norm in training needs whole sequences (B, L, D), got shape {tuple(x.shape)}: call eval()"
            )
        if mask is None:
            # With momentum 1 these become the statistics of the batch.
            mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            y = F.batch_norm(x.reshape(-1, self.channels), mean, var, *self._affine, True, 1.0, self.eps)
            return y.view(x.shape), Statistics(mean, var)
        padding, count = ~mask[..., None], mask.sum()
        # No products with the mask: nothing is promised about padded positions, not even that they are finite.
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(padding, 0)
        mean = wide.sum((0, 1)) / count
        centred = (wide - mean).masked_fill(padding, 0)
        squares = centred.square().sum((0, 1))
        y = centred * (self.weight * (squares / count + self.eps).rsqrt()) + self.bias
        return y.to(x.dtype), Statistics(mean.detach(), (squares / (count - 1).clamp(min=1)).detach())

    @torch.no_grad()
    def update(self, statistics: Statistics) -> None:
        """Count a batch in the running statistics."""
        for running, value in zip((self.running_mean, self.running_var), statistics, strict=True):
            running.mul_(1 - self.momentum).add_(value, alpha=self.momentum)
        self.num_batches_tracked.add_(1)

    @property
    def _affine(self) -> tuple[Tensor, Tensor]:
        return self.weight, self.bias

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.channels}, eps={self.eps}"


def build_norm(name: str, channels: int, eps: float) -> nn.Module:
    """The norm that a configuration calls so."""
    kinds: dict[str, Any] = {"rms": nn.RMSNorm, "layer": nn.LayerNorm, "batch": BatchNorm}
    return kinds[name](channels, eps=eps)


def normalise(norm: nn.Module, x: Tensor, mask: Tensor | None, batches: list[Statistics]) -> Tensor:
    """Apply a norm to x (B, L, D) or (B, D); a batch norm in training adds its statistics to `batches`."""
    if not isinstance(norm, BatchNorm):
        return norm(x)
    y, statistics = norm.normalise(x, mask)
    if statistics is not None:
        batches.append(statistics)
    return y
