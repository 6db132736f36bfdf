"""Training with the Hugging Face Trainer: our optimiser groups, schedule, log and checkpoints.

config.py is what can be chosen; run.py is `train`, the whole of it; initial.py starts from a saved model; trainer.py is
what we do differently from the Trainer (parameter groups, a schedule that can follow the clock, checkpoints written
whole), and teacher.py the same with a teacher; callbacks.py keeps the clock, the log and the progress bar.
"""

from .config import TrainConfig
from .run import TrainResult, is_finished, train
from .trainer import parameter_groups, schedule

__all__ = ["TrainConfig", "TrainResult", "is_finished", "parameter_groups", "schedule", "train"]
