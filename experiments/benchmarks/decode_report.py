"""Results of `longconv bench decode`: the columns, the tables, the plot."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import transformers
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from rich import box
from rich.console import Console
from rich.table import Table

from .decode_contestants import ATTENTION, CACHED, CONTESTANTS, DISTILLED, GPT2, GPT2_STATIC, SIZES, Size
from .report import Timing, environment, length_label, styles

Status = Literal["ok", "does not fit", "out of memory", "failed", "wrong"]


@dataclass(frozen=True)
class DecodeRow:
    """One line of a results file; the fields are its columns.

    Attributes:
        date: when the point was measured, UTC, ISO 8601 to the minute.
        device: model of the processor or GPU.
        kind: "cpu" or "cuda".
        cpu_threads: threads that torch may use on the CPU.
        torch: version; `transformers`, `python` and `longconv` likewise.
        dtype: of weights, activations, keys and values.
        state_dtype: of the states of distilled filters.
        size: name of the shape, with so many `layers` of `width` channels.
        parameters: weights of the contestant, filters included.
        modes: complex modes of each distilled filter.
        contestant: see `decode_contestants`.
        context: tokens before the first timed one.
        batches: "max", or the number of sequences asked for.
        batch: sequences decoded together; 0 if not even one fits.
        memory_GB: 10^9 bytes that states, and what a step allocates, may take: the weights are not part of it.
        status: "ok"; or "does not fit" into that memory, "out of memory", "failed" for what raised, "wrong" for what
            differs from its own forward pass: these have no times.
        launches: "replayed" for a CUDA graph, else "eager".
        repeats: timed tokens.
        ms_median: milliseconds per token of every sequence; `ms_min` and `ms_max` likewise.
        ms_rare: the part of each of these three that rare steps add on average (`decode_states.rare_steps`).
        tokens_per_s: of all sequences together, from the median.
        state_MB: 10^6 bytes of state for each sequence.
        shared_MB: 10^6 bytes beside the weights that all sequences share: taps of filters.
        peak_MB: 10^6 bytes at the peak of filling the state and two steps, state included.
    """

    date: str
    device: str
    kind: str
    cpu_threads: int
    torch: str
    transformers: str
    python: str
    longconv: str
    dtype: str
    state_dtype: str
    size: str
    layers: int
    width: int
    parameters: int
    modes: int
    contestant: str
    context: int
    batches: str
    batch: int
    memory_GB: float
    status: Status
    launches: str
    repeats: int
    ms_median: float | None
    ms_min: float | None
    ms_max: float | None
    ms_rare: float | None
    tokens_per_s: float | None
    state_MB: float | None
    shared_MB: float | None
    peak_MB: float | None


class Outcome(NamedTuple):
    """What was measured at one point; the last five are None, or without meaning, unless `status` is "ok"."""

    status: Status
    batch: int
    launches: str = "eager"
    state_bytes: float | None = None
    shared_bytes: float | None = None
    peak_MB: float | None = None
    ms_rare: float = 0.0


def setting(
    device: torch.device, threads: int, dtypes: tuple[str, str], size: Size, modes: int, memory_GB: float
) -> dict[str, Any]:
    """The columns that all rows of one size share."""
    context = environment(device, threads)
    del context["memory"]
    return context | {
        "kind": device.type, "transformers": transformers.__version__, "dtype": dtypes[0], "state_dtype": dtypes[1],
        "size": size.name, "layers": size.layers, "width": size.width, "modes": modes, "memory_GB": round(memory_GB, 3),
    }  # fmt: skip


def make_row(
    common: Mapping[str, Any], name: str, parameters: int, context: int, batches: str, outcome: Outcome,
    times: Sequence[float],
) -> DecodeRow:  # fmt: skip
    """Put a row together; `times` are milliseconds of single tokens, none unless the status is "ok"."""
    timing = Timing.of([ms + outcome.ms_rare for ms in times]) if times else None
    state, shared = outcome.state_bytes, outcome.shared_bytes
    return DecodeRow(
        **common,
        parameters=parameters,
        contestant=name,
        context=context,
        batches=batches,
        batch=outcome.batch,
        status=outcome.status,
        launches=outcome.launches,
        repeats=len(times),
        ms_median=_digits(timing.median if timing else None),
        ms_min=_digits(timing.min if timing else None),
        ms_max=_digits(timing.max if timing else None),
        ms_rare=_digits(outcome.ms_rare if timing else None),
        tokens_per_s=_digits(1e3 * outcome.batch / timing.median if timing else None),
        state_MB=_digits(None if state is None else state / 1e6),
        shared_MB=_digits(None if shared is None else shared / 1e6),
        peak_MB=_digits(outcome.peak_MB),
    )


def _digits(x: float | None) -> float | None:
    return None if x is None else float(f"{x:.5g}")


def latest(rows: Sequence[DecodeRow], like: Mapping[str, Any]) -> list[DecodeRow]:
    """Of rows with the same device, versions and dtype as `like`, the last of each kind.

    So runs that share out the sizes or the batches make one table. Rows of another memory or number of modes count as
    older ones.
    """
    place = ("device", "cpu_threads", "torch", "transformers", "longconv", "dtype")
    found: dict[tuple[Any, ...], DecodeRow] = {}
    for row in rows:
        if all(getattr(row, name) == like[name] for name in place):
            found[row.size, row.batches, row.context, row.contestant] = row
    batches = sorted({row.batches for row in found.values()}, key=lambda b: (b == "max", int(b) if b != "max" else 0))
    order = {name: list(names) for name, names in (("size", SIZES), ("batches", batches), ("contestant", CONTESTANTS))}
    return sorted(
        found.values(),
        key=lambda r: (*(order[n].index(getattr(r, n)) for n in ("size", "batches")), r.context,
                       order["contestant"].index(r.contestant)),
    )  # fmt: skip


# --- Tables -----------------------------------------------------------------------------------------------------------


def print_table(rows: Sequence[DecodeRow], console: Console) -> None:
    """Print rows of one device, a block for every size, batch and context; those of `latest` are in order."""
    if not rows:
        return
    first = rows[0]
    title = f"{first.device}, {first.cpu_threads} CPU threads, {first.dtype}, {first.modes} modes\n"
    title += f"torch {first.torch}, transformers {first.transformers}, longconv {first.longconv}, {rows[-1].date}"
    caption = (
        "ms: per token, median and range; ratio: tokens/s of the distilled model over these; state: of one sequence"
    )
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    table.add_column("contestant", no_wrap=True)
    for heading in ("batch", "ms", "min", "max", "tokens/s", "ratio", "state\nMB", "peak\nMB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (size, batches, context), block in itertools.groupby(rows, key=lambda r: (r.size, r.batches, r.context)):
        here = {row.contestant: row for row in block}
        table.add_section()
        most = f"batch max of {next(iter(here.values())).memory_GB:.3g} GB" if batches == "max" else f"batch {batches}"
        table.add_row(f"[bold]{size}, context {context:,}, {most}[/]")
        for name, row in here.items():
            if row.ms_median is None:
                table.add_row(f"  {name}", str(row.batch or ""), f"[red]{row.status}[/]")
                continue
            ratio = _over(here.get(DISTILLED), row)
            numbers = [row.ms_median, row.ms_min, row.ms_max, row.tokens_per_s, ratio, row.state_MB, row.peak_MB]
            table.add_row(f"  {name}", str(row.batch), *("" if x is None else _short(x) for x in numbers))
    console.print(table)


class Target(NamedTuple):
    """One line of what was to be reached: `value` is to be at most, or at least, `bound` (None: for information)."""

    size: str
    what: str
    value: float
    bound: float | None
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether it is; None without a bound."""
        return None if self.bound is None else (self.value <= self.bound if self.at_most else self.value >= self.bound)


