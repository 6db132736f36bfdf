"""Models from waveform to waveform: published sizes, states, controls by sample, files."""

import pytest
import torch
from numerics import assert_close
from torch import nn
from transformers import AutoConfig, AutoModel

from longconv import cli
from longconv.models import (
    LongConvAudioConfig,
    LongConvConfig,
    LongConvForAudio,
    LongConvForCausalLM,
    load_audio_model,
    load_model,
)

TCN = {"num_blocks": 3, "kernel_size": 3, "dilation_growth": 3, "width": 8}
CAUSAL = {
    "micro_tcn": ("micro_tcn", TCN),
    "gated_tcn": ("gated_tcn", {"num_blocks": 3, "width": 4}),
    "lstm": ("lstm", {"hidden_size": 6, "num_layers": 2}),
    "s4d": ("mixers", {"hidden_size": 8, "num_layers": 2}),
    "sgconv": ("mixers", {"hidden_size": 8, "num_layers": 2, "mixers": "sgconv", "max_length": 100}),
    "hyena": ("mixers", {"hidden_size": 8, "num_layers": 2, "mixers": "hyena", "max_length": 100}),
    "multires": (
        "mixers",
        {"hidden_size": 8, "num_layers": 2, "mixers": "multires", "mixer_options": {"multires": {"depth": 5}},
         "intermediate_size": 16, "norm": "rms", "norm_position": "post"},
    ),
}  # fmt: skip
TWO_SIDED = {
    "micro_tcn": ("micro_tcn", {**TCN, "causal": False}),
    "s4d": ("mixers", {"hidden_size": 8, "num_layers": 2, "mixer_options": {"s4d": {"bidirectional": True}}}),
}


def build(body, options, **sizes):
    model = LongConvForAudio(LongConvAudioConfig(body=body, body_options=options, **sizes)).eval()
    for parameter in model.parameters():  # what begins at zero would hide what it does
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    for module in model.modules():
        if hasattr(module, "running_var"):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


@pytest.mark.parametrize(
    ("name", "parameters", "field"),
    [
        ("TCN-100-C", 25_905, 4_445),
        ("TCN-300-C", 50_737, 13_333),
        ("TCN-1000-C", 33_201, 44_445),
        ("TCN-324-N", 162_161, 14_323),
        ("LSTM-32", 4 * 32 * (3 + 32 + 2) + 33, None),
    ],
)
def test_published(name, parameters, field):
    model = LongConvForAudio(LongConvAudioConfig.published(name))
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.receptive_field == field
    assert model.causal == (not name.endswith("-N"))
    assert model.lookahead == (7161 if name == "TCN-324-N" else 0)
    assert model.config.sample_rate == 44100


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="TCN-300-C, TCN-300-N"):
        LongConvAudioConfig.published("TCN-300")
    for options, message in (
        ({"body": "tcn"}, "body must be one of micro_tcn, gated_tcn"),
        ({"body_options": {"blocks": 4}}, "has no option blocks; it has: num_blocks"),
        ({"channels_in": 0}, "channels_in must be at least 1"),
        ({"sample_rate": 0}, "sample_rate"),
        ({"controls": 2, "control_names": ["a", "a"]}, "2 different names"),
    ):
        with pytest.raises(ValueError, match=message):
            LongConvAudioConfig(**options)
    assert LongConvAudioConfig(controls=2).control_names == ["control0", "control1"]


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("P", [0, 2])
def test_chunks_give_what_the_whole_gives(name, P):
    model = build(*CAUSAL[name], channels_in=2, channels_out=3, controls=P)
    x, c = torch.randn(2, 2, 90), torch.rand(2, P, 90) if P else None
    with torch.no_grad():
        whole = model(x, c)
        state, pieces = None, []
        for start, end in ((0, 1), (1, 40), (40, 47), (47, 90)):
            now = None if c is None else c[..., start:end]
            y, state = model(x[..., start:end], now, state=state, return_state=True)
            pieces.append(y)
    assert whole.shape == (2, 3, 90)
    assert model.causal
    assert_close(torch.cat(pieces, dim=-1), whole)
    if P:  # they do something, at their time and later
        c2 = c.clone()
        c2[..., 50:] += 1
        with torch.no_grad():
            changed = model(x, c2) - whole
            assert_close(model(x, c[:1, :, 0]), model(x, c[:1, :, :1].expand(2, -1, 90)))
        assert changed[..., :50].abs().max() < 1e-6 < changed[..., 50].abs().min()
        x3 = x.clone()
        x3[..., 50:] += 1
        with torch.no_grad():
            assert (model(x3, c) - whole)[..., :50].abs().max() < 1e-5


