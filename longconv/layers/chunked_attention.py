"""Single-head attention inside chunks of the sequence, with a relative positional bias: the second half of MEGA.

Ma et al. 2022, "Mega: Moving Average Equipped Gated Attention", section 3, and facebookresearch/mega for what the paper
leaves out. Sample t attends to the samples of its own chunk, floor(t / C), so L samples cost O(L C). Chunks are counted
from a sequence's first real sample, wherever its padding is.

Shapes: B batch, L samples of this call, n samples carried over from the current chunk, Z of queries and keys, H of
values.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longconv.state import GrowingBuffer

# Of the function `laplace`: its mean and deviation, at which it meets relu(x)^2 with the same slope.
LAPLACE_MEAN, LAPLACE_DEVIATION = math.sqrt(0.5), math.sqrt(0.25 / math.pi)
ACTIVATIONS = ("softmax", "laplace", "relu2")


class SimpleBias(nn.Module):
    """One weight for every offset: `weight` (2M - 1,), that of offset j - i (key minus query) at M - 1 + j - i.

    Args:
        positions: M, the longest chunk.
    """

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions
        self.weight = nn.Parameter(torch.empty(2 * positions - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: N(0, 0.02^2)."""
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, n: int) -> Tensor:
        """Return the bias of offsets -(n-1) ... n-1: (2n - 1,)."""
        return self.weight[self.positions - n : self.positions + n - 1]


class RotaryBias(nn.Module):
    """The product of two vectors turned by the positions of query and key, for any length.

    With a, b = `alpha`, `beta` (Z,) read as Z/2 complex numbers, real parts first, the bias of offset d = j - i is
    `Re sum_m a_m conj(b_m) exp(-1j d theta_m)`, theta_m = 10000^(-2m/Z).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(dim))
        self.beta = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as published: N(0, 0.02^2)."""
        nn.init.normal_(self.alpha, std=0.02)
        nn.init.normal_(self.beta, std=0.02)

    def forward(self, n: int) -> Tensor:
        """Return the bias of offsets -(n-1) ... n-1: (2n - 1,), float32 at least."""
        dtype = torch.promote_types(self.alpha.dtype, torch.float32)
        (a, a_imag), (b, b_imag) = (v.to(dtype).chunk(2) for v in (self.alpha, self.beta))
        half, wide = a.shape[0], dtype if a.device.type == "mps" else torch.float64
        theta = 10000.0 ** -(torch.arange(half, dtype=wide, device=a.device) / half)
        # All offsets while compiling: the mirrored half of one position would be empty, which a graph depends on.
        first = 1 - n if torch.compiler.is_compiling() else 0
        angle = torch.arange(first, n, dtype=wide, device=a.device)[:, None] * theta
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        with torch.autocast(a.device.type, enabled=False):
            even, odd = cos @ (a * b + a_imag * b_imag), sin @ (a_imag * b - a * b_imag)
        return even + odd if first else torch.cat([(even - odd)[1:].flip(0), even + odd])


@dataclass
class ChunkState:
    """The current chunk so far: `keys` (B, n, Z) and `values` (B, n, H), growing along n.

    `filled` (B,) int64 says how many of the n are there in each row, the first ones; None if all are.
    """

    keys: GrowingBuffer
    values: GrowingBuffer
    filled: Tensor | None = None


