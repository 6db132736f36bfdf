"""The demo from end to end, with a model small enough for a test; and the timing of decoding."""

import dataclasses
import json

import pytest
import torch

from longconv.experiments import decoding, demo
from longconv.models import LongConvConfig, LongConvForCausalLM, load_model


@pytest.fixture
def small(monkeypatch, tmp_path):
    original = demo.recipe

    def recipe(output, mixers, minutes, seed):
        config = original(output, mixers, minutes, seed)
        changes = {
            "tokenizer": "bytes",
            "length": 32,
            "hidden_size": 24,
            "layers": 1,
            "batch_size": 2,
        }
        return dataclasses.replace(config, **changes, max_bytes=2_000_000, evaluate_batches=2, quiet=True)

    monkeypatch.setenv("LONGCONV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "recipe", recipe)
    monkeypatch.setattr(demo, "CONTEXTS", (16, 512))


def test_demo(small, tmp_path, capsys):
    numbers = demo.run(tmp_path / "demo", minutes=0.03, evaluate_batches=2)
    assert json.loads((tmp_path / "demo" / "demo.json").read_text()) == json.loads(json.dumps(numbers))
    for name in ("loss", "hankel", "filters", "decode"):
        assert (tmp_path / "demo" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert abs(numbers["bits_per_byte_lost"]) < 0.01
    assert set(numbers["test"]) == {"hyena", "distilled", "attention"}
    assert {(row["model"], row["context"]) for row in numbers["tokens_per_second"]} == {
        (model, context) for model in ("hyena", "distilled", "attention") for context in (16, 512)
    }
    for name in ("hyena/model", "attention/model", "distilled"):
        load_model(tmp_path / "demo" / name)
    out = capsys.readouterr().out
    assert "distillation costs" in out
    assert "decode.png" in out
    demo.run(tmp_path / "demo", minutes=0.01, evaluate_batches=1)  # an earlier demo is replaced


def test_demo_does_not_delete_other_folders(tmp_path):
    (tmp_path / "precious").write_text("keep me")
    with pytest.raises(ValueError, match="is not empty and not an earlier demo"):
        demo.run(tmp_path)
    assert (tmp_path / "precious").exists()


def test_time_decoding_measures_every_model_and_context():
    config = LongConvConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, max_position_embeddings=64)
    models = {"a": LongConvForCausalLM(config).eval(), "b": LongConvForCausalLM(config).eval()}
    timings = decoding.time_decoding(models, (4, 20), torch.randint(0, 10, (60,)), steps=5)
    assert [(t.model, t.context) for t in timings] == [("a", 4), ("a", 20), ("b", 4), ("b", 20)]
    assert all(0 < t.ms_min <= t.ms <= t.ms_max for t in timings)
    with pytest.raises(ValueError, match="tokens must be at least 30 ids, got 25"):
        decoding.time_decoding(models, (4, 20), torch.zeros(25, dtype=torch.long), steps=5)
