"""Launch the Triton kernels of `short_conv`: outputs, tiles, and which kernel writes what.

Tensors are read in whatever strides they have. y is contiguous; a gradient is laid out as what it belongs to, because
that is how the matrix product before it reads it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longconv.kernels.gpu import Config, bucket, choose, on_device_of

from . import triton_short as kernels
from .layout import channels_last, laid_out_as

# Programs that share the sum over time of the gradients of taps and bias: enough for the largest GPUs. It does not
# depend on the device, so neither does the order of the sum.
PROGRAMS = 2048
# Elements of a tile for each warp, and warps, the preferred pair first: for kernels that keep sums over time for every
# element, and for others; with samples contiguous, and with channels, where more samples use a tap that was read.
SUMMING_TILES = {"first": ((128, 4), (64, 4)), "last": ((128, 8), (64, 8))}
TILES = {"first": ((256, 4), (128, 4)), "last": ((512, 4), (256, 4))}


def forward(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    left: int,
    right: int,
    silu: bool,
) -> Tensor:
    """Evaluate `post * act(bias + sum_s weight[d,s] (pre u)[b,d,t-s+K-1-left])`, (B, D, T), contiguous.

    T = L + left + right - K + 1. All arithmetic is in float32, whatever the dtypes.

    Args:
        u: (B, D, L).
        weight: (D, K).
        bias: (D,) or None.
        pre_gate: (B, D, L) or None.
        post_gate: (B, D, T) or None.
        cu_seqlens: (N+1,) or None, boundaries of packed sequences; then left + right = K - 1.
        left: zeros before u.
        right: zeros behind u. Negative counts cut samples off.
        silu: whether act is SiLU.
    """
    (B, D, L), K = u.shape, weight.shape[1]
    T = L + left + right - K + 1
    y = torch.empty((B, D, T), dtype=u.dtype, device=u.device)
    arguments = _inputs(u, weight, bias, pre_gate, post_gate, cu_seqlens, T, K - 1 - left) | {"y": _strided(y)}
    _launch(kernels.forward_kernel, (B, D, T), arguments, {"K": K, "SILU": silu})
    return y


def backward(
    dy: Tensor,
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    left: int,
    right: int,
    silu: bool,
    needs: list[bool],
) -> list[Tensor]:
    """Gradients for (u, weight, bias, pre_gate, post_gate); those not in `needs` come back empty.

    Everything is recomputed from the inputs. Sums over time are taken in float32, in the same order in every run.
    """
    (B, D, L), K, T = u.shape, weight.shape[1], dy.shape[-1]
    du, dpre, dpost = (
        laid_out_as(x, x.shape[-1]) if need and x is not None else None
        for x, need in ((u, needs[0]), (pre_gate, needs[3]), (post_gate, needs[4]))
    )
    shift, constants = K - 1 - left, {"K": K, "SILU": silu}
    arguments = _inputs(u, weight, bias, pre_gate, post_gate, cu_seqlens, T, shift)
    arguments |= {"du": _strided(du), "dpre": _strided(dpre), "dpost": _strided(dpost), "dy": _strided(dy)}
    summing, sums = needs[1] or needs[2], None
    if K <= kernels.FUSED_TAPS and T == L:
        sums = _launch_sum(kernels.backward_kernel, (B, D, L), arguments, constants | {"SHIFT": shift}, summing)
    else:
        dz = dy
        if silu or post_gate is not None:
            dz = laid_out_as(u, T, torch.float32)  # rounded, it would show in the gradient of float32 taps
            _launch(kernels.activation_gradient_kernel, (B, D, T), arguments | {"dz": _strided(dz)}, constants)
        arguments["dz"] = _strided(dz)
        if du is not None or dpre is not None:
            _launch(kernels.input_gradient_kernel, (B, D, L), arguments, {"K": K})
        if summing:
            taps = {"K": K, "TAPS": min(K, kernels.TAPS_AT_ONCE)}
            sums = _launch_sum(kernels.tap_gradient_kernel, (B, D, T), arguments, taps, True)
    dweight = None if sums is None else sums[:, :K].sum(0).mT.to(weight.dtype).contiguous()
    dbias = None if sums is None or bias is None else sums[:, K].sum(0).to(bias.dtype)
    grads = (du, dweight, dbias, dpre, dpost)
    return [u.new_empty(0) if x is None or not need else x for x, need in zip(grads, needs, strict=True)]


def _strided(x: Tensor | None) -> tuple[Any, ...] | None:
    return None if x is None else (x, *x.stride())


def _inputs(
    u: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pre_gate: Tensor | None,
    post_gate: Tensor | None,
    cu_seqlens: Tensor | None,
    T: int,
    shift: int,
) -> dict[str, Any]:
    """Return what all kernels read, by the names that it has there."""
    bounds = None
    if cu_seqlens is not None:
        ends = torch.stack([cu_seqlens[:-1], cu_seqlens[1:]]).to(torch.int32)
        bounds = ends.repeat_interleave(cu_seqlens.diff(), dim=1, output_size=u.shape[-1])
    bias = None if bias is None else bias.contiguous()
    inputs = {"u": u, "weight": weight, "pre": pre_gate, "post": post_gate}
    sizes = {"D": u.shape[1], "L": u.shape[2], "T": T, "shift": shift}
    return {name: _strided(x) for name, x in inputs.items()} | {"bias": bias, "bounds": bounds} | sizes


def _launch(kernel: Any, shape: tuple[int, int, int], arguments: dict[str, Any], constants: dict[str, Any]) -> None:
    """Launch a kernel with a program for each tile of (B, D, T)."""
    if 0 not in shape:
        B, D, T = shape

        def start(config: Config) -> None:
            _start(kernel, B * _tiles(config, D, T)[0] * _tiles(config, D, T)[1], arguments, config)

        start(_choose(kernel, shape, arguments, constants, start))


def _launch_sum(
    kernel: Any, shape: tuple[int, int, int], arguments: dict[str, Any], constants: dict[str, Any], summing: bool
) -> Tensor | None:
    """Launch a kernel whose programs take several tiles each; return the sums (parts, K+1, D) that they wrote."""
    (B, D, T), K = shape, constants["K"]
    groups = -(-K // constants["TAPS"]) if "TAPS" in constants else 1
    device = arguments["u"][0].device
    if 0 in shape:
        return torch.zeros((1, K + 1, D), device=device) if summing else None

    def start(config: Config) -> Tensor | None:
        down, across = _tiles(config, D, T)
        tiles = B * across
        tiles_per_program = -(-tiles // max(1, min(tiles, PROGRAMS // (groups * down))))
        parts = -(-tiles // tiles_per_program)
        sums = torch.empty((parts, K + 1, D), device=device) if summing else None
        more = {"sums": sums, "tiles": tiles, "tiles_per_program": tiles_per_program}
        _start(kernel, groups * down * parts, arguments | more, config)
        return sums

    return start(_choose(kernel, shape, arguments, constants, start))


def _tiles(config: Config, D: int, T: int) -> tuple[int, int]:
    """Count the tiles over D channels and over T samples."""
    return -(-D // config.constants["BD"]), -(-T // config.constants["BL"])


def _choose(
    kernel: Any,
    shape: tuple[int, int, int],
    arguments: dict[str, Any],
    constants: dict[str, Any],
    start: Callable[[Config], object],
) -> Config:
    u, (_, D, T) = arguments["u"][0], shape
    layout = "last" if channels_last(u) else "first"
    traits = (str(u.dtype).removeprefix("torch."), bucket(D), *constants.values(), layout)
    tiles = (SUMMING_TILES if "sums" in kernel.arg_names else TILES)[layout]
    candidates = [_config(size, warps, D, T, layout, constants) for size, warps in tiles]
    return choose(kernel.fn.__name__, T, traits, candidates, u.device, start)


def _config(size: int, warps: int, D: int, T: int, layout: str, constants: dict[str, Any]) -> Config:
    """Tiles that are long in time if that is contiguous; about square if channels are, as y is the other way round."""
    size *= warps
    widest = max(1, size // 512, size // bucket(T)) if layout == "first" else 32 if size >= 1024 else 16
    BD = min(bucket(D), widest)
    BL = min(bucket(T), max(1, size // BD))
    # A tile that is turned round passes through shared memory, as float32 at most and padded.
    return Config(constants | {"BD": BD, "BL": BL}, num_warps=warps, num_stages=1, shared_bytes=8 * BD * BL)


def _start(kernel: Any, programs: int, arguments: dict[str, Any], config: Config) -> None:
    """Launch on the device of u, with those of the arguments that the kernel has."""
    given = {name: arguments[name] for name in kernel.arg_names if name in arguments}
    with on_device_of(arguments["u"][0]):
        kernel[(programs,)](**given, **config.launch())
