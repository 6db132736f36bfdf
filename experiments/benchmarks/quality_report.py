"""The rows of `longconv bench quality`, their tables and their plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .report import styles

try:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    from rich import box
    from rich.console import Console
    from rich.table import Table
except ImportError as error:
    raise ImportError(f"benchmarks need {error.name}: pip install 'longconv[bench]'") from error

#: Bits per byte that a distillation may cost at the order that the smallest tolerance picks.
TARGET = 0.005


@dataclass(frozen=True)
class QualityRow:
    """One line of the results: a student, and what it lost. The fields are the columns.

    Attributes:
        date: start of the run, UTC, ISO 8601 to the minute.
        device: model of the processor or GPU; `cpu_threads`, `torch`, `python`, `longconv` as in `report.Row`.
        model: name of the teacher.
        parameters: of the teacher.
        train_seconds: how long it was trained, in `train_updates` updates.
        method: of the distillation, with its options.
        order: real states of every filter, at most; or else
        tol: relative L2 error asked of every filter.
        max_order: the limit with `tol`.
        reached: fraction of the filters within `tol`; None for an order.
        fine_tuned_seconds: how long the student was fine-tuned with its teacher; 0 for not at all.
        taps: of each filter.
        filters: how many there are.
        states_mean: real states of a filter; `states_max` likewise.
        state_size: real numbers of state that the long filters keep for one sequence.
        filter_error: relative L2 error of all filters' taps together.
        filter_error_worst: the largest of a single filter.
        distill_seconds: how long the distillation took.
        tokens: predicted tokens of test text, of `text_bytes` bytes.
        teacher_bits_per_byte: and `student_bits_per_byte`.
        bits_per_byte_lost: their difference.
        kl: KL(teacher || student), nats per token.
        top1: how often both have the same likeliest token.
    """

    date: str
    device: str
    cpu_threads: int
    torch: str
    python: str
    longconv: str
    model: str
    parameters: int
    train_seconds: float
    train_updates: int
    method: str
    order: int | None
    tol: float | None
    max_order: int
    reached: float | None
    fine_tuned_seconds: float
    taps: int
    filters: int
    states_mean: float
    states_max: int
    state_size: int
    filter_error: float
    filter_error_worst: float
    distill_seconds: float
    tokens: int
    text_bytes: int
    teacher_bits_per_byte: float
    student_bits_per_byte: float
    bits_per_byte_lost: float
    kl: float
    top1: float

    @property
    def setting(self) -> str:
        """What was asked for, in a word."""
        return f"order {self.order}" if self.tol is None else f"tol {self.tol:g}"

    def __str__(self) -> str:
        tuned = f", fine-tuned {self.fine_tuned_seconds:.0f} s" if self.fine_tuned_seconds else ""
        return (
            f"{self.model} {self.method} {self.setting}{tuned}: {self.states_mean:.1f} states per filter, "
            f"error {self.filter_error:.1e}, {self.bits_per_byte_lost:+.5f} bits per byte, "
            f"KL {self.kl:.1e}, top-1 {100 * self.top1:.2f}%"
        )


def print_tables(rows: Sequence[QualityRow], console: Console) -> None:
    """Every row of one run, a block for each model; and what the smallest tolerance costs."""
    first = rows[0]
    where = f"{first.device}, {first.cpu_threads} CPU threads, torch {first.torch}, longconv {first.longconv}"
    table = Table(
        title=f"quality after distillation, {first.date}\n{where}",
        caption="states: of a filter, on average; lost: bits per byte; KL: nats per token",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("", no_wrap=True)
    for heading in ("states", "filter\nerror", "lost", "KL", "top-1,\n%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == name]
        table.add_section()
        table.add_row(f"[bold]{name}[/]")
        table.add_row(f"  {mine[0].teacher_bits_per_byte:.4f} bits per byte")
        for row in mine:
            tuned = f", tuned {row.fine_tuned_seconds:.0f} s" if row.fine_tuned_seconds else ""
            table.add_row(
                f"  {row.method}, {row.setting}{tuned}",
                f"{row.states_mean:.1f}",
                f"{row.filter_error:.1e}",
                f"{row.bits_per_byte_lost:+.5f}",
                f"{row.kl:.1e}",
                f"{100 * row.top1:.1f}",
            )
    console.print(table)
    if not (asked := [row.tol for row in rows if row.tol is not None]):
        return
    tol = min(asked)
    title = f"at the orders that a tolerance of {tol:g} picks\n(target: at most {TARGET} bits per byte lost)"
    table = Table(title=title, caption="within: filters that reach the tolerance", box=box.SIMPLE_HEAD)
    table.add_column("", no_wrap=True)
    for heading in ("states", "within", "lost", "KL", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        if row.tol == tol and row.reached is not None:
            verdict = "reached" if row.bits_per_byte_lost <= TARGET else "[bold]missed[/]"
            table.add_row(
                f"{row.model}, {row.method}",
                f"{row.states_mean:.1f}",
                f"{100 * row.reached:.0f}%",
                f"{row.bits_per_byte_lost:+.5f}",
                f"{row.kl:.1e}",
                verdict,
            )
    console.print(table)
    if any(row.tol == tol and row.reached is not None and row.reached < 1 for row in rows):
        console.print(
            f"Filters that are not within the tolerance have the most states that were allowed, {first.max_order}, or "
            "as many as their method can use.",
            highlight=False,
        )


def plot(rows: Sequence[QualityRow], path: Path) -> None:
    """Draw bits per byte lost, and agreement, against the order, into a PNG file.

    A colour for every model and a line style for every method; a star is a student that was fine-tuned.
    """
    by_order = [row for row in rows if row.order is not None]
    if not by_order:
        return
    models, methods = (list(dict.fromkeys(getattr(row, name) for row in by_order)) for name in ("model", "method"))
    orders = sorted({row.order for row in by_order if row.order is not None})
    figure = Figure(figsize=(11, 5), layout="constrained")
    lost, agreement = figure.subplots(1, 2)
    for panel, column, factor in ((lost, "bits_per_byte_lost", 1), (agreement, "top1", 100)):
        for i, model in enumerate(models):
            color, marker, _ = styles(i)
            for method, dash in zip(methods, ("-", "--", ":", "-.", (0, (1, 4))), strict=False):
                here = [row for row in by_order if (row.model, row.method) == (model, method)]
                line = sorted((row for row in here if not row.fine_tuned_seconds), key=lambda row: row.order or 0)
                label = model if len(methods) == 1 else f"{model}, {method}"
                x, y = [row.order for row in line], [factor * getattr(row, column) for row in line]
                panel.plot(x, y, color=color, marker=marker, ls=dash, lw=1.6, markersize=5, label=label)
                tuned = [row for row in here if row.fine_tuned_seconds]
                x, y = [row.order for row in tuned], [factor * getattr(row, column) for row in tuned]
                panel.plot(x, y, color=color, marker="*", ls="", markersize=12, markeredgecolor="black")
        panel.set_xscale("log", base=2)
        panel.xaxis.set_major_locator(FixedLocator(orders))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.set_xlabel("order: real states per filter")
        panel.grid(axis="y", color="0.85")
        panel.spines[["top", "right"]].set_visible(False)
    lost.axhline(TARGET, color="0.4", lw=1, ls=(0, (4, 4)))
    lost.annotate(
        f"{TARGET:g}", (orders[-1], TARGET), xytext=(0, 3), textcoords="offset points", color="0.4", ha="right"
    )
    lost.set_yscale("symlog", linthresh=1e-4)
    lost.set_ylim(top=max(5 * TARGET, lost.get_ylim()[1]))
    lost.set_title("Bits per byte lost", loc="left")
    agreement.set_title("Same likeliest token as the teacher, %", loc="left")
    handles, labels = lost.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    stars = "; stars: fine-tuned" if any(row.fine_tuned_seconds for row in by_order) else ""
    figure.suptitle(f"Students of models trained {by_order[0].train_seconds:.0f} s, on test text{stars}", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
