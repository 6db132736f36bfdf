"""What a recipe is."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longconv.training import ClassifyConfig, RunConfig, TaskConfig

#: Begins the source of a recipe of which nothing is published.
OURS = "ours, after "
#: Rows of the train splits, by task. (A recipe must be known without opening its task.)
ROWS = {
    "lra/listops": 96_000,
    "lra/text": 25_000,
    "lra/retrieval": 147_086,
    "lra/image": 45_000,
    "lra/scifar": 45_000,
    "lra/pathfinder32": 160_000,
    "lra/pathfinder64": 160_000,
    "lra/pathx": 160_000,
    "lra/path256": 160_000,
    "lra/path512": 160_000,
    "lra/smnist": 55_000,
    "lra/pmnist": 55_000,
    "lra/digits": 1_197,
    "audio/sc35": 84_843,
    "audio/sc10": 24_482,
    "audio/spoken-words": 24_000,
    "audio/ptbxl": 17_084,  # with superdiagnostic labels
}


@dataclass(frozen=True)
class Recipe:
    """A configuration with a name, and where its numbers are from.

    Attributes:
        name: "FAMILY.TASK.LAYER", of language models "lm.SIZE.MIXER", of audio "audio.TASK.MODEL".
        config: all that decides the run.
        source: a paper and its table, or a repository and its file; "ours, after ..." if nothing is published.
    """

    name: str
    config: RunConfig
    source: str

    @property
    def published(self) -> bool:
        """Whether the numbers are somebody's who published a result with them."""
        return not self.source.startswith(OURS)


def recipe(name: str, source: str, mixer: dict[str, Any], **options: Any) -> Recipe:
    """The recipe called "FAMILY.TASK.LAYER", of the task "lra/TASK" and one mixer in all blocks.

    After every epoch, and in runs of fewer than 20 after every twentieth, there are a checkpoint and an evaluation on
    the whole validation split: of these the best is tested.

    Args:
        name: of the recipe.
        source: see `Recipe`.
        mixer: options of the mixer.
        options: other fields of `ClassifyConfig`.
    """
    _, task, layer = name.split(".")
    config = ClassifyConfig(
        **{
            "output": Path("runs") / name,
            "task": f"lra/{task}",
            "mixers": layer,
            "mixer_options": {layer: mixer},
            "evaluate_batches": 0,
            "log_every": 50,
            **options,
        }
    )
    epoch, every = epoch_steps(config), math.ceil(planned_steps(config) / 20)
    return Recipe(
        name, dataclasses.replace(config, evaluate_every=min(epoch, every), save_every=min(epoch, every)), source
    )


def epoch_steps(config: TaskConfig) -> int:
    """Updates in a pass over the train split as published, or over as many rows as the options ask for."""
    rows = config.task_options.get("sizes", [ROWS[config.task]])[0]
    return math.ceil(rows / (config.batch_size * config.accumulate))


def planned_steps(config: RunConfig) -> int:
    """Updates that the recipe asks for: rows x epochs / batch, or fewer if it says how many."""
    if not isinstance(config, TaskConfig) or config.epochs is None:
        return config.steps
    steps = math.ceil(config.epochs * epoch_steps(config))
    return min(steps, config.steps) if config.steps else steps
