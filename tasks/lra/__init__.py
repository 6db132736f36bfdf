"""Long Range Arena: the tasks whose data are generated here, from a seed (docs/lra.md).

listops.py      expressions and their values            pathfinder.py   images and labels; settings.py: of which kind
random.py       numbers that depend on the seed only    plans.py        where paddles go, many images at once
blocks.py       work on any number of cores             paddles.py      what depends on their angles, in tables
task.py         the generators as tasks: splits on disk, batches, loss and metrics
"""

from longconv.tasks.lra.task import ListOps, Path256, Path512, Pathfinder, Pathfinder32, Pathfinder64, PathX

__all__ = ["ListOps", "Path256", "Path512", "PathX", "Pathfinder", "Pathfinder32", "Pathfinder64"]
