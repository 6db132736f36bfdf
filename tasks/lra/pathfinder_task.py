"""Pathfinder as a task, in five sizes: generated, or read from the released images."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from longconv.tasks.lra import pathfinder
from longconv.tasks.lra.blocks import cores
from longconv.tasks.lra.classification import SPLITS, check_sizes, permutation
from longconv.tasks.lra.images import Images, pixel_batch, pixel_batches
from longconv.tasks.lra.pathfinder_files import FOLDERS, find_images, list_images, read_png
from longconv.tasks.lra.random import Stream, child_seed
from longconv.tasks.lra.settings import PathfinderConfig, pathfinder_config
from longconv.tasks.lra.sources import StrPath

# In the released archive this file has no bytes. S4's code leaves it out before it deals the rows, and so does this.
_KNOWN_EMPTY = {32: "curv_baseline/imgs/0/sample_172.png"}
_DECODED_AT_ONCE = 256
# Part of the cache keys of generated images: raise it when a seed gives other images than before.
_EDITION = 2


class Pathfinder(Images):
    """Pathfinder: are two discs at the ends of one contour (1) or of two (0)? The image is read row by row.

    difficulty: ``"easy"``, ``"intermediate"`` or ``"hard"``, the published one.
    settings: what else is to differ from the published images, fields of `PathfinderConfig`: ``{"size": 24,
        "seed_distance": 5, "distractor_paddles": 0}`` are smaller images without distractors.
    sizes: rows of train, validation and test that are generated; default those of the published data.
    seed: what is generated depends on it and on the settings, on nothing else.
    data_dir: read the released images instead, ``pathfinder32/curv_contour_length_14/{imgs,metadata}`` and so on at any
        depth of ``lra_release``; then `sizes`, `seed` and `settings` cannot be chosen. The rows are those of S4's code:
        image by image as the metadata list them, dealt by torch's ``random_split`` with seed 42 to 80, 10 and 10%.
    on_broken: what to do with released images that are empty or damaged: ``"error"`` names them in a ValueError,
        ``"skip"`` leaves them out, with a warning that names them.
    Other options: see `Images`.

    ``input_values`` are -1 for black and 1 for white. Raises ValueError for wrong options.
    """

    size: int
    n_classes = 2
    default_sizes = (160_000, 20_000, 20_000)

    def __init__(
        self,
        *,
        difficulty: str = "hard",
        settings: Mapping[str, Any] | None = None,
        sizes: Sequence[int] | None = None,
        seed: int = 0,
        data_dir: StrPath | None = None,
        on_broken: Literal["error", "skip"] = "error",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.difficulty, self.settings = difficulty, dict(settings or {})
        if unknown := self.settings.keys() - {field.name for field in fields(PathfinderConfig)}:
            raise ValueError(f"settings: unknown {sorted(unknown)[0]!r}, known: fields of PathfinderConfig")
        self.config = replace(pathfinder_config(self.size, difficulty), **self.settings)
        self.size = self.config.size
        self.sizes = check_sizes(sizes, self.default_sizes)
        Stream(seed)  # raises for a seed that is none
        self.seed = seed
        if on_broken not in ("error", "skip"):
            raise ValueError(f'on_broken must be "error" or "skip", got {on_broken!r}')
        self.on_broken = on_broken
        self.data_dir = None if data_dir is None else Path(data_dir)
        if data_dir is not None and (sizes is not None or settings is not None):
            given = "sizes" if sizes is not None else "settings"
            raise ValueError(f"{given} are those of generated data; data_dir {data_dir} has its own")

    @property
    def length(self) -> int:
        """Pixels of an image."""
        return self.size**2

    @property
    def source(self) -> str:
        """The difficulty, and the seed or the folder."""
        origin = f"seed {self.seed}, generated" if self.data_dir is None else str(self.data_dir)
        differing = "".join(f", {name} {value}" for name, value in self.settings.items())
        return f"{self.difficulty}{differing}, {origin}"

    @property
    def _at_once(self) -> int:
        return max((1 << 24) // self.length, 256)

    def prepare(self, *, verify: bool = False) -> dict[str, list[Path]]:
        """See `Classification`. A file has 16 MB of pixels, or 256 images."""
        if self.data_dir is not None:
            return self._read_all(verify)
        files: dict[str, list[Path]] = {}
        for split_number, (split, size) in enumerate(self.sizes.items()):
            files[split] = []
            with self._bar(split, size) as bar:
                for number, first in enumerate(range(0, size, self._at_once)):
                    n = min(self._at_once, size - first)
                    seed = child_seed(self.seed, split_number, number)
                    files[split].append(
                        self._stored(
                            f"pathfinder{self.size}-{split}-{number:05}",
                            [_EDITION, asdict(self.config), seed, n],
                            self._generate(n, seed, bar),
                            verify,
                        )
                    )
                    bar.update(first + n - bar.n)
        return files

    def _generate(self, n: int, seed: int, bar: Any) -> Callable[[], Iterator[Any]]:
        def batches() -> Iterator[Any]:
            for part in pathfinder.generate_parts(n, seed, config=self.config, workers=self.workers):
                yield pixel_batch(part.images, part.labels)
                bar.update(len(part))

        return batches

    def _read_all(self, verify: bool) -> dict[str, list[Path]]:
        assert self.data_dir is not None
        root = find_images(self.data_dir, self.size, FOLDERS[self.difficulty])
        images, digest = list_images(root, FOLDERS[self.difficulty])
        images = [image for image in images if image[0] != _KNOWN_EMPTY.get(self.size)]
        order = permutation(len(images))
        n_validation = n_test = int(0.1 * len(images))
        n_train = len(images) - n_validation - n_test
        files: dict[str, list[Path]] = {}
        for split, part in zip(SPLITS, np.split(order, [n_train, n_train + n_validation]), strict=True):
            files[split] = []
            with self._bar(split, len(part)) as bar:
                for number, first in enumerate(range(0, len(part), self._at_once)):
                    chosen = [images[i] for i in part[first : first + self._at_once]]
                    files[split].append(
                        self._stored(
                            f"pathfinder{self.size}-{split}-{number:05}",
                            ["released", digest, self.on_broken, first, len(chosen)],
                            self._decode(root, chosen, bar),
                            verify,
                        )
                    )
                    bar.update(first + len(chosen) - bar.n)
        return files

    def _decode(self, root: Path, images: list[tuple[str, int]], bar: Any) -> Callable[[], Iterator[Any]]:
        def batches() -> Iterator[Any]:
            broken: list[str] = []
            with ThreadPoolExecutor(self.workers or cores()) as pool:
                for first in range(0, len(images), _DECODED_AT_ONCE):
                    some = images[first : first + _DECODED_AT_ONCE]
                    decoded = list(pool.map(lambda image: read_png(root / image[0], self.size), some))
                    whole = [i for i, pixels in enumerate(decoded) if not isinstance(pixels, str)]
                    broken += [
                        f"{some[i][0]} ({pixels})" for i, pixels in enumerate(decoded) if isinstance(pixels, str)
                    ]
                    if whole:
                        yield from pixel_batches(
                            np.stack([np.asarray(decoded[i]) for i in whole]), np.array([some[i][1] for i in whole])
                        )
                    bar.update(len(some))
            if broken:
                names = ", ".join(broken[:5]) + (", …" if len(broken) > 5 else "")
                said = f"{len(broken)} broken image{'s' if len(broken) > 1 else ''} in {root}: {names}"
                if self.on_broken == "error":
                    raise ValueError(f'{said}; fetch them again, or leave them out with on_broken="skip"')
                warnings.warn(f"{said}; left out", stacklevel=2)

        return batches


class Pathfinder32(Pathfinder):
    """Pathfinder of the Long Range Arena: 32 px, 1,024 steps."""

    name = "lra/pathfinder32"
    size = 32


class Pathfinder64(Pathfinder):
    """Pathfinder with 64 px, 4,096 steps."""

    name = "lra/pathfinder64"
    size = 64


class PathX(Pathfinder):
    """Path-X of the Long Range Arena: 128 px, 16,384 steps."""

    name = "lra/pathx"
    size = 128


class Path256(Pathfinder):
    """Path-256: 65,536 steps."""

    name = "lra/path256"
    size = 256


class Path512(Pathfinder):
    """Path-512: 262,144 steps."""

    name = "lra/path512"
    size = 512
