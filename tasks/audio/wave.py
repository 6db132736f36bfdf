"""Autoregressive audio: predict each sample, of 256 levels, from those before it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longconv.tasks import cache
from longconv.tasks.audio.codec import Quantization, decode, encode, scale_to_range, silence
from longconv.tasks.audio.cuts import Cuts
from longconv.tasks.audio.effects import MappedArray
from longconv.tasks.audio.files import AudioFile, StrPath, list_audio, load_mono, probe
from longconv.tasks.audio.metrics import bits_per_byte
from longconv.tasks.audio.speech_commands import LISTS
from longconv.tasks.extras import require
from longconv.tasks.lm.metrics import IGNORE, mean_loss, token_nll
from longconv.tasks.lra.classification import SPLITS
from longconv.tasks.lra.sources import fingerprint

_FETCH = "give a folder with recordings, or with folders train, validation and test of them, as data_dir"
# So far beyond full scale samples are taken for the last level.
_OVERSHOOT = 1.5
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Convention:
    """How a published data set is cut and quantised; see `CONVENTIONS`."""

    length: int
    quantization: Quantization
    scale: Literal["none", "chunk"]
    rate: int
    tail: bool


#: Of S4's code, on which SaShiMi and its successors report (Goel et al. 2022): every chunk is stretched to -1 … 1.
CONVENTIONS = {
    "sc09": Convention(16_000, "s4-mu-law", "chunk", 16_000, tail=True),
    "beethoven": Convention(128_000, "s4-linear", "chunk", 16_000, tail=False),
    "youtubemix": Convention(131_072, "s4-mu-law", "chunk", 16_000, tail=False),
}


class Wave:
    """Next-sample prediction on any folder of audio.

    data_dir: the folder. Files in its folders ``train``, ``validation`` and ``test``, if it has them, are these splits;
        else all its files, in natural order of their names, are dealt, the first 88% to train, 6% each to validation
        and test. A file is never in two splits.
    convention: ``"beethoven"``, ``"youtubemix"`` or ``"sc09"``: the length, the quantisation, the scale and the rate
        with which results on these sets were published; with ``"sc09"`` the files are those of the ten digits of Speech
        Commands, dealt by its lists. Options that are given still count.
    length: samples in a chunk, by default 16,384 (a second at 16 kHz); chunks of a file follow each other.
    quantization: see `longconv.tasks.audio.codec.encode`; default ``"mu-law"``.
    scale: ``"none"`` takes samples as they are; ``"chunk"`` stretches each chunk to -1 … 1 first, as published.
    rate: samples per second. Files with another are resampled, once, into the cache; default that of the files, which
        must be the same for all.
    ratios: shares of train and validation, where files are dealt.
    tail: keep what is left at the end of a file as a shorter chunk, padded; default for validation and test only.
    cache_dir: for files that are resampled; default ``$LONGCONV_CACHE`` or ``~/.cache/longconv``.

    Files of more channels are mixed to one. Samples beyond -1 … 1, as lossy files and resampled ones may have, count
    as the loudest level, up to 1.5. Chunks are read from the files when they are asked for.

    **Alignment.** A row has length + 1 ids: the level of silence, then the samples; labels are the same but for -100 at
    the first, since models such as `LongConvForCausalLM` shift labels themselves. So every sample is predicted once,
    the first of a chunk from nothing.

    Attributes:
        name: what `longconv.tasks.get` calls it.
        vocab_size: 256.
        tokens: ids of a row, length + 1.

    Raises:
        ValueError: options out of range. When a split is asked for: fewer than three files to deal, rates that differ,
            damaged files, or a split without a chunk.
        FileNotFoundError, then: no audio.
    """

    name = "audio/wave"
    vocab_size = 256

    def __init__(
        self,
        *,
        data_dir: StrPath | None = None,
        convention: Literal["sc09", "beethoven", "youtubemix"] | None = None,
        length: int | None = None,
        quantization: Quantization | None = None,
        scale: Literal["none", "chunk"] | None = None,
        rate: int | None = None,
        ratios: tuple[float, float] = (0.88, 0.06),
        tail: bool | None = None,
        cache_dir: StrPath | None = None,
    ) -> None:
        if convention is not None and convention not in CONVENTIONS:
            raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
        chosen = CONVENTIONS.get(convention or "")
        self.convention, self.data_dir = convention, None if data_dir is None else Path(data_dir).expanduser()
        self.length = length or (chosen.length if chosen else 16_384)
        self.quantization: Quantization = quantization or (chosen.quantization if chosen else "mu-law")
        self.scale = scale or (chosen.scale if chosen else "none")
        self.rate, self.ratios = rate or (chosen.rate if chosen else None), ratios
        self.tail = chosen.tail if tail is None and chosen else tail
        if self.length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        if self.scale not in ("none", "chunk"):
            raise ValueError(f'scale must be "none" or "chunk", got {scale!r}')
        if not (min(ratios) > 0 and sum(ratios) < 1):
            raise ValueError(f"ratios must be two shares that leave some for test, got {ratios}")
        encode(torch.zeros(1), self.quantization)  # raises for one that is none
        self.cache_dir = cache.cache_root(cache_dir) / "audio"

    @property
    def tokens(self) -> int:
        """length + 1."""
        return self.length + 1

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """The files of each split."""
        if self.data_dir is None:
            raise FileNotFoundError(f"{self.name} needs audio, and no data_dir was given; {_FETCH}")
        if self.convention == "sc09":
            return self._digits(self.data_dir)
        if all((self.data_dir / split).is_dir() for split in SPLITS):
            return {split: list_audio(self.data_dir / split, _FETCH) for split in SPLITS}
        found = list_audio(self.data_dir, _FETCH)
        # Rounded down where S4's code does.
        ends = [int(self.ratios[0] * len(found)), int(sum(self.ratios) * len(found))]
        # Of few files, each split gets one.
        ends = [min(max(ends[0], 1), len(found) - 2), min(max(ends[1], ends[0] + 1, 2), len(found) - 1)]
        if len(found) < 3:
            raise ValueError(f"{self.data_dir} has {len(found)} files, 3 or more are needed: one for each split")
        return dict(zip(SPLITS, (found[: ends[0]], found[ends[0] : ends[1]], found[ends[1] :]), strict=True))

    def _digits(self, folder: Path) -> dict[str, list[Path]]:
        lists = {}
        for split, name in LISTS.items():
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}; give the folder of Speech Commands as data_dir")
            lists[split] = set((folder / name).read_text().split())
        dealt: dict[str, list[Path]] = {split: [] for split in SPLITS}
        for digit in _DIGITS:
            for path in list_audio(folder / digit, "SC09 is the ten digits of Speech Commands", (".wav",)):
                name = f"{digit}/{path.name}"
                dealt[next((split for split, wanted in lists.items() if name in wanted), "train")].append(path)
        return dealt

    @cached_property
    def sample_rate(self) -> int:
        """Samples per second of all chunks: `rate`, or that of the files."""
        if self.rate is not None:
            return self.rate
        first, *others = (probe(path) for paths in self.files.values() for path in paths)
        for file in others:
            if file.rate != first.rate:
                raise ValueError(
                    f"{first.path} has {first.rate} samples per second and {file.path} {file.rate}: give a rate"
                )
        return first.rate

    def _open(self, split: str) -> list[AudioFile | MappedArray]:
        """The files of a split at the task's rate."""
        bar = require("tqdm").tqdm(self.files[split], desc=f"{self.name} {split}", disable=None, leave=False)
        return [file if file.rate == self.sample_rate else self._resampled(file) for file in map(probe, bar)]

    def _resampled(self, file: AudioFile) -> MappedArray:
        def write(folder: Path) -> None:
            np.save(folder / "samples.npy", load_mono(file.path, self.sample_rate)[None])

        key = cache.make_key(fingerprint(file.path.parent, [file.path]), str(file.path), self.sample_rate)
        path = cache.fetch(self.cache_dir / f"resampled-{key}", write) / "samples.npy"
        return MappedArray(path, 0, np.load(path, mmap_mode="r").shape[1])

    @cached_property
    def _splits(self) -> dict[str, "Chunks"]:
        made = {}
        for split in SPLITS:
            tail = split != "train" if self.tail is None else self.tail
            made[split] = Chunks(self._open(split), self.length, self._quantize, tail)
            if not len(made[split]):
                raise ValueError(f"no file of {split} in {self.data_dir} has {self.length} samples: choose less")
        return made

    def splits(self) -> dict[str, "Chunks"]:
        """``train``, ``validation``, ``test``: chunks for `collate`. Raises what the class says."""
        return self._splits

    def levels(self, samples: NDArray[np.float32]) -> Tensor:
        """Levels 0 … 255, int64 (n,), of a chunk of samples (n,). Raises ValueError for samples far beyond -1 … 1."""
        return torch.from_numpy(self._quantize(samples))

    def samples(self, levels: Tensor) -> Tensor:
        """Samples, float32, of levels of any shape."""
        return decode(levels, self.quantization)

    def _quantize(self, samples: NDArray[np.float32]) -> NDArray[np.int64]:
        x = torch.from_numpy(samples)
        if self.scale == "chunk":
            return encode(scale_to_range(x), self.quantization).numpy()
        # What was coded with losses, or resampled, may be a little beyond full scale, which has no level of its own.
        if not bool((x.abs() <= _OVERSHOOT).all()):
            raise ValueError(f"samples in {self.data_dir} reach {x.abs().max().item():.3g}, expected -1 … 1")
        return encode(x.clamp(-1, 1), self.quantization).numpy()

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """``input_ids`` and ``labels``, int64 (B, tokens of the longest); shorter ones end in silence, with -100."""
        longest = max(len(row["levels"]) for row in rows)
        ids = torch.full((len(rows), longest + 1), silence())
        labels = torch.full_like(ids, IGNORE)
        for i, row in enumerate(rows):
            levels = torch.as_tensor(row["levels"])
            ids[i, 1 : len(levels) + 1] = labels[i, 1 : len(levels) + 1] = levels
        return {"input_ids": ids, "labels": labels}

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean nats per sample, a scalar: logits (B, T, 256), labels (B, T), not shifted, -100 ignored."""
        return mean_loss(logits, labels)

    def preprocess_logits_for_metrics(self, logits: Any, labels: Tensor) -> Tensor:
        """For `transformers.Trainer`, with `compute_metrics`: keep one number per sample instead of 256 logits."""
        return token_nll(logits[0] if isinstance(logits, tuple) else logits, labels)

    def compute_metrics(self, prediction: Any) -> dict[str, float]:
        """For `transformers.Trainer`: ``bits_per_byte``, from what `preprocess_logits_for_metrics` kept, (N, T - 1)."""
        counted = np.asarray(prediction.label_ids)[:, 1:] != IGNORE
        nats = float(np.asarray(prediction.predictions, np.float64)[counted].sum())
        return {"bits_per_byte": bits_per_byte(nats, int(counted.sum()))}

    def describe(self) -> str:
        """The kind of chunks, where they come from and how many there are, in a few lines."""
        splits = self.splits()
        rows = ", ".join(f"{split} {len(rows):,} of {len(self.files[split]):,} files" for split, rows in splits.items())
        return "\n".join(
            [
                f"{self.name}: chunks of {self.length:,} samples at {self.sample_rate:,} Hz, {self.quantization}",
                f"from {self.data_dir}",
                f"chunks: {rows}",
            ]
        )


class Chunks(Cuts):
    """Chunks of a split, which follow each other. A row has ``levels``, int64 (length,), or fewer at the end of a file.

    files: that have `frames` and `read`; their channels are mixed. length: samples in a chunk. quantize: samples (n,)
    float32 to levels (n,) int64. tail: keep chunks that are shorter.
    """

    def __init__(
        self,
        files: Sequence[AudioFile | MappedArray],
        length: int,
        quantize: Callable[[NDArray[np.float32]], NDArray[np.int64]],
        tail: bool,
    ) -> None:
        self.files, self.length, self.quantize = files, length, quantize
        super().__init__([-(-file.frames // length) if tail else file.frames // length for file in files])

    def read(self, recording: int, piece: int) -> dict[str, Any]:
        """See `Cuts`."""
        file, start = self.files[recording], piece * self.length
        return {"levels": self.quantize(file.read(start, min(self.length, file.frames - start)).mean(1))}