# What is to be reached, and at which contexts.
FLAT, OVER_ATTENTION, OVER_CACHED = 1.1, 10.0, 1.5
LEAST_CONTEXT, MOST_CONTEXT = 2048, 16384


def targets(rows: Sequence[DecodeRow]) -> list[Target]:
    """The ratios of interest, from rows of `latest`, for every size.

    On a CPU ten times the throughput of attention is to be reached at 16,384 tokens; on a GPU that, and 1.5 times a
    cached history's, from 2,048 on.
    """
    found = []
    for size, of_size in itertools.groupby(rows, key=lambda r: r.size):
        here = {(r.batches, r.context, r.contestant): r for r in of_size}
        contexts = sorted({context for _, context, _ in here})
        for batches in dict.fromkeys(b for b, _, _ in here):
            ms = {c: here[batches, c, DISTILLED].ms_median for c in contexts if (batches, c, DISTILLED) in here}
            times = {c: value for c, value in ms.items() if value is not None}
            if len(times) > 1:
                short, long = min(times), max(times)
                what = f"{DISTILLED}, batch {batches}: ms at {long:,} over {short:,}"
                found.append(Target(size, what, times[long] / times[short], FLAT if batches == "1" else None, True))
        on_gpu = any(row.kind == "cuda" for row in here.values())
        for context, (rivals, bound) in itertools.product(
            contexts, (((ATTENTION,), OVER_ATTENTION), ((CACHED,), OVER_CACHED), ((GPT2, GPT2_STATIC), None))
        ):
            ratios = [_over(here.get(("max", context, DISTILLED)), here.get(("max", context, r))) for r in rivals]
            ratio = min((r for r in ratios if r is not None), default=None)
            due = (
                LEAST_CONTEXT <= context <= MOST_CONTEXT
                if on_gpu
                else (context, bound) == (MOST_CONTEXT, OVER_ATTENTION)
            )
            if ratio is not None:
                rival = rivals[0] if len(rivals) == 1 else "the better GPT-2"
                what = f"tokens/s over {rival}, batch max, context {context:,}"
                found.append(Target(size, what, ratio, bound if due else None))
    return found


