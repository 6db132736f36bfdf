"""Audio at sizes for a CPU: recipes `audio-small.TASK.MODEL`, all ours.

compressor     8 minutes of sound through a compressor of known settings; ten minutes of training for every model
spoken-words   24,000 clips of a speech synthesiser, each of 16,000 samples, which models are given 16 by 16
wave           next samples of any folder of audio (`--data-dir`), ten minutes of training
"""

import dataclasses
from pathlib import Path
from typing import Any

from longconv.training import AudioConfig, WaveConfig

from .audio import MIXERS, S4_SPEECH, TRAINING, WAVE, Options, bodies, causal, classify
from .lra.s4_code import S4_CODE
from .recipe import OURS, Recipe

#: All models begin to count after as many samples, those that TCN-300 depends on.
CONTEXT = 13_332


def compressor(name: str) -> Recipe:
    """A model of `pedalboard.Compressor`.

    The loss is that of the waveform and half of that of spectra, at three resolutions. With L1 in place
    of the waveform's, TCN-300 was 40 to 67 degrees off at 400 to 1,000 Hz after ten minutes; docs/audio.md has both.
    An LSTM's time on a CPU hardly depends on the rows of a batch, the others' is in proportion: they do better with
    more updates.
    """
    lstm = name.startswith("lstm")
    config = AudioConfig(
        output=Path("runs") / f"audio-small.compressor.{name}",
        task="audio/compressor",
        task_options={"length": 32_768, "eval_length": 131_072, "context": CONTEXT},
        loss_weights={"esr": 1.0, "mrstft": 0.5},
        batch_size=8 if lstm else 2,
        minutes=10.0,
        lr=3e-3,
        warmup=0.05,
        evaluate_every=60 if lstm else 240,
        save_every=0,
        log_every=10,
        **bodies()[name],
    )
    return Recipe(config.output.name, config, f"{OURS}audio.la2a.{name}")


SPEECH: Options = S4_CODE | {
    "layers": 4,
    "hidden_size": 64,
    "task_options": {"frame": 16},
    "norm": "batch",
    "norm_position": "pre",
    "lr": 5e-3,
    "weight_decay": 0.05,
    "batch_size": 16,
    "epochs": 3,
    "warmup": 0.05,
    "clip": 1.0,
}


def spoken_words(layer: str) -> Recipe:
    """Twelve words; the voices of the test are not those of training.

    A first linear map reads frames of 16 raw samples: 1,000 positions, at 1/24 of the time that 16,000 take on a CPU.
    """
    one = classify("spoken-words", layer, f"{OURS}{S4_SPEECH}", MIXERS[layer], **SPEECH | TRAINING[layer])
    name = f"audio-small.spoken-words.{layer}"
    return Recipe(name, dataclasses.replace(one.config, output=Path("runs") / name), one.source)


def wave(layer: str) -> Recipe:
    """Chunks of a quarter of a second at 16 kHz."""
    options: dict[str, Any] = WAVE | {"intermediate_size": 128, "schedule": "cosine", "warmup": 0.05, "log_every": 20}
    options["evaluate_batches"] = 16
    config = WaveConfig(
        **options,
        output=Path("runs") / f"audio-small.wave.{layer}",
        task_options={"rate": 16_000},
        length=4_096,
        mixers=layer,
        mixer_options={layer: causal(layer)},
        hidden_size=64,
        layers=4,
        batch_size=8,
        minutes=10.0,
        lr=2e-3 if layer == "hyena" else 4e-3,
        evaluate_every=200,
        save_every=0,
    )
    return Recipe(config.output.name, config, f"{OURS}audio.youtubemix.{layer}")


RECIPES: dict[str, Recipe] = {
    one.name: one
    for one in (
        *map(compressor, bodies()),
        *map(spoken_words, MIXERS),
        *map(wave, ("s4d", "multires", "hyena", "sgconv")),
    )
}
