"""Sliding windows and carried state, against each prediction made on its own in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numerics import assert_close

from longconv.tasks import get
from longconv.tasks.lm import ByteTokenizer, Scores, TokenStream, evaluate_stateful, evaluate_windows
from longconv.tasks.lm.plots import plot_contexts

VOCABULARY = 11
N = 47


class Recurrence:
    """Logits that depend on all tokens seen: h_t = 0.9 h_{t-1} + table[token], in float64; the state is h."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64, generator=generator)
        self.shapes = []

    def __call__(self, input_ids, past_key_values=None, use_cache=False):
        self.shapes.append(tuple(input_ids.shape))
        h = torch.zeros(len(input_ids), VOCABULARY, dtype=torch.float64) if past_key_values is None else past_key_values
        logits = []
        for t in range(input_ids.shape[1]):
            h = 0.9 * h + self.table[input_ids[:, t]]
            logits.append(h)
        return SimpleNamespace(logits=torch.stack(logits, 1), past_key_values=h)


@pytest.fixture
def model():
    return Recurrence()


@pytest.fixture(scope="module")
def stream():
    draw = np.random.default_rng(0)
    return TokenStream(draw.integers(0, VOCABULARY, N), draw.integers(0, 4, N))


def nats_of(model, stream, target, seen):
    """The prediction of token `target` from the `seen` tokens before it, by itself."""
    ids = torch.tensor(stream.ids[target - seen : target])[None]
    return -model(ids).logits[0, -1].log_softmax(-1)[stream.ids[target]].item()


def seen_by(target, context, stride):
    """How many tokens the prediction of `target` sees: the windows end at context, context + stride, …"""
    ends = context
    while ends < target:
        ends += stride
    return target - max(0, ends - context)


def brute_force(model, stream, context, stride):
    """Sums by the number of tokens seen, (nats, tokens, bytes)."""
    nats, tokens, n_bytes = np.zeros(context), np.zeros(context, int), np.zeros(context, int)
    for target in range(1, len(stream)):
        seen = seen_by(target, context, stride)
        nats[seen - 1] += nats_of(model, stream, target, seen)
        tokens[seen - 1] += 1
        n_bytes[seen - 1] += stream.n_bytes[target]
    return nats, tokens, n_bytes


@pytest.mark.parametrize(
    ("context", "stride"),
    [(1, 1), (8, 8), (8, 1), (8, 3), (8, 7), (N - 1, N - 1), (N - 1, 5), (46, 1), (100, 100), (100, 9)],
)
def test_every_prediction_against_brute_force(model, stream, context, stride):
    scores = evaluate_windows(model, stream, context, stride=stride, batch_size=3)
    nats, tokens, n_bytes = brute_force(model, stream, context, stride)
    assert_close(torch.from_numpy(scores.nats), torch.from_numpy(nats))
    assert scores.tokens.tolist() == tokens.tolist()
    assert scores.n_bytes.tolist() == n_bytes.tolist()
    # Every token but the first once, and so every byte.
    assert scores.tokens.sum() == N - 1
    assert scores.n_bytes.sum() == stream.n_bytes[1:].sum()
    metrics = scores.metrics()
    assert metrics["loss"] == pytest.approx(nats.sum() / (N - 1), rel=1e-12)
    assert metrics["bits_per_byte"] == pytest.approx(nats.sum() / math.log(2) / n_bytes.sum(), rel=1e-12)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats.sum() / (N - 1)), rel=1e-12)
    assert (metrics["tokens"], metrics["bytes"]) == (N - 1, n_bytes.sum())


def test_stride_one_shows_each_prediction_the_whole_context(model, stream):
    scores = evaluate_windows(model, stream, 8, stride=1)
    nats = sum(nats_of(model, stream, target, min(target, 8)) for target in range(1, N))
    assert scores.nats.sum() == pytest.approx(nats, rel=1e-12)
    assert scores.tokens.tolist() == [1] * 7 + [N - 8]
    assert {shape[1] for shape in model.shapes[: -(N - 1)]} == {8}


def test_stride_of_the_context_is_blocks(folder):
    task = get("lm", data=folder, length=64, validation=0.2, test=0.2)
    table = torch.randn(258, 258)

    def model(input_ids, attention_mask=None):
        return table[input_ids].cumsum(1)

    blocks = task.evaluate(model, "test", batch_size=5)
    stream = TokenStream.of(task.corpus.texts("test"), task.tokenizer)
    for options in ({}, {"stride": 63}):
        windows = evaluate_windows(model, stream, 63, **options).metrics()
        assert {name: windows[name] for name in blocks} == pytest.approx(blocks, rel=1e-6)
    # Half a block of context is what the task calls eval_context.
    task = get("lm", data=folder, length=64, eval_context=32, validation=0.2, test=0.2)
    windows = evaluate_windows(model, stream, 63, stride=32).metrics()
    blocks = task.evaluate(model, "test", batch_size=5)
    assert {name: windows[name] for name in blocks} == pytest.approx(blocks, rel=1e-6)


@pytest.mark.parametrize("stride", [8, 3])
def test_sums_do_not_depend_on_batches(model, stream, stride):
    one = evaluate_windows(model, stream, 8, stride=stride, batch_size=1)
    assert {shape[0] for shape in model.shapes} == {1}
    for batch_size in (2, 5, 100):
        other = evaluate_windows(model, stream, 8, stride=stride, batch_size=batch_size)
        assert_close(torch.from_numpy(other.nats), torch.from_numpy(one.nats))
        assert (other.tokens == one.tokens).all()
        assert (other.n_bytes == one.n_bytes).all()