def print_targets(found: Sequence[Target], console: Console) -> None:
    """Print the ratios, and whether they are what was to be reached."""
    table = Table(title="distilled Hyena", box=box.SIMPLE_HEAD)
    for heading in ("size", "ratio", "", "to reach", ""):
        table.add_column(heading, justify="left" if heading in ("size", "ratio") else "right", no_wrap=True)
    for target in found:
        bound = "" if target.bound is None else f"{'<=' if target.at_most else '>='} {target.bound:g}"
        verdict = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[target.reached]
        table.add_row(target.size, target.what, f"{target.value:.3g}", bound, verdict)
    console.print(table)


def _over(ours: DecodeRow | None, other: DecodeRow | None) -> float | None:
    if ours is None or other is None or ours.tokens_per_s is None or other.tokens_per_s is None:
        return None
    return ours.tokens_per_s / other.tokens_per_s


def _short(x: float) -> str:
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


# --- Plot -------------------------------------------------------------------------------------------------------------


def plot_decoding(rows: Sequence[DecodeRow], path: Path) -> None:
    """Draw rows of one device into a PNG file, sizes one under the other.

    Against the context: tokens/s of one sequence and of as many as the memory takes, with thin bars from the slowest to
    the fastest token, and the state of one sequence. Rows without times are left out.
    """
    rows = [row for row in rows if row.ms_median is not None]
    if not rows:
        return
    sizes = list(dict.fromkeys(row.size for row in rows))
    names = [name for name in CONTESTANTS if any(row.contestant == name for row in rows)]
    figure = Figure(figsize=(15, 0.9 + 4.1 * len(sizes)), layout="constrained")
    grid = figure.subplots(len(sizes), 3, squeeze=False)
    for size, (one, most, memory) in zip(sizes, grid, strict=True):
        here = [row for row in rows if row.size == size]
        for i, name in enumerate(names):
            mine = [row for row in here if row.contestant == name]
            _speed(one, [row for row in mine if row.batches == "1"], i, len(names))
            _speed(most, [row for row in mine if row.batches == "max"], i, len(names))
            states = {row.context: row.state_MB for row in mine}
            contexts = sorted(states)
            memory.plot(_aside(contexts, i, len(names)), [states[c] for c in contexts], **_look(i), label=name)
            if name in (DISTILLED, ATTENTION):
                _annotate(most, [row for row in mine if row.batches == "max"], i)
        shape = f"{here[0].layers} layers of {here[0].width:,}"
        one.set_title(f"{size} ({shape}): one sequence", loc="left")
        most.set_title(f"{size}: as many (small numbers) as {here[0].memory_GB:.3g} GB take", loc="left")
        memory.set_title(f"{size}: state of one sequence", loc="left")
        one.set_ylabel("tokens per second")
        most.set_ylabel("tokens per second, all sequences")
        memory.set_ylabel("MB")
        for panel in (one, most, memory):
            _axes(panel, sorted({row.context for row in here}))
    handles, labels = grid[0, 2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    first = rows[0]
    threads = f", {first.cpu_threads} threads" if first.kind == "cpu" else ""
    figure.suptitle(
        f"decoding on {first.device}{threads}, {first.dtype}, {first.modes} modes per filter, torch {first.torch}, "
        f"transformers {first.transformers}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def _look(i: int) -> dict[str, Any]:
    color, marker, dash = styles(i)
    return {
        "color": color, "marker": marker, "ls": dash, "markersize": 5, "lw": 2.6 if i == 0 else 1.4, "zorder": 9 - i
    }  # fmt: skip


def _speed(panel: Any, rows: Sequence[DecodeRow], i: int, count: int) -> None:
    """One contestant's line, with bars."""
    rows = sorted(rows, key=lambda row: row.context)
    x = _aside([row.context for row in rows], i, count)
    look = _look(i)
    low, high = ([1e3 * r.batch / ms for r in rows if (ms := getattr(r, end))] for end in ("ms_max", "ms_min"))
    panel.vlines(x, low, high, color=look["color"], lw=0.9, alpha=0.7)
    panel.plot(x, [row.tokens_per_s for row in rows], **look)


def _aside(contexts: Sequence[int], i: int, count: int) -> list[float]:
    """Moved sideways a little, so that what is the same for several shows."""
    return [context * 2 ** (0.06 * (i - (count - 1) / 2)) for context in contexts]


def _annotate(panel: Any, rows: Sequence[DecodeRow], i: int) -> None:
    """How many sequences there are: above the points of the first line, below those of another."""
    style = {"xytext": (0, 7), "ha": "center"} if i == 0 else {"xytext": (-5, -9), "ha": "right"}
    for row in rows:
        where, color = (row.context, row.tokens_per_s), _look(i)["color"]
        panel.annotate(f"{row.batch:,}", where, textcoords="offset points", fontsize=7.5, color=color, **style)


def _axes(panel: Any, contexts: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.xaxis.set_major_locator(FixedLocator(contexts))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: length_label(value)))
    panel.yaxis.set_major_locator(LogLocator(subs=(1,)))
    panel.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.tick_params(axis="y", which="minor", labelsize=7, labelcolor="0.45")
    panel.set_xlabel("context, tokens")
    panel.grid(axis="y", which="major", color="0.85")
    panel.spines[["top", "right"]].set_visible(False)
