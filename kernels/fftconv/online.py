"""Exact causal convolution one sample at a time, without a recurrence: `OnlineConv`.

The fractal tiling of Flash Inference (Oncescu et al. 2024, "Flash Inference: Near Linear Time Inference for Long
Convolution Sequence Models and Beyond", section 3), which is relaxed multiplication (van der Hoeven 2002, "Relax, but
don't be too lazy") with one factor known. Outputs that are not due yet are kept as *pending* sums:

- A sample is added at once to the outputs of its own block of `BLOCK` samples, by one multiply-add.
- After block m the last U samples are added to the next U outputs by FFTs of 2U points, where U is `BLOCK` times the
  largest power of two that divides m: each input meets each later output exactly once, and with log L sizes of
  tiles at log L operations per sample, L samples cost O(L log^2 L).
- A *pass* adds all past inputs to at least as many outputs ahead. Blocks are counted from there, and where that
  horizon ends the next pass doubles it: no final length has to be known.

Shapes: B batch, D channels, T samples so far, K taps, i the index of a sample counted from the last pass.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from . import fft_conv

# Samples whose products are formed directly. On a CPU 32 and 128 cost the same within 5 per cent (64 and 768 channels).
BLOCK = 64
# Outputs that a pass looks ahead at least: at the start of a stream there are no inputs whose number could be doubled.
LOOK_AHEAD = 2 * BLOCK
# Points transformed together: on a CPU intermediates then stay in cache, elsewhere launches cost more.
GROUP_POINTS = {"cpu": 2**17}
GROUP_POINTS_ELSEWHERE = 2**26
# A chunk is fed in block by block if the past is at least this many times longer; else all is convolved afresh, which
# is cheaper for chunks as long as the past, but costs a pass before the next step.
CHUNK_RATIO = 2


class OnlineConv:
    """The state of `y[b,d,t] = sum_{s=0}^{K-1} k[d,s] v[b,d,t-s]` after T samples.

    A value: `step` and `extend` return the next state and leave this one usable. Both share memory, which belongs to
    whoever goes on first; a state that is continued a second time starts over with a copy of its inputs and a pass.

    A step costs O(D log^2 min(T, K)) amortised. Nothing is prepared before it is needed: the first step after the
    constructor, or after a long chunk, makes the pass of O(T log T). Memory: the last K - 1 inputs with as much or
    twice as much room behind them, pending outputs for that room, the taps, and spectra of about the taps' size for a
    stream of K samples, of at most eight times that for a longer one.

    For inference: with gradients enabled, tensors that require them are refused.

    Args:
        k: taps (D, K), lag 0 first, K >= 1; copied.
        past: the inputs so far (B, D, T), T >= 0; copied.

    Raises:
        ValueError: naming the argument whose shape or device does not fit, or that requires a gradient.
        TypeError: for a tensor that is not floating point.

    Attributes:
        length: T.
    """

    __slots__ = ("_storage", "length")

    def __init__(self, k: Tensor, past: Tensor) -> None:
        if past.dim() != 3:
            raise ValueError(f"past must have shape (B, D, T); got {tuple(past.shape)}")
        D = past.shape[1]
        if k.dim() != 2 or k.shape[0] != D or k.shape[1] == 0:
            raise ValueError(f"k must have shape (D, K) with D = {D} as in past and K >= 1; got {tuple(k.shape)}")
        for name, x in (("k", k), ("past", past)):
            _check_tensor(name, x, past.device)
        dtype = torch.promote_types(torch.promote_types(k.dtype, past.dtype), torch.float32)
        self.length = past.shape[-1]
        self._storage = _Storage.after(_Kernel(k.detach().to(dtype, copy=True)), past.detach(), self.length)

    @property
    def dtype(self) -> torch.dtype:
        """Of inputs and arithmetic: the widest of k's, past's and float32. Outputs have the dtype of what goes in."""
        return self._storage.inputs.dtype

    @property
    def taps(self) -> Tensor:
        """The taps (D, K), in the state's dtype."""
        return self._storage.kernel.k

    @property
    def inputs(self) -> Tensor:
        """The inputs on which outputs to come depend: (B, D, n), n = min(T, K - 1), a view in the state's dtype."""
        return self._storage.inputs_before(self.length)

    def step(self, v_t: Tensor) -> tuple[Tensor, "OnlineConv"]:
        """Take the next sample v_t (B, D); return its output y_t (B, D) in v_t's dtype, and the state after it.

        Raises:
            ValueError: shape, device or dtype do not fit the state, or v_t requires a gradient.
            TypeError: v_t is not floating point.
        """
        rows = self._storage.inputs.shape[:2]
        if v_t.shape != rows:
            raise ValueError(f"v_t must have shape (B, D) = {tuple(rows)}; got {tuple(v_t.shape)}")
        self._check_input("v_t", v_t)
        storage = self._storage.ready(self.length)
        y = storage.advance(self.length, v_t[..., None])
        return y[..., 0], self._over(storage, self.length + 1)

    def extend(self, v: Tensor) -> tuple[Tensor, "OnlineConv"]:
        """Take the next samples v (B, D, L), L >= 1; return their outputs (B, D, L) and the state after them.

        Raises:
            ValueError: shape, device or dtype do not fit the state, or v requires a gradient.
            TypeError: v is not floating point.
        """
        self._check_chunk(v)
        with torch.autocast(v.device.type, enabled=False):  # it would round what is summed in float32
            return self._extend(v)

    def _extend(self, v: Tensor) -> tuple[Tensor, "OnlineConv"]:
        L = v.shape[-1]
        if L > 1 and self.inputs.shape[-1] < CHUNK_RATIO * L:
            past = self._joined(v)
            return fft_conv(past, self.taps)[..., -L:].to(v.dtype), self._behind(past, L)
        outputs, storage, at = [], self._storage, self.length
        while at < self.length + L:
            storage = storage.ready(at)
            piece = v[..., at - self.length :][..., : storage.block_end(at) - at]
            outputs.append(storage.advance(at, piece))
            at += piece.shape[-1]
        return torch.cat(outputs, dim=-1), self._over(storage, at)

    def append(self, v: Tensor) -> "OnlineConv":
        """Return the state after the samples v (B, D, L), L >= 1, whose outputs are not wanted: O(T), no transform.

        Raises:
            ValueError, TypeError: as `extend`.
        """
        self._check_chunk(v)
        with torch.autocast(v.device.type, enabled=False):
            return self._behind(self._joined(v), v.shape[-1])

    def map(self, fn: Callable[[Tensor], Tensor], *, constants: bool = False) -> "OnlineConv":
        """Return a state of `fn` of every batched tensor (B, D, ...), and of the taps' tensors if `constants`.

        `fn` may select and repeat rows, move, or detach.
        """
        return self._over(self._storage.map(fn, constants), self.length)

    def _over(self, storage: "_Storage", length: int) -> "OnlineConv":
        state = OnlineConv.__new__(OnlineConv)
        state._storage, state.length = storage, length
        return state

    def _joined(self, v: Tensor) -> Tensor:
        """Return the kept inputs with v (B, D, L) behind them, or v itself."""
        v = v.detach().to(self.dtype)
        return v if self.length == 0 else torch.cat([self.inputs, v], dim=-1)

    def _behind(self, past: Tensor, L: int) -> "OnlineConv":
        """Return a state of its own after L more samples, which are the last of `past`."""
        length = self.length + L
        return self._over(_Storage.after(self._storage.kernel, past, length), length)

    def _check_chunk(self, v: Tensor) -> None:
        rows = self._storage.inputs.shape[:2]
        if v.dim() != 3 or v.shape[:2] != rows or v.shape[2] == 0:
            raise ValueError(f"v must have shape (B, D, L) with B, D = {tuple(rows)}, L >= 1; got {tuple(v.shape)}")
        self._check_input("v", v)

    def _check_input(self, name: str, v: Tensor) -> None:
        _check_tensor(name, v, self._storage.inputs.device)
        if v.dtype.itemsize > self.dtype.itemsize:
            raise ValueError(f"{name} is {v.dtype}, but the state was made for at most {self.dtype}")


