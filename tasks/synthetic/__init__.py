"""Synthetic tasks: whether a mixer can recall and copy what it has seen (docs/synthetic.md).

task.py       what every task is: splits made from a seed, batches, loss, accuracy
rows.py       rows of a split, made in blocks when they are asked for        sampling.py   draws without replacement
metrics.py    accuracy by position and by distance
recall.py     associative recall, one query; the same among noise            mqar.py       many queries
induction.py  induction heads                                                copying.py    copying and selective copying
"""

from longconv.tasks.synthetic.copying import Copying, SelectiveCopying
from longconv.tasks.synthetic.induction import Induction
from longconv.tasks.synthetic.metrics import AnswerMetrics, Cell, predictions
from longconv.tasks.synthetic.mqar import MQAR
from longconv.tasks.synthetic.recall import NoisyRecall, Recall
from longconv.tasks.synthetic.rows import Rows
from longconv.tasks.synthetic.task import Synthetic

__all__ = [
    "MQAR",
    "AnswerMetrics",
    "Cell",
    "Copying",
    "Induction",
    "NoisyRecall",
    "Recall",
    "Rows",
    "SelectiveCopying",
    "Synthetic",
    "predictions",
]
