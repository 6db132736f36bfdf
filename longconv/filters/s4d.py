"""Diagonal state space models (Gu et al. 2022, "On the parameterization and initialization of diagonal state space
models", arXiv 2206.11893), as in state-spaces/s4, `models/s4/s4d.py` and `src/models/sequence/kernels/ssm.py`.
"""

import math

import torch
from torch import Tensor, nn

from .base import check_choice, check_sizes, filter_dtype, without_autocast
from .recurrent import Modes, RecurrentFilter, check_dt, init_log_dt

INITIALISATIONS = ("lin", "inv", "legs", "real")
DISCRETISATIONS = ("zoh", "bilinear")


class S4DFilter(RecurrentFilter):
    """The kernel of a diagonal continuous-time system, discretised: S4D.

    With dt = exp(log_dt), A = -exp(log_A_real) + i A_imag and B = 1, per channel:

        K_t = 2 Re sum_n C_n Bbar_n Abar_n^t,     t = 0, 1, ...
        zoh:        Abar = exp(dt A),                    Bbar = (exp(dt A) - 1) / A
        bilinear:   Abar = (1 + dt A/2) / (1 - dt A/2),  Bbar = dt / (1 - dt A/2)

    A mode stands for a conjugate pair, so a state of size N has N/2 modes. With `real` the N poles are real, there is
    no A_imag and C is real; the factor 2 stays, as in the authors' code. Since log_A_real is a logarithm, the system is
    stable for every value of the parameters.

    B is 1 for every initialisation (it could be absorbed in C); for LegS the authors' code starts from HiPPO's B. The
    skip weight D is the layer's.

    With `n_ssm` = S < D the poles A are those of S systems, channel d having those of system d mod S, each with its own
    dt and C, as in the authors' experiments on the Long Range Arena (S = 1); there B is trained, too.

    Parameters: log_dt (D,), log_A_real (S, N/2), A_imag (S, N/2), C (D, N/2, 2), with S = D as in `s4d.py`; with
    `real`: log_dt (D,), log_A_real (S, N), C (D, N). Marked `lr` (dt: `lr_dt`) and no weight decay, except C, which has
    no mark (published).

    Args:
        channels: D.
        state_size: N, real state variables of a channel; even, unless `real`.
        init: the poles. `"lin"`: -1/2 + i pi n; `"inv"`: -1/2 + i N/pi (N/(2n+1) - 1); `"legs"`: -1/2 + i times the
            eigenfrequencies of the normal part of HiPPO-LegS, fastest first; `"real"`: -(n+1).
        disc: `"zoh"` or `"bilinear"`.
        real: real poles; goes with init `"real"`, which is its default.
        dt_min, dt_max: the channels' dt is initialised log-uniformly in between.
        n_ssm: S, which divides D; None for D.
        lr: of A.
        lr_dt: of dt; None for the optimiser's own, as on some tasks of the Long Range Arena.

    Raises:
        ValueError: a size below 1 or odd, an n_ssm that does not divide D, not 0 < dt_min <= dt_max, or an unknown or
            unfit `init` or `disc`.
    """

    def __init__(
        self,
        channels: int,
        state_size: int = 64,
        *,
        init: str | None = None,
        disc: str = "zoh",
        real: bool = False,
        dt_min: float = 1e-3,
        dt_max: float = 1e-1,
        n_ssm: int | None = None,
        lr: float = 1e-3,
        lr_dt: float | None = 1e-3,
    ) -> None:
        super().__init__()
        check_sizes(channels=channels, state_size=state_size)
        init = init or ("real" if real else "lin")
        check_choice("init", init, INITIALISATIONS)
        check_choice("disc", disc, DISCRETISATIONS)
        check_dt(dt_min, dt_max)
        if real and init != "real":
            raise ValueError(f"init must be real for real poles, got {init!r}")
        if not real and state_size % 2:
            raise ValueError(f"state_size must be even, because its modes are conjugate pairs, got {state_size}")
        self.n_ssm = channels if n_ssm is None else n_ssm
        if self.n_ssm < 1 or channels % self.n_ssm:
            raise ValueError(f"n_ssm must divide channels = {channels}, got {n_ssm}")
        self.channels, self.init, self.disc, self.real = channels, init, disc, real
        self.dt_min, self.dt_max, self.lr, self.lr_dt = dt_min, dt_max, lr, lr_dt
        self.order = state_size if real else state_size // 2
        dtype = filter_dtype()
        self.log_dt = nn.Parameter(torch.empty(channels, dtype=dtype))
        self.log_A_real = nn.Parameter(torch.empty(self.n_ssm, self.order, dtype=dtype))
        if real:
            self.register_parameter("A_imag", None)
            self.C = nn.Parameter(torch.empty(channels, self.order, dtype=dtype))
        else:
            self.A_imag: nn.Parameter | None = nn.Parameter(torch.empty(self.n_ssm, self.order, dtype=dtype))
            self.C = nn.Parameter(torch.empty(channels, self.order, 2, dtype=dtype))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published; C is complex N(0, 1), so of variance 1/2 in each part (and if it is real)."""
        init_log_dt(self.log_dt, self.dt_min, self.dt_max)
        decay, frequency = initial_poles(self.init, self.order)
        self.log_A_real.copy_(decay.log().expand_as(self.log_A_real))
        if self.A_imag is not None:
            self.A_imag.copy_(frequency.expand_as(self.A_imag))
        nn.init.normal_(self.C, std=math.sqrt(0.5))
        self.mark("log_dt", weight_decay=0.0, **({} if self.lr_dt is None else {"lr": self.lr_dt}))
        for name in ("log_A_real",) + (() if self.A_imag is None else ("A_imag",)):
            self.mark(name, lr=self.lr, weight_decay=0.0)

    def prepare_step(self) -> Modes:
        """Return the modes, complex128; K_0 is the pass-through and 2 C Bbar Abar the residues."""
        return self.modes(self.C)

    def modes(self, C: Tensor) -> Modes:
        """Return the modes of the system with another C, of the shape of this filter's."""
        with without_autocast(self.log_dt.device):
            decay = -self.log_A_real.double().exp()
            A = torch.complex(decay, torch.zeros_like(decay) if self.A_imag is None else self.A_imag.double())
            A, C = A.repeat(self.channels // self.n_ssm, 1), C.double()
            weight = 2 * (torch.complex(C, torch.zeros_like(C)) if self.real else torch.view_as_complex(C.contiguous()))
            dt = self.log_dt.double().exp()[:, None]
            if self.disc == "zoh":
                poles = (dt * A).exp()
                weight = weight * torch.expm1(dt * A) / A
            else:
                poles = (1 + dt * A / 2) / (1 - dt * A / 2)
                weight = weight * dt / (1 - dt * A / 2)
            return Modes(poles, weight * poles, weight.real.sum(-1))

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        size = self.order if self.real else 2 * self.order
        systems = "" if self.n_ssm == self.channels else f", n_ssm={self.n_ssm}"
        sizes = f"channels={self.channels}, state_size={size}{systems}"
        return f"{sizes}, init={self.init}, disc={self.disc}, real={self.real}"


class S4DReadout(RecurrentFilter):
    """Another readout of the system of an `S4DFilter`: a kernel with its A and dt, and a C of its own.

    In the authors' code a two-sided layer has one system with two C's. This is the second one.

    Parameters: C, of the shape and with the initialisation of the other filter's. The other filter is not a part of
    this one: it has to be a part of the same layer.

    Args:
        system: the filter that has A and dt.
    """

    def __init__(self, system: S4DFilter) -> None:
        super().__init__()
        self._system = (system,)  # not a submodule, whose parameters would be counted and saved twice
        self.channels, self.order = system.channels, system.order
        self.C = nn.Parameter(torch.empty_like(system.C))
        self.reset_parameters()

    @property
    def system(self) -> S4DFilter:
        """The filter that has A and dt."""
        return self._system[0]

    def reset_parameters(self) -> None:
        """See `S4DFilter.reset_parameters`."""
        nn.init.normal_(self.C, std=math.sqrt(0.5))

    def prepare_step(self) -> Modes:
        """See `S4DFilter.prepare_step`."""
        return self.system.modes(self.C)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"channels={self.channels}, order={self.order}"


def initial_poles(init: str, modes: int) -> tuple[Tensor, Tensor]:
    """Decay rates -Re A and frequencies Im A of one channel, (modes,) float64 on the CPU; see `S4DFilter`."""
    n = torch.arange(modes, dtype=torch.float64, device="cpu")
    N = 2 * modes
    if init == "real":
        return n + 1, torch.zeros_like(n)
    if init == "lin":
        frequency = math.pi * n
    elif init == "inv":
        frequency = N / math.pi * (N / (2 * n + 1) - 1)
    else:
        frequency = _legs_frequencies(N)
    return torch.full_like(n, 0.5), frequency


def _legs_frequencies(N: int) -> Tensor:
    """Positive imaginary parts of the eigenvalues of the normal part of HiPPO-LegS, descending: (N/2,).

    The normal part is -1/2 I + S, S skew-symmetric with |S_ij| = sqrt((i + 1/2)(j + 1/2)), negative below the diagonal
    (Gu et al. 2022, "Efficiently modeling long sequences with structured state spaces", appendix C.1).
    """
    root = (torch.arange(N, dtype=torch.float64, device="cpu") + 0.5).sqrt()
    skew = torch.outer(root, root)
    skew = skew.triu(1) - skew.tril(-1)
    return torch.linalg.eigvalsh(1j * skew).flip(0)[: N // 2]
