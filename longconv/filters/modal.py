"""A filter that is a sum of damped oscillations, and so runs as a convolution and as a recurrence.

h_0 is the pass-through and h_t = Re sum_n R_n lambda_n^(t-1) for t >= 1, as in `longconv.kernels.recurrence`.
The initialisation is S4D-Lin (Gu et al. 2022, "On the parameterization and initialization of diagonal state space
models"); the modal form of a distilled filter is that of Massaroli et al. 2023 (Laughing Hyena).
"""

import math

import torch
from torch import Tensor, nn

from .recurrent import Modes, RecurrentFilter, check_dt, init_log_dt

# log of the decay rate that stands for lambda = 0: exp(-exp(10)) underflows to zero in every dtype.
_LOG_DECAY_OF_ZERO = 10.0


class ModalFilter(RecurrentFilter):
    """D filters of N complex modes each, stable by construction, with the recurrence that computes the same.

    With dt = exp(log_dt):

        lambda = exp( -dt exp(log_decay) - eps + i pi dt frequency ),     R = dt (residue[0] + i residue[1]),

    so |lambda| <= exp(-eps) < 1 for every value of the parameters (eps is the machine epsilon of the parameters, which
    keeps |lambda| below 1 after rounding too). frequency counts half-turns in a time of 1 / dt
    samples, so that real poles of both signs have round values: frequency 0, and 1 when dt = 1.

    A mode is a conjugate pair of poles, i.e. two real states; a real pole takes a whole mode too, and a mode whose
    residue is zero is padding.

    Args:
        channels: D, the number of filters.
        order: N, the number of complex modes of each filter.
        dt_min, dt_max: the time scales of the channels are initialised log-uniformly in [dt_min, dt_max] (in samples,
            a mode forgets after about 2 / dt).
        lr: learning rate marked on the parameters (`param._optim`), with no weight decay; read by
            `longconv.training.parameter_groups`.
        device, dtype: of the parameters. Modes are computed, and the state is kept, in complex128 (`RecurrentFilter`).

    Parameters (all real): log_dt (D,), log_decay (D, N), frequency (D, N), residue (D, N, 2), passthrough (D,).

    Raises:
        ValueError: channels or order is negative, or not 0 < dt_min <= dt_max.
    """

    def __init__(
        self,
        channels: int,
        order: int,
        *,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        lr: float = 1e-3,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if channels < 0 or order < 0:
            raise ValueError(f"channels and order must not be negative, got {channels} and {order}")
        check_dt(dt_min, dt_max)
        self.channels, self.order, self.dt_min, self.dt_max, self.lr = channels, order, dt_min, dt_max, lr

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.log_dt = parameter(channels)
        self.log_decay = parameter(channels, order)
        self.frequency = parameter(channels, order)
        self.residue = parameter(channels, order, 2)
        self.passthrough = parameter(channels)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as S4D-Lin: continuous-time poles -1/2 + i pi n, random residues and pass-through."""
        init_log_dt(self.log_dt, self.dt_min, self.dt_max)
        nn.init.constant_(self.log_decay, math.log(0.5))
        n = torch.arange(self.order, device=self.frequency.device, dtype=self.frequency.dtype)
        self.frequency.copy_(n.expand_as(self.frequency))
        nn.init.normal_(self.residue)
        nn.init.normal_(self.passthrough)
        self._mark_parameters()

    def _mark_parameters(self) -> None:
        for parameter in self.parameters():
            parameter._optim = {"lr": self.lr, "weight_decay": 0.0}  # type: ignore[attr-defined]

    @classmethod
    def from_modes(
        cls,
        poles: Tensor,
        residues: Tensor,
        passthrough: Tensor,
        *,
        lr: float = 1e-3,
        dtype: torch.dtype | None = None,
    ) -> "ModalFilter":
        """Make a filter with the given modes (dt = 1), reproduced to a rounding error of the parameters' dtype.

        A pole on or outside the circle |lambda| = exp(-eps) is moved radially onto it; lambda = 0 is kept exactly.

        Args:
            poles, residues: (D, N) complex.
            passthrough: (D,) real.
            lr: see the class.
            dtype: float32 or float64, of the parameters; default: the precision of `poles`.

        Raises:
            ValueError: a tensor has the wrong shape or dtype, or is not finite.
        """
        if poles.dim() != 2 or not poles.is_complex():
            raise ValueError(f"poles must be a complex tensor (D, N), got {poles.dtype} {tuple(poles.shape)}")
        if residues.shape != poles.shape or not residues.is_complex():
            raise ValueError(
                f"residues must be complex {tuple(poles.shape)}, got {residues.dtype} {tuple(residues.shape)}"
            )
        if passthrough.shape != poles.shape[:1] or passthrough.is_complex():
            raise ValueError(
                f"passthrough must be real ({len(poles)},), got {passthrough.dtype} {tuple(passthrough.shape)}"
            )
        for name, tensor in (("poles", poles), ("residues", residues), ("passthrough", passthrough)):
            if not tensor.isfinite().all():
                raise ValueError(f"{name} must be finite")
        dtype = dtype or poles.dtype.to_real()
        # By way of the meta device, so as not to draw an initialisation from the global generator.
        module = cls(*poles.shape, lr=lr, device="meta", dtype=dtype).to_empty(device=poles.device)
        module._mark_parameters()
        with torch.no_grad():
            log_decay, frequency = _encode(poles, dtype)
            module.log_dt.zero_()
            module.log_decay.copy_(log_decay)
            module.frequency.copy_(frequency)
            module.residue.copy_(torch.view_as_real(residues.detach().resolve_conj()))
            module.passthrough.copy_(passthrough.detach())
        return module

    @property
    def poles(self) -> Tensor:
        """(D, N) complex128, |lambda| < 1 even when rounded to the parameters' precision. Differentiable."""
        return _decode(self.log_decay, self.frequency, self.log_dt.double().exp()[:, None], self._dtype)

    @property
    def residues(self) -> Tensor:
        """(D, N) complex128. Differentiable."""
        dt = self.log_dt.double().exp()[:, None]
        return dt * torch.view_as_complex(self.residue.double().contiguous())

    def prepare_step(self) -> Modes:
        """Return the modes as tensors: compute them once, and give them to `step` for every token."""
        return Modes(self.poles, self.residues, self.passthrough.double())

    def extra_repr(self) -> str:
        """Describe the sizes, for `repr`."""
        return f"channels={self.channels}, order={self.order}, state_size={self.state_size}"


def round_poles(poles: Tensor, dtype: torch.dtype) -> Tensor:
    """The poles (...) complex128 that `ModalFilter.from_modes` makes of these with parameters of float32 or float64."""
    log_decay, frequency = (parameter.to(dtype) for parameter in _encode(poles, dtype))
    return _decode(log_decay, frequency, torch.ones((), dtype=torch.float64, device=poles.device), dtype)


def _encode(poles: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """log_decay and frequency, in float64, with dt = 1."""
    exact = poles.detach().to(torch.complex128)
    radius = exact.abs()
    # -log|lambda| = exp(log_decay) + eps; what is left above eps may be zero or less, hence the clamp.
    rate = (-radius.log() - torch.finfo(dtype).eps).clamp(min=torch.finfo(dtype).tiny)
    return torch.where(radius > 0, rate.log(), _LOG_DECAY_OF_ZERO), exact.angle() / math.pi


def _decode(log_decay: Tensor, frequency: Tensor, dt: Tensor, dtype: torch.dtype) -> Tensor:
    rate = dt * log_decay.double().exp() + torch.finfo(dtype).eps
    return torch.polar((-rate).exp(), math.pi * dt * frequency.double())
