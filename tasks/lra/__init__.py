"""Long Range Arena: sequences of 784 to 262,144 steps and what they are (docs/lra.md).

classification.py   what every task is: splits on disk, loss, accuracy; tokens.py and images.py: of both kinds, with
                    their batches; sources.py: where published files are found; loading.py: how fast rows come
listops_task.py, pathfinder_task.py (and pathfinder_files.py), text.py, retrieval.py, cifar.py, mnist.py, digits.py:
                    the tasks
listops.py          expressions and their values        pathfinder.py   images and labels; settings.py: of which kind
random.py           numbers that depend on the seed     plans.py        where paddles go, many images at once
blocks.py           work on any number of cores         paddles.py      what depends on their angles, in tables
standin.py          tiny files in the published formats, for tests and trials
"""

from longconv.tasks.lra.cifar import Image, SCifar
from longconv.tasks.lra.digits import Digits
from longconv.tasks.lra.listops_task import ListOps
from longconv.tasks.lra.mnist import PMNIST, SMNIST
from longconv.tasks.lra.pathfinder_task import Path256, Path512, Pathfinder, Pathfinder32, Pathfinder64, PathX
from longconv.tasks.lra.retrieval import Retrieval
from longconv.tasks.lra.text import Text

__all__ = [
    "PMNIST",
    "SMNIST",
    "Digits",
    "Image",
    "ListOps",
    "Path256",
    "Path512",
    "PathX",
    "Pathfinder",
    "Pathfinder32",
    "Pathfinder64",
    "Retrieval",
    "SCifar",
    "Text",
]
