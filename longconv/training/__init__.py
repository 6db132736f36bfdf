"""Training with the Hugging Face Trainer: our optimiser groups, schedule, log and checkpoints.

config.py is what can be chosen in any run, language.py and classify.py what is trained: a configuration each, and a
`Job` (job.py) that knows the task and the model; run.py is `train`, the whole of it, and result.py what it returns.
trainer.py is what we do differently from the Trainer (parameter groups, a schedule that can follow the clock,
checkpoints written whole), teacher.py the same with a teacher, classify_trainer.py the same for classifiers, whose
batches batches.py puts together; initial.py starts from a saved model; callbacks.py keeps the clock, the log and the
progress bar; evaluate.py measures a saved classifier.
"""

from .classify import ClassifyConfig, TaskCard
from .config import RunConfig
from .evaluate import evaluate_classifier
from .language import TrainConfig
from .result import Interrupted, TrainResult
from .run import is_finished, train
from .trainer import DivergedError, parameter_groups, schedule

__all__ = [
    "ClassifyConfig",
    "DivergedError",
    "Interrupted",
    "RunConfig",
    "TaskCard",
    "TrainConfig",
    "TrainResult",
    "evaluate_classifier",
    "is_finished",
    "parameter_groups",
    "schedule",
    "train",
]