@pytest.mark.parametrize("name", TWO_SIDED)
def test_two_sided(name):
    model = build(*TWO_SIDED[name], controls=1)
    x, c = torch.randn(1, 1, 60), torch.rand(1, 1, 60)
    assert not model.causal
    assert model.lookahead == (2 + 6 + 18) // 2 if name == "micro_tcn" else model.lookahead is None
    y = model(x, c)
    x[..., 31] += 1
    assert (model(x, c) - y)[..., :31].abs().max() > 1e-4
    with pytest.raises(ValueError, match="not causal"):
        model(x, c, return_state=True)


def test_lstm_is_the_published_baseline():
    model = build("lstm", {"hidden_size": 5}, controls=2)
    x, c = torch.randn(2, 1, 7), torch.rand(2, 2)
    hidden, _ = model.body.lstm(torch.cat([x.mT, c[:, None].expand(-1, 7, -1)], dim=-1))
    assert_close(model(x, c), torch.tanh(model.body.output(hidden)).mT)


def test_controls_begin_without_effect_in_a_stack_of_mixers():
    model = LongConvForAudio(LongConvAudioConfig(body="mixers", body_options={"hidden_size": 8}, controls=1)).eval()
    x = torch.randn(1, 1, 30)
    assert torch.equal(model(x, torch.zeros(1, 1)), model(x, torch.ones(1, 1)))


@pytest.mark.parametrize("name", CAUSAL)
def test_saved_and_loaded(name, tmp_path):
    model = build(*CAUSAL[name], controls=1, control_names=["drive"], sample_rate=48000)
    x, c = torch.randn(1, 1, 50), torch.rand(1, 1)
    y = model(x, c)  # SGConv freezes its norm
    model.save_pretrained(tmp_path / "m")
    assert type(load_model(tmp_path / "m")) is LongConvForAudio
    for loaded in (load_audio_model(tmp_path / "m"), AutoModel.from_pretrained(tmp_path / "m").eval()):
        assert type(loaded) is LongConvForAudio
        own, theirs = model.state_dict(), loaded.state_dict()
        assert own.keys() == theirs.keys()
        assert all(torch.equal(own[key], theirs[key]) for key in own)
        assert_close(loaded(x, c), y)
    config = AutoConfig.from_pretrained(tmp_path / "m")
    assert (config.control_names, config.sample_rate) == (["drive"], 48000)
    marks = {n: p._optim for n, p in model.named_parameters() if hasattr(p, "_optim")}
    assert {n: p._optim for n, p in loaded.named_parameters() if hasattr(p, "_optim")} == marks


def test_loading_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_audio_model(tmp_path)
    LongConvForCausalLM(LongConvConfig(vocab_size=5, hidden_size=8, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a LongConvForCausalLM, and a model from waveform"):
        load_audio_model(tmp_path)
    build("lstm", {}).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="does not hold a whole model"):
        load_audio_model(tmp_path)


def test_shapes_are_checked():
    model, x = build("micro_tcn", TCN, controls=2), torch.randn(2, 1, 30)
    for arguments, kind, message in (
        ((x[:, 0], None), ValueError, "x must be"),
        ((x[..., :0], None), ValueError, "x must be"),
        ((x.expand(-1, 2, -1), None), ValueError, "x must be"),
        ((x.int(), None), TypeError, "floating"),
        ((x, torch.rand(2)), ValueError, "controls must be"),
        ((x, torch.rand(2, 2, 29)), ValueError, "controls must be"),
        ((x, None), ValueError, "controls must be"),
    ):
        with pytest.raises(kind, match=message):
            model(*arguments)
    for body in ("mixers", "lstm", "gated_tcn"):
        with pytest.raises(ValueError, match="controls must be None"):
            build(body, {}).body(x.mT, torch.rand(2, 1))


def test_described_on_the_command_line(tmp_path, capsys):
    named = {"control_names": ["threshold_db", "ratio"], "control_ranges": [[-40, -10], [2, 8]]}
    for name, field in (
        ("TCN-324-N", "a receptive field of 14,323 samples (324.8 ms), 7,161 of them later than the output"),
        ("LSTM-32", "an unbounded receptive field, causal"),
    ):
        model = LongConvForAudio(LongConvAudioConfig.published(name, **named))
        model.save_pretrained(tmp_path / name)
        capsys.readouterr()
        assert cli.main(["info", str(tmp_path / name)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == f"LongConvForAudio: {sum(p.numel() for p in model.parameters()):,} parameters"
        assert lines[1].startswith(f"body {model.config.body}: ")
        assert lines[2:] == [
            "1 -> 1 channels at 44,100 Hz",
            field,
            "control threshold_db: -40 ... -10",
            "control ratio: 2 ... 8",
        ]
