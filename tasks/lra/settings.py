"""Settings of Pathfinder's images, those of the Long Range Arena among them."""

from dataclasses import dataclass, replace

# name -> paddles of a target contour
DIFFICULTIES = {"easy": 6, "intermediate": 9, "hard": 14}


@dataclass(frozen=True)
class PathfinderConfig:
    """Settings of the images of one size, lengths in pixels. `pathfinder_config` has the published ones.

    size: height and width. contour_length: paddles of a target contour. margins: half the gap between paddles; drawn by
    lot for each image. padding: width of a rim that stays free. distractor_paddles: paddles of all distractors, at
    most. contrast: brightness of a stroke that covers a whole pixel; discs have 1.

    Raises ValueError if the middle, 2 `seed_distance` from the border, is empty or contours have fewer than 3 paddles.
    """

    size: int
    contour_length: int
    margins: tuple[int, ...]
    padding: int
    paddle_length: int
    paddle_thickness: float
    marker_radius: float
    seed_distance: int
    continuity: float
    distractor_paddles: int
    contrast: float

    def __post_init__(self) -> None:
        if not 0 < 4 * self.seed_distance < self.size:
            raise ValueError(f"seed_distance must be between 1 and a quarter of the size, got {self.seed_distance}")
        if self.contour_length < 3:
            raise ValueError(f"contour_length must be 3 or more, got {self.contour_length}")

    @property
    def distractor_length(self) -> int:
        """Paddles of a distractor: a third of a target contour's."""
        return self.contour_length // 3

    @property
    def n_distractors(self) -> int:
        """Distractors of an image, if all find a place."""
        return self.distractor_paddles // self.distractor_length


_SIZES = {
    32: PathfinderConfig(32, 14, (1,), 1, 2, 0.5, 1.5, 7, 1.0, 20, 1.5),
    64: PathfinderConfig(64, 14, (1,), 1, 5, 1.0, 2.5, 12, 1.8, 22, 0.8),
    128: PathfinderConfig(128, 14, (2, 3), 1, 5, 1.5, 3.0, 20, 1.8, 35, 0.9),
    256: PathfinderConfig(256, 14, (3,), 22, 5, 2.0, 5.0, 27, 1.8, 30, 1.0),
    # Not in the Long Range Arena: that of 256 at twice the scale.
    512: PathfinderConfig(512, 14, (6,), 44, 10, 4.0, 10.0, 54, 1.8, 30, 1.0),
}


def pathfinder_config(size: int = 32, difficulty: str = "hard") -> PathfinderConfig:
    """The published settings for images of 32, 64, 128, 256 or 512 pixels; ``"hard"`` is what results are given for.

    Raises ValueError for another size or difficulty.
    """
    if size not in _SIZES:
        raise ValueError(f"size must be one of {', '.join(map(str, _SIZES))}, got {size!r}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty must be one of {', '.join(DIFFICULTIES)}, got {difficulty!r}")
    return replace(_SIZES[size], contour_length=DIFFICULTIES[difficulty])
