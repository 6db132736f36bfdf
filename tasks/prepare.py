"""`longconv data prepare`: make a task's data now, so that training starts at once."""

from pathlib import Path
from typing import Any

from longconv.tasks import available, get


def preparable() -> tuple[str, ...]:
    """Names of the tasks whose data can be made ahead."""
    return tuple(name for name in available() if name.startswith("lra/"))


def prepare(name: str, **options: Any) -> str:
    """Make what is not there yet of the data of the task called `name`, and say what there is and where.

    `options` are those of the task, such as ``seed``, ``sizes``, ``cache_dir`` and ``workers``. A run that is ended is
    gone on with by the next one.

    Raises ValueError for a task that has nothing to prepare, and what the task raises for wrong options.
    """
    if name not in preparable():
        raise ValueError(f"nothing to prepare for {name!r}; there is for: {', '.join(preparable())}")
    task = get(name, **options)
    lines = [f"{name}: {task.n_classes} classes, sequences of up to {task.length:,}"]
    files: dict[str, list[Path]] = task.prepare()
    for split, paths in files.items():
        megabytes = sum(path.stat().st_size for path in paths) / 1e6
        lines.append(f"{split:<12}{task.sizes[split]:>9,} rows  {len(paths):>5,} files  {megabytes:>10,.1f} MB")
    lines.append(f"in {task.cache_dir}")
    return "\n".join(lines)