def test_no_window_is_longer_than_the_context(model, stream):
    evaluate_windows(model, stream, 8, stride=3)
    assert max(shape[1] for shape in model.shapes) == 8


def test_only_the_logits_of_predictions_are_asked_for(model, stream):
    asked = []

    def economical(input_ids, logits_to_keep=0):
        asked.append(logits_to_keep)
        return model(input_ids).logits[:, -logits_to_keep:]

    scores = evaluate_windows(economical, stream, 8, stride=3)
    assert set(asked) == {8, 3, 2}  # the first window, the others, the last one
    assert_close(torch.from_numpy(scores.nats), torch.from_numpy(brute_force(model, stream, 8, 3)[0]))


def test_the_first_batches_only(model, stream):
    scores = evaluate_windows(model, stream, 5, batch_size=2, max_batches=2)
    assert scores.tokens.tolist() == [4] * 5
    assert scores.n_bytes.sum() == stream.n_bytes[1:21].sum()
    assert len(stream.first(20)) == 21
    again = evaluate_windows(model, stream.first(20), 5)
    assert_close(torch.from_numpy(again.nats), torch.from_numpy(scores.nats))


@pytest.mark.parametrize("chunk", [1, 7, 46, 1000])
def test_a_carried_state_sees_everything(model, stream, chunk):
    scores = evaluate_stateful(model, stream, chunk=chunk)
    assert max(shape[1] for shape in model.shapes) == min(chunk, N - 1)
    whole = evaluate_windows(model, stream, N - 1)
    assert_close(torch.from_numpy(scores.nats), torch.from_numpy(whole.nats))
    assert scores.tokens.tolist() == [1] * (N - 1)
    assert scores.n_bytes.tolist() == stream.n_bytes[1:].tolist()


def test_curve_in_octaves(model, stream):
    scores = evaluate_windows(model, stream, 13)
    rows = scores.curve()
    assert [(row["from"], row["to"]) for row in rows] == [(1, 1), (2, 2), (3, 4), (5, 8), (9, 13)]
    assert sum(row["tokens"] for row in rows) == N - 1
    nats, tokens, n_bytes = brute_force(model, stream, 13, 13)
    assert rows[3]["loss"] == pytest.approx(nats[4:8].sum() / tokens[4:8].sum(), rel=1e-12)
    assert rows[3]["bits_per_byte"] == pytest.approx(nats[4:8].sum() / math.log(2) / n_bytes[4:8].sum(), rel=1e-12)
    total = sum(row["loss"] * row["tokens"] for row in rows)
    assert total == pytest.approx(scores.nats.sum(), rel=1e-12)
    for context in (1, 2, 3, 16):
        rows = evaluate_windows(model, stream, context).curve()
        assert (rows[0]["from"], rows[-1]["to"]) == (1, context)
        assert sum(row["tokens"] for row in rows) == N - 1


def test_curve_leaves_out_what_was_not_measured():
    scores = Scores(8)
    scores.add(2, torch.ones(1, 2), np.array([[0, 0]]))
    scores.add(4, torch.ones(1, 1), np.array([[3]]))
    assert [row["from"] for row in scores.curve()] == [3]


def test_a_module_is_in_eval_mode_for_the_time_being(stream):
    class Model(torch.nn.Module):
        def forward(self, input_ids):
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.zeros(*input_ids.shape, VOCABULARY)

    module = Model().train()
    scores = evaluate_windows(module, stream, 10)
    assert module.training
    assert scores.metrics()["perplexity"] == pytest.approx(VOCABULARY)


def test_stream_of_documents():
    stream = TokenStream.of(["aé", "", "b"], ByteTokenizer())
    assert stream.ids.tolist() == [256, 97, 0xC3, 0xA9, 256, 256, 98, 256]
    assert stream.n_bytes.tolist() == [0, 1, 1, 1, 0, 0, 1, 0]
    assert stream.lossless
    endless = (text for text in iter(lambda: "ab", None))
    assert TokenStream.of(endless, ByteTokenizer(), 4).ids.tolist() == [256, 97, 98, 256, 97]


def test_errors(model, stream):
    for options, message in [
        ({"context": 0}, "context must be at least 1, got 0"),
        ({"context": 8, "stride": 9}, "stride must be in 1..context = 8, got 9"),
        ({"context": 8, "stride": 0}, "stride must be in 1..context = 8, got 0"),
        ({"context": 8, "batch_size": 0}, "batch_size and max_batches must be at least 1"),
        ({"context": 8, "max_batches": 0}, "batch_size and max_batches must be at least 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluate_windows(model, stream, **options)
    empty = TokenStream(np.array([1]), np.array([0]))
    for evaluate in (lambda: evaluate_windows(model, empty, 4), lambda: evaluate_stateful(model, empty)):
        with pytest.raises(ValueError, match="at least two tokens, one to predict; it has 1"):
            evaluate()
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        evaluate_stateful(model, stream, chunk=0)


def test_plot(model, stream, tmp_path):
    scores = {context: evaluate_windows(model, stream, context) for context in (4, 16)}
    path = plot_contexts(scores, tmp_path / "contexts.png", trained=8)
    assert path.read_bytes().startswith(b"\x89PNG")
