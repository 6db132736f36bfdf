"""Audio as published, or as near to it as there is: recipes `audio.TASK.MODEL`. Those for a CPU are in audio_small.py.

**Audio effects** (la2a): Steinmetz and Reiss 2022 ("Efficient neural networks for real-time modeling of analog dynamic
range compression"), csteinmetz1/micro-tcn train.py, microtcn/base.py: batches of 32 windows of 65,536 samples, Adam at
1e-3, L1 + one STFT, 60 passes, which are some 90,000 updates of 20 hours. As there, samples whose past (or, of -N,
whose future) lies outside the window do not count, but for the LSTM, of which all do. Different: float32, where they
have float16; the learning rate is constant and falls at the end, where theirs falls by ten when ten passes brought
nothing; windows overlap by what does not count, and their sign is not flipped. -C is causal, -N is not.

**Words** (sc35, sc10) and **electrocardiograms** (ptbxl): S4's code and MultiresConv's, as in lra/.

**Next samples** (sc09, beethoven, youtubemix): the chunks, quantisation and batches of S4's code, and its 8 layers and
learning rates. Its models, SaShiMi, pool the sequence between layers; these do not (the paper calls that isotropic), so
their numbers are ours.
"""

import dataclasses
from pathlib import Path
from typing import Any

from longconv.layers import MICRO_TCN_VARIANTS
from longconv.training import AudioConfig, ClassifyConfig, TaskConfig, WaveConfig

from .lra.multires import BASE as MULTIRES_CODE
from .lra.s4_code import S4_CODE
from .recipe import OURS, Recipe, epoch_steps

MICRO_TCN = "csteinmetz1/micro-tcn train.py"
S4_SPEECH = "state-spaces/s4 configs/experiment/sc/s4-sc.yaml"
S4_AUDIO = "state-spaces/s4 configs/experiment/audio/sashimi-"
PTBXL = "thjashin/multires-conv scripts/ptbxl.sh"

Options = dict[str, Any]


def bodies() -> dict[str, Options]:
    """Models of an audio effect by the name that they have in a recipe, as options of `AudioConfig`."""
    found: dict[str, Options] = {}
    for variant, causal in (("TCN-100", True), ("TCN-300", True), ("TCN-1000", True), ("TCN-324", False)):
        options = {**MICRO_TCN_VARIANTS[variant], "causal": causal}
        found[f"{variant.lower()}-{'c' if causal else 'n'}"] = {"body": "micro_tcn", "body_options": options}
    mixers: dict[str, Options] = {
        "s4d": {"output": "glu"},
        "sgconv": {"output": "glu", "filter": {"name": "sgconv", "kernel_dim": 64}},
        "multires": {"output": "glu", "kernel_size": 4, "depth": 12},  # reaches over 12,286 samples
    }
    return {
        **found,
        "gated-tcn": {"body": "gated_tcn", "body_options": {}},
        **{
            name: {"body": "mixers", "mixers": name, "mixer_options": {name: options}, "hidden_size": 32, "layers": 4}
            # As many taps as a window has samples. It cannot be streamed for longer than that.
            | ({"body_options": {"max_length": 131_072}} if name == "sgconv" else {})
            for name, options in mixers.items()
        },
        "lstm-32": {"body": "lstm", "body_options": {"hidden_size": 32, "num_layers": 1}},
    }


def past(body: Options) -> int:
    """How many samples before an output a model of `bodies` depends on; 0 for one without a limit, and for SGConv."""
    options = body.get("body_options", {})
    if body["body"] == "micro_tcn":
        growth, blocks = options["dilation_growth"], options["num_blocks"]
        reach = (options["kernel_size"] - 1) * sum(growth**n for n in range(blocks))
        return reach if options["causal"] else reach // 2
    return 2_044 if body["body"] == "gated_tcn" else 0


def la2a(name: str) -> Recipe:
    """A model of the LA-2A."""
    model = bodies()[name]
    published = name in ("tcn-100-c", "tcn-300-c", "tcn-1000-c", "tcn-324-n", "lstm-32")
    config = AudioConfig(
        output=Path("runs") / f"audio.la2a.{name}",
        task="audio/la2a",
        task_options={"length": 65_536, "eval_length": 131_072, "context": past(model)},
        loss_weights={"l1+stft": 1.0},
        batch_size=32,
        steps=90_000,
        lr=1e-3,
        schedule="wsd",
        warmup=0.0,
        clip=0.0,
        evaluate_every=1_500,
        save_every=1_500,
        log_every=50,
        workers=8,
        **model,
    )
    return Recipe(config.output.name, config, MICRO_TCN if published else f"{OURS}{MICRO_TCN}, TCN-300-C")


def classify(task: str, layer: str, source: str, mixer: Options, **options: Any) -> Recipe:
    """A classifier, evaluated after every pass over its data, and at least twenty times."""
    config = ClassifyConfig(
        **{
            "output": Path("runs") / f"audio.{task}.{layer}",
            "task": f"audio/{task}",
            "mixers": layer,
            "mixer_options": {layer: mixer},
            "evaluate_batches": 0,
            "log_every": 50,
            **options,
        }
    )
    return Recipe(config.output.name, each_pass(config), source)


def each_pass(config: TaskConfig) -> Any:
    """The same with an evaluation and a checkpoint after every pass over the train split."""
    return dataclasses.replace(config, evaluate_every=epoch_steps(config), save_every=epoch_steps(config))


