"""How well a bank of filters was fitted, and what no recurrence of the same order could beat."""

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from longconv.filters.modal import ModalFilter
from longconv.kernels.recurrence import modal_kernel

from .hankel_svd import BLOCK_ELEMENTS, hankel_norm


@dataclasses.dataclass(frozen=True)
class FitReport:
    """How well a bank of D filters was realised. All tensors are float64 or int64, on the CPU.

    Two errors, each with what no recurrence of the same order could beat (Eckart-Young for the section H; Adamyan, Arov
    & Krein 1971 for the infinite operator, whose norm is at least the section's):

    - `relative_error` = ||k - k_hat||_2 / ||k||_2 over all L taps, at least
      `error_bound` = sqrt(sum_{i > d} sigma_i^2) / (sqrt(columns of H) ||k||_2), because ||H(e)||_F^2 counts each
      tap of e at most that many times. Loose by up to that square root.
    - `hankel_error` = ||H(k - k_hat)||_2 / ||H(k)||_2 (lag 0 excluded), at least
      `hankel_bound` = sigma_{d+1} / sigma_1. Above 255 taps the numerator comes from an iteration, from below,
      typically to a few per cent.

    The bounds use the computed singular values, which never exceed the true ones, less an allowance for rounding.

    Attributes:
        length: L.
        order: (D,) real states used: 2 for each complex mode, 1 for each real one.
        modes: (D,) modes used, without padding.
        relative_error, error_bound, hankel_error, hankel_bound: (D,), see above; 0 for a filter of zeros.
        radius: (D,) largest |lambda|, 0 without modes.
        cancellation: (D,) ||sum_n |R_n lambda_n^t| ||_2 / ||k||_2: how much rounding errors are amplified.
        numerical_rank: (D,) singular values above the noise of the taps' dtype, counted among those computed.
        singular_values: (D, n) leading Hankel singular values. Those of a fit may be some per cent low where the
            spectrum is flat, and 0 below the noise of the taps; `hankel_singular_values` takes its time.
    """

    length: int
    order: Tensor
    modes: Tensor
    relative_error: Tensor
    error_bound: Tensor
    hankel_error: Tensor
    hankel_bound: Tensor
    radius: Tensor
    cancellation: Tensor
    numerical_rank: Tensor
    singular_values: Tensor

    @classmethod
    def of(
        cls, modal: ModalFilter, order: Tensor, modes: Tensor, k: Tensor, sigma: Tensor, rank: Tensor
    ) -> "FitReport":
        """The report on exactly this filter, which uses `order` (D,) real states for the taps k (D, L)."""
        poles, residues = modal.poles.detach(), modal.residues.detach()
        D, L = k.shape
        error, cancellation = k.new_empty(D, L, dtype=torch.float64), k.new_empty(D, dtype=torch.float64)
        for start in range(0, D, block := max(1, BLOCK_ELEMENTS // L)):
            rows = slice(start, start + block)
            h_0 = modal.passthrough.detach()[rows].double()
            error[rows] = k[rows].double() - modal_kernel(poles[rows], residues[rows], h_0, L)
            gross = modal_kernel(poles[rows].abs() + 0j, residues[rows].abs() + 0j, h_0.abs(), L)
            cancellation[rows] = torch.linalg.vector_norm(gross, dim=-1)
        norm = torch.linalg.vector_norm(k.double(), dim=-1)
        beyond = torch.nn.functional.pad(sigma, (0, 1)).gather(-1, order[:, None].clamp(max=sigma.shape[1]))[:, 0]
        fields = {
            "order": order,
            "modes": modes,
            "relative_error": ratio(torch.linalg.vector_norm(error, dim=-1), norm),
            "error_bound": error_bound(sigma, order, L - 1, norm),
            "hankel_error": ratio(hankel_norm(error[:, 1:]), sigma[:, 0]),
            "hankel_bound": ratio((beyond - rounding(sigma, L)).clamp(min=0), sigma[:, 0]),
            "radius": torch.nn.functional.pad(poles.abs(), (0, 1)).amax(-1),
            "cancellation": ratio(cancellation, norm),
            "numerical_rank": rank,
            "singular_values": sigma,
        }
        return cls(length=L, **{name: value.cpu() for name, value in fields.items()})

    @classmethod
    def cat(cls, reports: list["FitReport"]) -> "FitReport":
        """The report on several banks of filters with equally many taps, as one."""
        names = [field.name for field in dataclasses.fields(cls) if field.name != "length"]
        return cls(reports[0].length, **{name: torch.cat([getattr(r, name) for r in reports]) for name in names})

    def order_for(self, tol: float) -> Tensor:
        """The states that a relative Hankel-norm error of `tol` takes at least (AAK): the first d of
        sigma_{d+1} <= tol sigma_1, (D,) float64; as many as there are singular values if none of them is as small."""
        return (self.singular_values > tol * self.singular_values[:, :1]).sum(-1).double()

    def __getitem__(self, rows: slice) -> "FitReport":
        """The report on some of the filters."""
        tensors: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **tensors)

    def to_dict(self) -> dict[str, Any]:
        """Return plain Python numbers and lists, for JSON."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in fields.items()}

    def __str__(self) -> str:
        names = ("order", "modes", "numerical_rank", "relative_error", "error_bound", "hankel_error", "hankel_bound")
        lines = [f"{len(self.order)} filters of {self.length} taps", f"{'':16}{'min':>10}{'median':>10}{'max':>10}"]
        for name in (*names, "radius", "cancellation"):
            values = getattr(self, name).double()
            if len(values):
                row = (values.min().item(), values.quantile(0.5).item(), values.max().item())
                lines.append(f"{name:16}" + "".join(f"{value:>10.3g}" for value in row))
        if len(self.order):
            worst = int(self.relative_error.argmax())
            lines.append(f"worst filter: {worst}, {self.order[worst]} states, error {self.relative_error[worst]:.3g}")
        return "\n".join(lines)


def numerical_rank(k: Tensor, sigma: Tensor) -> Tensor:
    """How many of the singular values sigma (D, n) of taps k (D, L) are above the noise of the taps' dtype: (D,)."""
    return (sigma > noise(k, sigma)[:, None]).sum(-1)


def noise(k: Tensor, sigma: Tensor) -> Tensor:
    """What rounding may add to the singular values (D,): each tap to k's dtype, and the SVD itself in float64."""
    # Rounding the taps moves H by about eps ||g|| in norm; the SVD is good to a few eps sigma_1.
    taps = torch.finfo(k.dtype).eps * torch.linalg.vector_norm(k[:, 1:].double(), dim=-1)
    return torch.maximum(taps, rounding(sigma, k.shape[1]))


def error_bound(sigma: Tensor, order: Tensor, taps: int, norm: Tensor) -> Tensor:
    """Lower bound (see `FitReport`) on the relative L2 error of `order` (D,) real states, from sigma (D, n).

    `taps` is the number after lag 0, `norm` (D,) that of all taps.
    """
    lost = torch.arange(sigma.shape[1], device=sigma.device) >= order[:, None]
    tail = (sigma - rounding(sigma, taps)[:, None]).clamp(min=0) * lost
    columns = max(1, taps - taps // 2)
    return ratio(torch.linalg.vector_norm(tail, dim=-1), norm * math.sqrt(columns))


def rounding(sigma: Tensor, taps: int) -> Tensor:
    """The accuracy of singular values in float64 (D,)."""
    return 4 * math.sqrt(taps) * torch.finfo(torch.float64).eps * sigma[:, 0]


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where the whole is 0."""
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1.0), 0.0)