class _Kernel:
    """The taps k (D, K) and what tiles need of them, computed when they do."""

    def __init__(self, k: Tensor) -> None:
        self.k = k
        # More than K - 1 samples back nothing is heard, so no tile is larger than that.
        self.largest_tile = BLOCK * max(1, 1 << (-(-(k.shape[1] - 1) // BLOCK) - 1).bit_length())
        self.first = F.pad(k[:, :BLOCK], (0, BLOCK - min(BLOCK, k.shape[1])))  # (D, BLOCK)
        self.spectra: dict[int, Tensor] = {}

    def spectrum(self, tile: int) -> Tensor:
        """Spectrum (D, tile + 1) of the first 2 tile taps."""
        if tile not in self.spectra:
            self.spectra[tile] = torch.fft.rfft(self.k[:, : 2 * tile], 2 * tile)
        return self.spectra[tile]

    def map(self, fn: Callable[[Tensor], Tensor]) -> "_Kernel":
        return _Kernel(fn(self.k))


class _Storage:
    """Inputs and pending outputs since a pass, written in place by the states that share them.

    Attributes:
        inputs: (B, D, kept + room): the inputs before the pass that still matter, and those after it.
        pending: (B, D, room): sums of all terms added so far to the outputs after the pass; None before a step.
        kept: inputs before the pass.
        origin: T at the pass.
        filled: T of the state that went furthest. Only that one may go on here: behind its back, for the others,
            the pending outputs contain inputs that are not theirs.
    """

    def __init__(
        self, kernel: _Kernel, inputs: Tensor, pending: Tensor | None, kept: int, origin: int, filled: int
    ) -> None:
        self.kernel, self.inputs, self.pending = kernel, inputs, pending
        self.kept, self.origin, self.filled = kept, origin, filled

    @staticmethod
    def after(kernel: _Kernel, past: Tensor, length: int) -> "_Storage":
        """Start with a copy of `past` (B, D, >= min(length, K - 1)), the last of `length` inputs."""
        kept = min(length, kernel.k.shape[1] - 1)
        size = _transform_size(max(2 * kept, kept + LOOK_AHEAD))
        inputs = torch.zeros(*past.shape[:2], size, dtype=kernel.k.dtype, device=past.device)
        inputs[..., :kept] = past[..., past.shape[-1] - kept :]
        return _Storage(kernel, inputs, None, kept, length, length)

    def inputs_before(self, length: int) -> Tensor:
        end, n = self.kept + length - self.origin, min(length, self.kernel.k.shape[1] - 1)
        return self.inputs[..., end - n : end]

    def block_end(self, length: int) -> int:
        """Return the T at which the block of sample number `length` ends."""
        i = length - self.origin
        return self.origin + min(i - i % BLOCK + BLOCK, self.inputs.shape[-1] - self.kept)

    def ready(self, length: int) -> "_Storage":
        """Return storage that takes sample number `length`: this one, with everything due added, or a new one."""
        i, room = length - self.origin, self.inputs.shape[-1] - self.kept
        written = (self.inputs, self.inputs if self.pending is None else self.pending)
        locked = not torch.is_inference_mode_enabled() and any(t.is_inference() for t in written)
        if self.filled != length or i == room or locked:
            return _Storage.after(self.kernel, self.inputs_before(length), length).ready(length)
        if self.pending is None:
            self._pass()
        elif i % BLOCK == 0:
            self.filled = -1  # until `advance`: should anything fail before, nobody relies on what is half done
            self._tile(i, room)
        return self

    def advance(self, length: int, v: Tensor) -> Tensor:
        """Take samples v (B, D, p) from number `length` on, all of one block; return their outputs in v's dtype."""
        assert self.pending is not None
        p, i, end = v.shape[-1], length - self.origin, self.block_end(length) - self.origin
        self.filled = -1
        block, wide = self.pending[..., i:end], v.to(self.inputs.dtype)
        self.inputs[..., self.kept + i : self.kept + i + p] = wide
        if p == 1:
            block.addcmul_(wide, self.kernel.first[:, : end - i])
        else:
            block.add_(fft_conv(F.pad(wide, (0, end - i - p)), self.kernel.first))
        self.filled = length + p
        return block[..., :p].to(v.dtype, copy=True)

    def map(self, fn: Callable[[Tensor], Tensor], constants: bool) -> "_Storage":
        def own(old: Tensor) -> Tensor:
            new = fn(old)
            handed_through = new.untyped_storage().data_ptr() == old.untyped_storage().data_ptr()
            return new.clone() if handed_through else new

        kernel = self.kernel.map(fn) if constants else self.kernel
        pending = None if self.pending is None else own(self.pending)
        return _Storage(kernel, own(self.inputs), pending, self.kept, self.origin, self.filled)

    def _pass(self) -> None:
        """Add the inputs before the pass to all outputs after it."""
        n = self.inputs.shape[-1]
        pending = torch.zeros_like(self.inputs[..., self.kept :])
        for d in _channel_groups(pending, n if self.kept else 0):
            # Products that wrap around the n points fall on outputs before the pass.
            spectrum = torch.fft.rfft(self.kernel.k[d, :n], n)
            pending[:, d] = _circular(self.inputs[:, d, : self.kept], spectrum, n)[..., self.kept :]
        self.pending = pending

    def _tile(self, i: int, room: int) -> None:
        """Add the last U inputs before index i, a multiple of `BLOCK`, to the U outputs from there on."""
        assert self.pending is not None
        U = min(i & -i, self.kernel.largest_tile)
        used, end = min(U, room - i), self.kept + i
        spectrum = self.kernel.spectrum(U)
        for d in _channel_groups(self.pending, 2 * U):
            y = _circular(self.inputs[:, d, end - U : end], spectrum[d], 2 * U)
            self.pending[:, d, i : i + used] += y[..., U : U + used]


def _circular(x: Tensor, spectrum: Tensor, n: int) -> Tensor:
    """Convolve x (B, D, m), zero-extended to n points, modulo n with what has the spectrum (D, n // 2 + 1)."""
    return torch.fft.irfft(torch.fft.rfft(x, n).mul_(spectrum), n)


def _channel_groups(x: Tensor, n: int) -> Iterator[slice]:
    """Yield slices of the channels of x (B, D, ...) to transform together at n points; none if there is nothing."""
    B, D = x.shape[:2]
    if B * n == 0:
        return
    points = GROUP_POINTS.get(x.device.type, GROUP_POINTS_ELSEWHERE)
    group = max(1, points // (B * n))
    for start in range(0, D, group):
        yield slice(start, min(start + group, D))


def _transform_size(n: int) -> int:
    """Return the least 2^j or 3 * 2^j that is at least n >= 2."""
    power = 1 << (n - 1).bit_length()
    return 3 * power // 4 if n <= 3 * power // 4 else power


def _check_tensor(name: str, x: Tensor, device: torch.device) -> None:
    if not x.is_floating_point():
        raise TypeError(f"{name} must be floating point; got {x.dtype}")
    if x.device != device:
        raise ValueError(f"{name} must be on the device of the inputs so far, {device}; got {x.device}")
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires a gradient, which OnlineConv has none of: use fft_conv, or torch.no_grad()")