SPEECH: Options = S4_CODE | {
    "layers": 6,
    "hidden_size": 128,
    "norm": "batch",
    "norm_position": "pre",
    "lr": 0.01,
    "weight_decay": 0.05,
    "batch_size": 16,
    "epochs": 40,
    "warmup": 1_000 / 200_000,
}
#: Of S4D as its code has it: LegS, two systems for all channels.
S4D: Options = {"name": "s4d", "state_size": 64, "init": "legs", "n_ssm": 2, "lr": 1e-3, "lr_dt": 1e-3}
#: Of Hyena at lengths of 16,000 and more, as in HazyResearch/hyena-dna: few positional features, which are trained.
HYENA: Options = {"name": "hyena", "emb_dim": 5, "w": 10.0, "order": 64, "lr": 1e-3}
MIXERS: dict[str, Options] = {
    "s4d": {"filter": S4D},
    "sgconv": {"filter": {"name": "sgconv", "kernel_dim": 64}, "output": "glu"},
    "multires": {"kernel_size": 4, "tree_select": "fading", "output": "glu", "indep_res_init": True},
    "hyena": {"order": 2, "filter": HYENA},
}
#: What differs of the training, by layer: products of projections tolerate less than a GLU does, and MultiresConv has
#: the norm and the learning rate of its own code (lra/multires.py).
TRAINING: dict[str, Options] = {
    "s4d": {},
    "sgconv": {},
    "multires": {"norm_position": "post", "lr": 3e-3},
    "hyena": {"intermediate_size": None, "lr": 2e-3, "clip": 1.0},
}


def speech(task: str, layer: str) -> Recipe:
    """Spoken words, 16,000 samples of each."""
    after = {"s4d": "", "sgconv": ", with the layer of Li et al. 2022", "multires": " and MultiresConv's on ListOps",
             "hyena": ", with the filters of HazyResearch/hyena-dna"}[layer]  # fmt: skip
    published = (task, layer) == ("sc35", "s4d")
    source = S4_SPEECH if published else f"{OURS}{S4_SPEECH}{after}"
    return classify(task, layer, source, MIXERS[layer], **SPEECH | TRAINING[layer])


def heart(layer: str) -> Recipe:
    """Electrocardiograms; the labels are `superdiagnostic` unless `--task-options` says another set."""
    common: Options = {"layers": 6, "hidden_size": 128, "norm": "layer", "dropout": 0.0, "batch_size": 50}
    common |= {"lr": 4.5e-3, "weight_decay": 0.06, "epochs": 100, "warmup": 5 / 100}
    if layer == "multires":
        mixer = {"kernel_size": 2, "tree_select": "fading", "dropout": 0.2, "output": "glu"}
        return classify("ptbxl", layer, PTBXL, mixer, **MULTIRES_CODE | common, bidirectional=False)
    options = S4_CODE | common | {"norm_position": "pre", "dropout": 0.1} | TRAINING[layer]
    return classify("ptbxl", layer, f"{OURS}{PTBXL} and {S4_SPEECH}", MIXERS[layer], **options)


#: Name -> chunks in a batch, updates, learning rate. Passes: some 100 over SC09 and YouTubeMix, 150 over Beethoven.
WAVES = {
    "sc09": (32, 100_000, 1e-3),
    "beethoven": (1, 600_000, 4e-3),
    "youtubemix": (1, 150_000, 4e-3),
}
WAVE: Options = {
    "norm": "layer",
    "norm_position": "pre",
    "intermediate_size": 256,
    "activation": "gelu",
    "initializer_range": None,
    "weight_decay": 0.0,
    "beta2": 0.999,
    "schedule": "wsd",
    "warmup": 0.01,
    "clip": 1.0,
    "log_every": 50,
    "evaluate_batches": 0,
}


def wave(name: str, layer: str) -> Recipe:
    """The next of 256 levels, of a published set."""
    batch, steps, lr = WAVES[name]
    config = WaveConfig(
        **WAVE,
        output=Path("runs") / f"audio.{name}.{layer}",
        task_options={"convention": name},
        mixers=layer,
        mixer_options={layer: causal(layer)},
        hidden_size=128,
        layers=8,
        batch_size=batch,
        steps=steps,
        lr=min(lr, 1e-3) if layer in ("hyena", "multires") else lr,
        evaluate_every=steps // 50,
        save_every=steps // 50,
        gradient_checkpointing=name != "sc09",
    )
    return Recipe(config.output.name, config, f"{OURS}{S4_AUDIO}{name}.yaml, with all layers at the full length")


def causal(layer: str) -> Options:
    """Options of a mixer for next samples.

    S4D is as it is by default there, one system for each channel. It has no longest sequence, so that it can go on for
    as long as is wanted.
    """
    if layer != "s4d":
        return MIXERS[layer]
    return {"filter": {name: value for name, value in S4D.items() if name != "n_ssm"}, "max_length": None}


RECIPES: dict[str, Recipe] = {
    one.name: one
    for one in (
        *map(la2a, bodies()),
        *(speech(task, layer) for task in ("sc35", "sc10") for layer in MIXERS),
        *map(heart, MIXERS),
        *(wave(name, layer) for name in WAVES for layer in ("s4d", "multires", "hyena")),
    )
}
