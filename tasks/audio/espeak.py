"""Speech from eSpeak NG, a system speech synthesiser with many accents and voices."""

import io
import shutil
import subprocess
from functools import cache

import numpy as np
from numpy.typing import NDArray

from longconv.tasks.extras import require

PROGRAM = "espeak-ng"
FETCH = (
    "install eSpeak NG: apt-get install espeak-ng, brew install espeak-ng, or https://github.com/espeak-ng/espeak-ng"
)

#: Accents of English.
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
#: Voices of each split; no voice, and no relative of one with the same name and another number, is in two of them.
VOICES = {
    "train": (
        "m1", "m2", "m3", "m4", "m6", "f1", "f2", "f3", "adam", "Alex", "Alicia", "Andrea", "Andy", "anika",
        "anikaRobot", "announcer", "antonio", "AnxiousAndy", "belinda", "benjamin", "boris", "caleb", "croak",
        "david", "Demonic", "Denis", "Diogo", "ed", "Gene", "Gene2", "grandpa", "gustave", "Henrique", "Hugo", "iven",
        "iven2", "iven3", "iven4", "Jacky", "john", "kaukovalta", "klatt", "klatt2", "klatt3", "klatt4", "klatt5",
        "Lee", "linda", "marcelo", "Marco", "max", "Michael", "michel", "miguel", "Nguyen", "pablo", "paul", "quincy",
        "RicishayMax", "RicishayMax2", "RicishayMax3", "rob", "robert", "robosoft", "robosoft2", "robosoft3",
        "robosoft4", "robosoft5", "robosoft6", "robosoft7", "robosoft8", "Tweaky", "UniRobot",
        "whisper", "whisperf", "zac",
    ),
    "validation": ("m5", "f4", "aunty", "Mario", "pedro", "norbert", "shelby", "sandro"),
    "test": ("m7", "m8", "f5", "Annie", "Mike", "steph", "steph2", "edward", "edward2", "grandma", "victor", "travis"),
}  # fmt: skip


@cache
def program() -> str:
    """The path of the program. Raises FileNotFoundError that says how to get it."""
    found = shutil.which(PROGRAM)
    if found is None:
        raise FileNotFoundError(f"{PROGRAM} is not installed, or not on the PATH; {FETCH}")
    return found


@cache
def version() -> str:
    """Its version, which the sound depends on. Raises what `program` raises."""
    return _run("--version").decode().split("Data at")[0].strip()


@cache
def installed() -> tuple[frozenset[str], frozenset[str]]:
    """The languages that there are, and the voices. Raises what `program` raises."""
    languages = {line.split()[1] for line in _run("--voices").decode().splitlines()[1:]}
    voices = {
        line.split("!v/", 1)[1].strip() for line in _run("--voices=variant").decode().splitlines() if "!v/" in line
    }
    return frozenset(languages), frozenset(voices)


def require_voices(accents: tuple[str, ...], voices: tuple[str, ...]) -> None:
    """Raises ValueError if one of them is not installed: the program itself would take another."""
    for what, wanted, there in zip(("accents", "voices"), (accents, voices), installed(), strict=True):
        if missing := [name for name in wanted if name not in there]:
            raise ValueError(f"{version()} has no {what} {', '.join(missing)}")


def speak(text: str, *, accent: str, voice: str, words_per_minute: int, pitch: int) -> tuple[NDArray[np.float32], int]:
    """`text` as samples (frames,) float32, and their rate.

    accent: a language of eSpeak's, such as ``"en-us"``. voice: a variant, such as ``"f2"``. words_per_minute: 80 … 450.
    pitch: 0 … 99.

    Raises:
        ValueError: numbers out of range, or nothing came out.
        FileNotFoundError: see `program`.
    """
    if not 80 <= words_per_minute <= 450 or not 0 <= pitch <= 99:
        raise ValueError(f"words_per_minute must be 80 … 450 and pitch 0 … 99, got {words_per_minute} and {pitch}")
    options = ["-v", f"{accent}+{voice}", "-s", str(words_per_minute), "-p", str(pitch), "--stdout", "--", text]
    heard = _run(*options)
    try:
        samples, rate = require("soundfile", "audio").read(io.BytesIO(heard), dtype="float32")
    except RuntimeError as error:
        raise ValueError(f"{PROGRAM} {' '.join(options)} gave no audio ({error})") from error
    if not np.any(samples):
        raise ValueError(f"{PROGRAM} {' '.join(options)} gave silence")
    return samples, rate


def _run(*options: str) -> bytes:
    done = subprocess.run([program(), *options], capture_output=True, check=False, timeout=60)
    if done.returncode:
        raise ValueError(f"{PROGRAM} {' '.join(options)} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout
