"""The norms between blocks, channels last: torch's, the scale norm of MEGA, and a BatchNorm that knows of padding."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.layers.gated_attention import ScaleNorm

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


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
        if not self.training:
            y = F.batch_norm(
                x.reshape(-1, self.channels), self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
            return y.view(x.shape)
        if x.ndim != 3:
            raise ValueError(
                f"a batch norm in training needs whole sequences (B, L, D), got shape {tuple(x.shape)}: call eval()"
            )
        if mask is None:
            # With momentum 1 these become the statistics of the batch. Autograd would keep the running ones themselves,
            # and complain when a second forward pass, or another process, changes them before the backward pass.
            mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
            y = F.batch_norm(x.reshape(-1, self.channels), mean, var, self.weight, self.bias, True, 1.0, self.eps)
            self._update(mean, var)
            return y.view(x.shape)
        padding, count = ~mask[..., None], mask.sum()
        # No products with the mask: nothing is promised about padded positions, not even that they are finite.
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(padding, 0)
        mean = wide.sum((0, 1)) / count
        centred = (wide - mean).masked_fill(padding, 0)
        squares = centred.square().sum((0, 1))
        self._update(mean, squares / (count - 1).clamp(min=1))
        y = centred * (self.weight * (squares / count + self.eps).rsqrt()) + self.bias
        return y.to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor) -> None:
        for running, value in ((self.running_mean, mean), (self.running_var, var)):
            running.mul_(1 - self.momentum).add_(value, alpha=self.momentum)
        self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.channels}, eps={self.eps}"


def build_norm(name: str, channels: int, eps: float) -> nn.Module:
    """The norm that a configuration calls so."""
    kinds: dict[str, Any] = {"rms": nn.RMSNorm, "layer": nn.LayerNorm, "scale": ScaleNorm, "batch": BatchNorm}
    return kinds[name](channels, eps=eps)


def normalise(norm: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Apply a norm to x (B, L, D) with mask (B, L), or to x (B, D)."""
    return norm(x, mask) if isinstance(norm, BatchNorm) else norm(x)


def has_statistics(module: nn.Module) -> bool:
    """Whether there is a batch norm in a module, of this or another class."""
    return any(name.rpartition(".")[2] in STATISTICS for name, _ in module.named_buffers())


@contextlib.contextmanager
def same_statistics(module: nn.Module) -> Iterator[None]:
    """A context in which forward passes leave no trace in the running statistics of the batch norms in a module."""
    kept = [
        (part, name, buffer)
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if name in STATISTICS
    ]
    for part, name, buffer in kept:
        setattr(part, name, buffer.clone())
    try:
        yield
    finally:
        for part, name, buffer in kept:
            setattr(part, name, buffer)