class ChunkedAttention(nn.Module):
    """`out_i = sum_j f(q_i k_j / s + bias_{j-i}) v_j` over the j of i's chunk, and j <= i if causal.

    f is softmax over j with s = sqrt(Z), or elementwise `laplace` or `relu2`, where s is the number of keys
    summed over.

    Args:
        dim: Z.
        chunk_size: C; None for one chunk, whatever the length.
        max_length: the longest sequence, or None.
        activation: `"softmax"`, `"laplace"`, f(x) = (1 + erf((x - mean) / (deviation sqrt(2)))) / 2 with mean sqrt(1/2)
            and deviation sqrt(1 / (4 pi)), or `"relu2"`, relu(x)^2.
        positions: `"simple"` or `"rotary"`, the bias.
        causal: see above.
        dropout: probability of dropping an attention weight.

    Raises:
        ValueError: an unknown name, chunk_size < 1, an odd Z with `"rotary"`, or `"simple"` with neither a chunk size
            nor a maximal length, which its size depends on.
    """

    def __init__(
        self,
        dim: int,
        chunk_size: int | None,
        max_length: int | None,
        *,
        activation: str,
        positions: str,
        causal: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, or None for one chunk, got {chunk_size}")
        if activation not in ACTIVATIONS:
            raise ValueError(f"attention_activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if positions not in ("simple", "rotary"):
            raise ValueError(f"rel_pos_bias must be 'simple' or 'rotary', got {positions!r}")
        self.chunk_size, self.activation, self.causal = chunk_size, activation, causal
        longest = chunk_size or max_length
        self.bias: SimpleBias | RotaryBias
        if positions == "rotary":
            if dim % 2:
                raise ValueError(f"rel_pos_bias='rotary' needs an even zdim, got {dim}")
            self.bias = RotaryBias(dim)
        elif longest is None:
            raise ValueError("rel_pos_bias='simple' needs chunk_size or max_length: it has a weight for every offset")
        else:
            self.bias = SimpleBias(longest)
        self.dropout = nn.Dropout(dropout)

    def init_state(self, batch_size: int, dim: int, width: int, dtype: torch.dtype, device: torch.device) -> ChunkState:
        """Return the state before the first sample, for Z = `dim` and H = `width`."""
        keys = torch.zeros(batch_size, 0, dim, dtype=dtype, device=device)
        values = torch.zeros(batch_size, 0, width, dtype=dtype, device=device)
        return ChunkState(GrowingBuffer(keys, 1), GrowingBuffer(values, 1))

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Tensor | None = None,
        state: ChunkState | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, ChunkState | None]:
        """Attend within a sequence, or the next chunk of a stream (whose length has nothing to do with C).

        Args:
            q, k: (B, L, Z).
            v: (B, L, H).
            mask: (B, L) bool, true for real samples; the others are as if they were absent.
            state: of the samples before; None if there are none.
            return_state: whether the state is needed.

        Returns:
            out (B, L, H), and the state to go on with (perhaps None if it is not needed). What comes out at padded
            positions means nothing.
        """
        if mask is None and state is None and not return_state and torch.compiler.is_compiling():
            return self._traced(q, k, v), None
        if mask is None and (state is None or state.filled is None):
            return self._aligned(q, k, v, state)
        return self._ragged(q, k, v, mask, state)

    def _aligned(self, q: Tensor, k: Tensor, v: Tensor, state: ChunkState | None) -> tuple[Tensor, ChunkState]:
        """All rows are equally far into their chunks: finish the current one, then whole chunks, then the rest."""
        L = q.shape[1]
        n = 0 if state is None else state.keys.length
        if state is None or n == 0:
            keys, values = GrowingBuffer(k, 1), GrowingBuffer(v, 1)
        else:
            keys, values = state.keys.append(k), state.values.append(v)
        T = n + L
        C = self.chunk_size or T
        k, v = keys.view, values.view
        out = []
        head = min(L, C - n) if n else 0
        body = (L - head) // C * C
        if head:
            at = torch.arange(n, n + head, device=q.device)
            out.append(self._attend(q[:, :head], k[:, : n + head], v[:, : n + head], at))
        if body:
            starts = ((q, head), (k, n + head), (v, n + head))
            grid = [t[:, start : start + body].unflatten(1, (-1, C)) for t, start in starts]
            out.append(self._attend(grid[0], grid[1], grid[2], torch.arange(C, device=q.device)).flatten(1, 2))
        if rest := L - head - body:
            out.append(self._attend(q[:, -rest:], k[:, -rest:], v[:, -rest:], torch.arange(rest, device=q.device)))
        y = out[0] if len(out) == 1 else torch.cat(out, 1)
        left = T % C if self.chunk_size else T
        if left < T:  # copies, so that the state does not hold the whole sequence
            keys, values = (GrowingBuffer(t[:, T - left :].clone(), 1) for t in (k, v))
        return y, ChunkState(keys, values)

    def _traced(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A whole sequence in one graph for every length: the last chunk, and one more, are filled up.

        Lengths are not known, so whatever must not be 1 is at least 2, and samples are moved by index.
        """
        L, C = q.shape[1], self.chunk_size
        times = torch.arange(L, device=q.device)
        if C is None:
            T = L + 1 if isinstance(self.bias, RotaryBias) else L  # the other has no weights for more
            q, k, v = (nn.functional.pad(t, (0, 0, 0, T - L)) for t in (q, k, v))
            at = torch.arange(T, device=q.device)
            return self._attend(q, k, v, at, at < L)[:, :L]
        at = torch.arange(C, device=q.device)
        place = torch.arange(L // C + 2, device=q.device)[:, None] * C + at  # (chunks, C)
        q, k, v = (t[:, place.clamp(max=L - 1)] for t in (q, k, v))
        return self._attend(q, k, v, at, place < L)[:, times // C, times % C]

    def _ragged(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, state: ChunkState | None
    ) -> tuple[Tensor, ChunkState]:
        """Every row has its own place in its chunk: real samples are moved to the front of their row, and back."""
        B, L = q.shape[:2]
        real = torch.ones(B, L, dtype=torch.bool, device=q.device) if mask is None else mask
        if state is not None:
            n = state.keys.length
            filled = torch.full((B,), n, device=q.device) if state.filled is None else state.filled
            real = torch.cat([torch.arange(n, device=q.device) < filled[:, None], real], 1)
            k = torch.cat([state.keys.view.to(k.dtype), k], 1)
            v = torch.cat([state.values.view.to(v.dtype), v], 1)
        T = real.shape[1]
        C = self.chunk_size or T
        order = (~real).to(torch.int8).argsort(dim=1, stable=True)
        at = order.argsort(dim=1)[:, T - L :]  # where the new samples went
        k, v, real = _take(k, order), _take(v, order), real.gather(1, order)
        if T <= C:
            y = self._attend(q, k, v, at, real)
        else:
            whole = torch.zeros(B, T, q.shape[2], dtype=q.dtype, device=q.device)
            whole = whole.scatter(1, at[..., None].expand_as(q), q)
            grid = [nn.functional.pad(t, (0, 0, 0, -T % C)).unflatten(1, (-1, C)) for t in (whole, k, v)]
            valid = nn.functional.pad(real, (0, -T % C)).unflatten(1, (-1, C))
            out = self._attend(grid[0], grid[1], grid[2], torch.arange(C, device=q.device), valid)
            y = _take(out.flatten(1, 2), at)
        total = real.sum(1)
        left = total % C if self.chunk_size else total
        kept = torch.arange(min(T, C - 1) if self.chunk_size else T, device=q.device)
        last = ((total - left)[:, None] + kept).clamp(max=T - 1)
        return y, ChunkState(GrowingBuffer(_take(k, last), 1), GrowingBuffer(_take(v, last), 1), left)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, at: Tensor, real: Tensor | None = None) -> Tensor:
        """Attend from q (..., Q, Z), at places `at` (Q,) or (B, Q) among the keys, to k (..., K, Z), v (..., K, H).

        `real` (..., K) bool says which keys count.
        """
        K = k.shape[-2]
        place = torch.arange(K, device=q.device)
        allowed = place <= at[..., None] if self.causal else torch.ones_like(at[..., None] + place, dtype=torch.bool)
        if real is not None:
            # A padded query may see itself, because a softmax over nothing is NaN; real queries never see a padded key.
            allowed = (allowed & real[..., None, :]) | (place == at[..., None])
        # Row r of the windows has the offsets r - (K-1) ... r: those of the query at K - 1 - r.
        if torch.compiler.is_compiling():  # a graph for every length takes no windows of a size that it does not know
            bias = self.bias(K)[K - 1 - at[..., None] + place]
        else:
            bias = self.bias(K).unfold(0, K, 1)[K - 1 - at]
        scale = q.shape[-1] ** -0.5 if self.activation == "softmax" else 1.0
        scores = (q * scale) @ k.mT.to(q.dtype)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if self.activation == "softmax":
            weights = (scores + bias).masked_fill(~allowed, -torch.inf).softmax(-1)
        else:
            scores = scores / allowed.sum(-1, keepdim=True) + bias
            if self.activation == "laplace":
                weights = 0.5 * (1 + torch.erf((scores - LAPLACE_MEAN) / (LAPLACE_DEVIATION * math.sqrt(2))))
            else:
                weights = scores.relu().square()
            weights = weights * allowed
        return self.dropout(weights.to(v.dtype)) @ v

    def extra_repr(self) -> str:
        """The options, for `print(model)`."""
        return f"chunk_size={self.chunk_size}, activation={self.activation}, causal={self.causal}"


def _take(t: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B, n) of t (B, T, F), in that order: (B, n, F)."""
    return t.gather(1, index[..., None].expand(-1, -1, t.shape[-1]))
