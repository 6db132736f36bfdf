# %% [markdown]
# # Learn an audio effect, and run it in real time
#
# A compressor makes loud sound softer, and its controls say how much. Here a small TCN learns one from examples of
# sound before and after it, then processes audio block by block while a control is turned, and is exported for a host
# that knows nothing of Python. With the settings below this takes some three minutes on two cores.
#
# A notebook in the percent format: VS Code and PyCharm open it as one, `jupytext --to ipynb` converts it, and
# `python audio_effect.py` runs it from top to bottom. It needs `pip install 'longconv[audio,bench,onnx]'`.

# %%
import csv
import json
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
import torch
from matplotlib.figure import Figure

from longconv import tasks
from longconv.experiments.reports import effects
from longconv.models import load_audio_model
from longconv.streaming import StreamingModel
from longconv.streaming.step import to_onnx
from longconv.training import AudioConfig, train

OUTPUT = Path("runs/notebook")
MINUTES = 1.5  # of training, for each model; 10 give what docs/audio.md shows
PIECES = (24, 2, 4)  # of 5 seconds: train, validation, test

# %% [markdown]
# ## The data
#
# `audio/compressor` makes sound with a little synthesiser, or cuts it from a folder (`data_dir`), and sends it through
# `pedalboard.Compressor` at settings that are known. Windows overlap by `context`, since a model has not seen what came
# before a window.

# %%
data = {"sizes": PIECES, "seconds": 5.0, "length": 32_768, "eval_length": 131_072, "context": 4_501}
task = tasks.get("audio/compressor", **data)
print(task.describe())
batch = task.collate([task.splits()["train"][0]])
print({name: tuple(tensor.shape) for name, tensor in batch.items()})

# %% [markdown]
# ## Two models
#
# A TCN whose outputs depend on the last 102 ms, and the LSTM that is the usual baseline, for the same time.

# %%
common = AudioConfig(
    task="audio/compressor", task_options=data, minutes=MINUTES, batch_size=2, lr=3e-3, warmup=0.05,
    evaluate_every=50, save_every=0, log_every=5, quiet=True, output=OUTPUT / "tcn",
)  # fmt: skip
tcn = {"num_blocks": 4, "kernel_size": 5, "dilation_growth": 10}
folders = {}
for name, body, options in (("tcn", "micro_tcn", tcn), ("lstm", "lstm", {"hidden_size": 32})):
    config = AudioConfig(**{**vars(common), "body": body, "body_options": options, "output": OUTPUT / name})
    result = train(config)
    folders[name] = config.output / "model"
    print(f"{name}: {result.parameters:,} parameters, {result.steps} updates, {config.summary(result.metrics)}")

# %%
figure = Figure(figsize=(6, 3), layout="constrained")
panel = figure.subplots()
for name in folders:
    lines = [json.loads(line) for line in (OUTPUT / name / "log.jsonl").read_text().splitlines()]
    seen = [(line["seconds"], line["loss"]) for line in lines if line["split"] == "train"]
    panel.plot(*zip(*seen, strict=True), label=name)
panel.set(xlabel="seconds of training", ylabel="loss")
panel.legend()
figure.savefig(OUTPUT / "loss.png")

# %% [markdown]
# ## What they learned
#
# The report writes sound files before and after, tables by setting, spectrograms with the gain, and gain curves,
# measured with sines: those of the device, and of the models. Its command is `longconv report effects FOLDER ...`.

# %%
effects.run(tuple(folders.values()), output=OUTPUT / "report", seconds=5.0)
with (OUTPUT / "report" / "errors.csv").open() as file:
    for row in csv.DictReader(file):
        print(row["model"], row["threshold_db"], row["ratio"], "ESR", row["esr"])

# %% [markdown]
# ## In real time
#
# A stream takes blocks of any size, as an audio device asks for them, and remembers what it needs. What comes out is
# what the model gives for the whole recording.

# %%
model = load_audio_model(folders["tcn"])
recording = task.recordings("test")[0]
x = torch.from_numpy(recording.before.read().T)  # (channels, samples)
controls = model.config.scaled(recording.settings)
stream = StreamingModel(model, controls=controls)
blocks = torch.cat([stream.process(block) for block in x.split(256, dim=1)], 1)
with torch.no_grad():
    whole = model(x[None], torch.tensor([controls]))[0]
print(f"latency {stream.latency} samples; largest difference {(blocks - whole).abs().max():.1e}")

# %% [markdown]
# Now somebody turns the threshold down, half way. The stream approaches a new setting in a straight line over 1,024
# samples, so nothing clicks.

# %%
stream.reset(model.config.scaled([-10, 8]))
turned = []
for number, block in enumerate(x.split(256, dim=1)):
    half_way = number == x.shape[1] // 512
    turned.append(stream.process(block, model.config.scaled([-40, 8]) if half_way else None))
soundfile.write(OUTPUT / "turned.wav", torch.cat(turned, 1).T.numpy(), task.rate)

# %% [markdown]
# ## Elsewhere
#
# An ONNX graph of one block, whose state the host keeps; docs/streaming.md has the C++ around it.

# %%
to_onnx(model, OUTPUT / "effect.onnx")
step, first = (onnxruntime.InferenceSession(OUTPUT / name) for name in ("effect.onnx", "effect.init.onnx"))
settings = np.array([controls], dtype=np.float32)
(state,) = first.run(["state"], {"controls": settings})
heard = []
for block in x[None, :, : 10 * 512].split(512, dim=2):
    by_sample = np.repeat(settings[..., None], block.shape[2], axis=2)
    y, state = step.run(["y", "next_state"], {"x": block.numpy(), "state": state, "controls": by_sample})
    heard.append(y)
exported = np.concatenate(heard, 2)[0]
print(f"exported: largest difference {np.abs(exported - whole.numpy()[:, : exported.shape[1]]).max():.1e}")
