"""Rational transfer functions (Parnichkun et al. 2024, "State-free inference of state-space models: the transfer
function approach", arXiv 2405.06147), as in ruke1ire/RTF, `rtf.py`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longconv.functional import fft_conv

from .base import Filter, check_choice, check_sizes, filter_dtype, without_autocast

INITIALISATIONS = ("zeros", "xavier", "montel")
CONSTRAINTS = ("no", "l1_montel")


class RationalSystem(NamedTuple):
    """What one step needs: denominator and numerator (D, N), pass-through (D,), all float64."""

    a: Tensor
    b: Tensor
    h_0: Tensor


class RTFFilter(Filter):
    """The impulse response of a rational transfer function, and the recurrence in companion form that computes it:

        H(z) = h_0 + (b_1 z^-1 + ... + b_N z^-N) / (1 + a_1 z^-1 + ... + a_N z^-N)
        w_t = u_t - sum_n a_n w_{t-n},     y_t = h_0 u_t + sum_n b_n w_{t-n}

    The taps are those of the power series: 1 / a(z) by Newton's iteration, in which each FFT doubles the number of
    known coefficients and leaves them as they are, times b(z). O(L log L), in float64; no N x N matrices.

    The published kernel is another one: the inverse DFT of b / a at n = `trunc_len` roots of unity (one more if that is
    odd), which is the impulse response aliased in time. It equals the first taps of the system whose numerator is
    c = b (I - A^n)^-1, A the companion matrix: b then is the numerator corrected for truncation. (Tap n of that system
    wraps onto lag 0.) With `trunc_len` b means this, `forward` evaluates the published kernel, and the recurrence is
    that of the system with those taps. (The published `get_C` solves with the matrix where the row vector needs its
    transpose; here it is as the paper has it.) The published kernel is finite for any a. The power series grows without
    bounds when a pole leaves the unit circle, as training may have it do unless a is constrained.

    Parameters: a (num_a, N), b (D, N), h_0 (D,), and scalar (num_a,) with `"l1_montel"`; marked with `lr` and no weight
    decay. The published code keeps a and b in one tensor.

    Args:
        channels: D.
        order: N, the state size.
        num_a: different denominators, a divisor of D; default D. Each serves D / num_a channels in a row.
        init: of a and b: `"zeros"`, `"xavier"` (uniform within +-1/sqrt(N); may be unstable), `"montel"` (+-1/N).
        constraint: `"no"`, or `"l1_montel"`: a / (sum |a| + |scalar| + 1e-6), whose poles are inside the unit circle.
        trunc_len: evaluate the published, aliased kernel of so many taps, more than N; None for the true taps.
        lr: learning rate.

    Raises:
        ValueError: a size below 1, `num_a` does not divide D, `trunc_len` <= N, or an unknown choice.
    """

    def __init__(
        self,
        channels: int,
        order: int = 64,
        *,
        num_a: int | None = None,
        init: str = "zeros",
        constraint: str = "no",
        trunc_len: int | None = None,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        num_a = channels if num_a is None else num_a
        check_sizes(channels=channels, order=order, num_a=num_a)
        check_choice("init", init, INITIALISATIONS)
        check_choice("constraint", constraint, CONSTRAINTS)
        if channels % num_a:
            raise ValueError(f"num_a must divide channels = {channels}, got {num_a}")
        if trunc_len is not None and trunc_len <= order:
            raise ValueError(f"trunc_len must be larger than order = {order}, got {trunc_len}")
        self.channels, self.order, self.num_a = channels, order, num_a
        self.init, self.constraint, self.max_length, self.lr = init, constraint, trunc_len, lr
        dtype = filter_dtype()
        self.a = nn.Parameter(torch.empty(num_a, order, dtype=dtype))
        self.b = nn.Parameter(torch.empty(channels, order, dtype=dtype))
        self.h_0 = nn.Parameter(torch.empty(channels, dtype=dtype))
        if constraint == "l1_montel":
            self.scalar: nn.Parameter | None = nn.Parameter(torch.empty(num_a, dtype=dtype))
        else:
            self.register_parameter("scalar", None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as published: a and b by `init`, h_0 ~ N(0, 1), scalar uniform in [0, 1)."""
        bound = {"zeros": 0.0, "xavier": self.order**-0.5, "montel": 1 / self.order}[self.init]
        nn.init.uniform_(self.a, -bound, bound)
        nn.init.uniform_(self.b, -bound, bound)
        nn.init.normal_(self.h_0)
        if self.scalar is not None:
            nn.init.uniform_(self.scalar)
        for name, _ in self.named_parameters():
            self.mark(name, lr=self.lr, weight_decay=0.0)

    @property
    def support(self) -> None:
        """None: the impulse response does not end."""
        return None

    @property
    def state_size(self) -> int:
        """Real state variables of one channel."""
        return self.order

    def forward(self, L: int) -> Tensor:
        """Return the first `L` taps, (channels, L), float32 (float64 for float64 parameters).

        Raises:
            ValueError: `L` is below 1, or above `trunc_len`.
        """
        self.check_length(L)
        with without_autocast(self.a.device):
            if self.max_length is not None:
                return self._aliased(self.max_length)[:, :L].to(self.b.dtype).contiguous()
            a, b, h_0 = self.prepare_step()
            taps = h_0[:, None]
            if L > 1:
                taps = torch.cat([taps, fft_conv(reciprocal_series(a, L - 1)[None], b)[0]], dim=-1)
            return taps.to(self.b.dtype)

    def prepare_step(self) -> RationalSystem:
        """Return the system, float64: compute it once, and give it to `step` for every token."""
        with without_autocast(self.a.device):
            a, b, h_0 = self._denominator(), self.b.double(), self.h_0.double()
            if self.max_length is not None:
                b, last = self._correct(a, b, self.max_length + self.max_length % 2)
                h_0 = h_0 + last
            return RationalSystem(self._repeat(a), b, h_0)

    def init_state(self, batch: int) -> Tensor:
        """Return the zero state (batch, D, N) float64: w_{t-1}, ..., w_{t-N}."""
        return torch.zeros(batch, self.channels, self.order, dtype=torch.float64, device=self.a.device)

    def step(self, u_t: Tensor, state: Tensor, system: RationalSystem | None = None) -> tuple[Tensor, Tensor]:
        """Advance by one input: u_t (B, D), state (B, D, N) -> y_t (B, D), new state. `system` from `prepare_step`."""
        a, b, h_0 = system or self.prepare_step()
        y = h_0 * u_t + (b * state).sum(-1)
        w = u_t - (a * state).sum(-1)
        return y.to(u_t.dtype), torch.cat([w[..., None], state[..., :-1]], dim=-1)

    def scan(
        self, u: Tensor, state: Tensor | None = None, system: RationalSystem | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run over u (B, D, L) from `state` (None: zeros): y (B, D, L) and the final state (B, D, N). O(L log L)."""
        system = system or self.prepare_step()
        w = self._inner(u, state, system)
        # Of w, y_t needs w_{t-1} .. w_{t-N}; the history stands before it.
        y = fft_conv(w[..., :-1], system.b)[..., -u.shape[-1] :]
        return (y + system.h_0[:, None] * u).to(u.dtype), self._last(w)

    def final_state(self, u: Tensor, state: Tensor | None = None, system: RationalSystem | None = None) -> Tensor:
        """Return only the state (B, D, N) after u (B, D, L)."""
        return self._last(self._inner(u, state, system or self.prepare_step()))

    def _inner(self, u: Tensor, state: Tensor | None, system: RationalSystem) -> Tensor:
        """w_{-N} .. w_{L-1}, (B, D, N + L): its past in the state is what some input before time 0 would have left."""
        state = self.init_state(u.shape[0]) if state is None else state
        past = fft_conv(state.flip(-1), F.pad(system.a, (1, 0), value=1.0))
        return fft_conv(
            torch.cat([past, u.to(past.dtype)], dim=-1), reciprocal_series(system.a, self.order + u.shape[-1])
        )

    def _last(self, w: Tensor) -> Tensor:
        return w[..., -self.order :].flip(-1)

    def _denominator(self) -> Tensor:
        a = self.a.double()
        if self.scalar is None:
            return a
        return a / (a.abs().sum(-1) + self.scalar.double().abs() + 1e-6)[:, None]

    def _correct(self, a: Tensor, b: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The numerator c (D, N) whose system has the aliased kernel, and its tap n (D,), which wraps onto lag 0."""
        A = _companion(a)
        before = A.matrix_power(n - 1)
        remaining = torch.eye(self.order, dtype=a.dtype, device=a.device) - A @ before
        c = torch.linalg.solve(remaining, b.view(self.num_a, -1, self.order), left=False)
        last = c @ before[..., :1]
        return c.reshape(b.shape), last.reshape(-1)

    def _repeat(self, a: Tensor) -> Tensor:
        return a.repeat_interleave(self.channels // self.num_a, dim=0)

    def _aliased(self, trunc_len: int) -> Tensor:
        """The published kernel, (D, n)."""
        n = trunc_len + trunc_len % 2
        denominator = torch.fft.rfft(F.pad(self._denominator(), (1, 0), value=1.0), n)
        numerator = torch.fft.rfft(F.pad(self.b.double(), (1, 0)), n)
        return torch.fft.irfft(numerator / self._repeat(denominator) + self.h_0.double()[:, None], n)

    def extra_repr(self) -> str:
        """The sizes and choices, for `print(model)`."""
        return (
            f"channels={self.channels}, order={self.order}, num_a={self.num_a}, constraint={self.constraint}, "
            f"trunc_len={self.max_length}"
        )


def reciprocal_series(a: Tensor, length: int) -> Tensor:
    """The first coefficients of 1 / (1 + a_1 z^-1 + ... + a_N z^-N), by Newton's iteration.

    If g holds the first m coefficients and e the next m of a g, then -g e are the next m of the result.

    Args:
        a: (D, N) real.
        length: number of coefficients, >= 1.

    Returns:
        (D, length) in a's dtype. Differentiable.
    """
    monic = F.pad(a, (1, 0), value=1.0)
    g = torch.ones_like(monic[:, :1])
    while (m := g.shape[-1]) < length:
        # 2m points: what wraps around lands on the m coefficients that are not needed.
        spectrum = torch.fft.rfft(g, 2 * m)
        residual = torch.fft.irfft(spectrum * torch.fft.rfft(monic[:, : 2 * m], 2 * m), 2 * m)[:, m:]
        following = torch.fft.irfft(spectrum * torch.fft.rfft(residual, 2 * m), 2 * m)[:, :m]
        g = torch.cat([g, -following], dim=-1)
    return g[:, :length]


def _companion(a: Tensor) -> Tensor:
    """The state matrix (num_a, N, N) of the companion form: -a in the first row, a shift below."""
    shift = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)[:-1]
    return torch.cat([-a[:, None], shift.expand(len(a), -1, -1)], dim=1)
