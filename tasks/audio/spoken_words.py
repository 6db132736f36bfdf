"""Spoken words like those of Speech Commands, said by a speech synthesiser; voices of the test are not trained on."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.audio import espeak
from longconv.tasks.audio.clips import RATE, Clip, Clips
from longconv.tasks.audio.files import resample
from longconv.tasks.audio.speech_commands import WORDS_10
from longconv.tasks.lra.blocks import blocks
from longconv.tasks.lra.classification import SPLITS, check_sizes
from longconv.tasks.lra.random import Stream
from longconv.tasks.synthetic.sampling import uniform

# Part of every cache key: raise it when the same options give other clips than before.
_FORMAT = 2
_RATES, _PITCHES = (110, 210), (15, 85)  # words per minute; of 0 … 99
_PEAKS = (-20.0, -1.0)  # dB
# So much below the loudest sample a word has not begun yet.
_QUIET = 1e-3
_CLIPS_AT_ONCE = 16


class SpokenWords(Clips):
    """Words said by eSpeak NG: 16 kHz, one second, in many voices, accents, rates, pitches and levels of noise.

    words: what is said, ten or more; default the ten of Speech Commands, "forward" and "backward".
    sizes: clips of train, validation and test; each word has its share.
    noise: signal-to-noise ratios in dB, one of which each clip has; None is no noise.
    stretch: how much faster clips of the train split are played, lowest and highest factor. That moves pitch and
        formants too, as if speakers were larger or smaller (Ko et al. 2015, "Audio augmentation for speech
        recognition"). (1, 1) leaves them as they are, as those of the other splits always are.
    seed: of the clips. Clip i of a split depends on the seed, the words, the noise, the split, i and the version of
        eSpeak NG, not on the number of workers.
    Other options: see `Clips`.

    The voices of the three splits are different ones (`longconv.tasks.audio.espeak.VOICES`). A word stands anywhere in
    its clip, with a peak of -20 … -1 dB before noise is added: white, or with less of its highs.

    Raises:
        ValueError: options out of range; when clips are asked for, voices that are not installed.
        FileNotFoundError, then: eSpeak NG is not installed.
    """

    name = "audio/spoken-words"
    stored_as = "spoken-words"

    def __init__(
        self,
        *,
        words: Sequence[str] = (*WORDS_10, "forward", "backward"),
        sizes: Sequence[int] | None = None,
        noise: Sequence[float | None] = (None, 30.0, 20.0, 10.0),
        stretch: tuple[float, float] = (0.85, 1.2),
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if isinstance(words, str) or len(set(words)) != len(words) or not 2 <= len(words) <= 255:
            raise ValueError(f"words must be 2 to 255 different ones, got {words!r}")
        if not all(isinstance(word, str) and word.strip() for word in words):
            raise ValueError(f"words must be texts to say, got {words!r}")
        if not noise or not all(ratio is None or -20 <= ratio <= 100 for ratio in noise):
            raise ValueError(f"noise must be ratios of -20 … 100 dB, or None for no noise, got {noise!r}")
        if len(stretch) != 2 or not 0.5 <= stretch[0] <= stretch[1] <= 2:
            raise ValueError(f"stretch must be a lowest and a highest factor of 0.5 … 2, got {stretch!r}")
        self.sizes = check_sizes(sizes, (24_000, 1_200, 2_400))
        Stream(seed)  # raises for a seed that is none
        self.words, self.noise, self.stretch = tuple(words), tuple(noise), tuple(stretch)
        self.seed, self.n_classes = seed, len(words)

    @property
    def source(self) -> str:
        """The synthesiser, the number of voices, and the seed."""
        voices = ", ".join(f"{len(voices)} for {split}" for split, voices in espeak.VOICES.items())
        return f"{espeak.version()}, seed {self.seed}; voices: {voices}, in {len(espeak.ACCENTS)} accents"

    @cached_property
    def _key(self) -> list[Any]:
        for voices in espeak.VOICES.values():
            espeak.require_voices(espeak.ACCENTS, voices)
        options = [list(self.words), list(self.sizes.values()), list(self.noise), list(self.stretch), self.seed]
        return [_FORMAT, espeak.version(), *options]

    def _clips(self, split: str) -> Iterator[Clip]:
        def make(block: int) -> list[Clip]:
            first = block * _CLIPS_AT_ONCE
            last = min(first + _CLIPS_AT_ONCE, self.sizes[split])
            return [(self.clip(split, i), i % self.n_classes) for i in range(first, last)]

        parts = blocks(make, self.workers)
        with self._bar(split, self.sizes[split]) as bar:
            for part in islice(parts, -(-self.sizes[split] // _CLIPS_AT_ONCE)):
                yield from part
                bar.update(len(part))
        parts.close()

    def clip(self, split: str, number: int) -> NDArray[np.int16]:
        """Clip `number` of a split, (16,000,); it says word `number` modulo the number of words."""
        stream = Stream(self.seed, SPLITS.index(split), number)
        accent, voice, ratio = (_one_of(stream, some) for some in (espeak.ACCENTS, espeak.VOICES[split], self.noise))
        rate, pitch = (int(_between(stream, low, high + 1)) for low, high in (_RATES, _PITCHES))
        faster = _between(stream, *self.stretch) if split == "train" else 1.0
        said = _say(self.words[number % len(self.words)], accent, voice, rate, pitch, faster)
        said *= 10 ** (_between(stream, *_PEAKS) / 20) / np.abs(said).max()
        clip = np.zeros(RATE)
        start = int(stream.below(RATE - len(said) + 1, 1)[0])
        clip[start : start + len(said)] = said
        if ratio is not None:
            clip += _noise(stream) * np.sqrt(np.square(said).mean() / 10 ** (ratio / 10))
        # Loud noise may reach beyond full scale: then all of it is softer, rather than clipped.
        return np.rint(clip * (32767 / max(1.0, np.abs(clip).max()))).astype(np.int16)


def _say(word: str, accent: str, voice: str, rate: int, pitch: int, stretch: float = 1.0) -> NDArray[np.float64]:
    """A word at 16 kHz without the silence around it, played `stretch` times as fast.

    Where it takes more than a second it is said faster.
    """
    for faster in count():
        speed = round(rate * 1.25**faster)
        if speed > 450:
            raise ValueError(f"{word!r} takes more than a second at 450 words per minute")
        samples, of = espeak.speak(word, accent=accent, voice=voice, words_per_minute=speed, pitch=pitch)
        loud = np.flatnonzero(np.abs(samples) > _QUIET * np.abs(samples).max())
        samples = resample(samples[loud[0] : loud[-1] + 1], round(of * stretch), RATE)
        if len(samples) <= RATE:
            break
    return samples.astype(np.float64)


def _noise(stream: Stream) -> NDArray[np.float64]:
    """A second of noise of power 1: white, or averaged over 2 … 16 samples, which takes its highs away."""
    width = int(stream.below(16, 1)[0]) + 1
    noise = np.convolve(2 * uniform(stream, (RATE + width - 1,)) - 1, np.full(width, 1.0), mode="valid")
    return noise / np.sqrt(np.square(noise).mean())


def _one_of(stream: Stream, some: Sequence[Any]) -> Any:
    return some[int(stream.below(len(some), 1)[0])]


def _between(stream: Stream, low: float, high: float) -> float:
    return low + (high - low) * float(uniform(stream, (1,))[0])
