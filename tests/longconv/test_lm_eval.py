"""The adapter for EleutherAI's harness: its arithmetic by hand, and against the harness where it is installed."""

import logging
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from numerics import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer

from longconv.models import LongConvConfig, LongConvForCausalLM, save_model
from longconv.models import lm_eval as adapter
from longconv.tasks.lm import ByteTokenizer

LETTERS = range(97, 123)
PREFIX = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A byte model that says letters only (so that its text is text), of at most 40 tokens."""
    torch.manual_seed(0)
    config = LongConvConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=2, max_position_embeddings=40, initializer_range=0.5,
        mixers="hyena attention", mixer_options={"hyena": {"filter": {"name": "modal", "order": 4}},
        "attention": {"num_heads": 2}}, tie_word_embeddings=False, bos_token_id=256, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    model = LongConvForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[[i for i in range(258) if i not in LETTERS]] = 0
    path = tmp_path_factory.mktemp("lm_eval") / "model"
    save_model(model, path, ByteTokenizer())
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return adapter.LongConvLM(folder, batch_size=3, device="cpu")


def requests(*arguments):
    return [SimpleNamespace(args=args) for args in arguments]


def by_hand(lm, context, continuation):
    """Sum of log-probabilities of `continuation`, both ids, one position after the other."""
    total, likeliest = 0.0, True
    for i, token in enumerate(continuation):
        ids = torch.tensor([[*context, *continuation[:i]]])
        with torch.no_grad():
            logits = lm.model(ids).logits[0, -1].double()
        total += logits.log_softmax(-1)[token].item()
        likeliest = likeliest and int(logits.argmax()) == token
    return total, likeliest


PAIRS = [("hello", " world"), ("a", "b"), ("", "start"), ("ends with spaces  ", "x"), ("é€", "ü"), ("q" * 20, "r" * 20)]


def test_loglikelihood(lm):
    values = lm.loglikelihood(requests(*PAIRS))
    for (context, continuation), (value, likeliest) in zip(PAIRS, values, strict=True):
        before = list(context.rstrip().encode()) or [PREFIX]
        after = list((context[len(context.rstrip()) :] + continuation).encode())
        expected = by_hand(lm, before, after)
        assert_close(torch.tensor(value), torch.tensor(expected[0]), torch.float32)
        assert likeliest == expected[1]
    assert lm.loglikelihood(requests(("x", ""))) == [(0.0, True)]
    assert lm.loglikelihood([]) == []


def test_the_likeliest_continuation_is_known_as_such(lm):
    (text,) = lm.generate_until(requests(("hello", {"until": [], "max_gen_toks": 5})))
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    (_, right), (_, other) = lm.loglikelihood(requests(("hello", text), ("hello", wrong)))
    assert right
    assert not other


def test_a_context_that_is_too_long_loses_its_beginning(lm, caplog):
    with caplog.at_level(logging.WARNING):
        ((value, _),) = lm.loglikelihood(requests(("abc" * 20, "xyz")))
    assert "63 tokens are cut to the last 41" in caplog.text
    expected, _ = by_hand(lm, list(("abc" * 20).encode())[-38:], list(b"xyz"))
    assert_close(torch.tensor(value), torch.tensor(expected), torch.float32)
    with pytest.raises(ValueError, match="a continuation of 41 tokens is longer than 40"):
        lm.loglikelihood(requests(("a", "b" * 41)))


def test_rolling(lm):
    texts = [
        "",
        "short",
        "x" * 40,
        "a longer text, of more than forty tokens, so in two windows; or three, who knows? " * 2,
    ]
    for text, value in zip(texts, lm.loglikelihood_rolling(requests(*((text,) for text in texts))), strict=True):
        ids = list(text.encode())
        expected = 0.0
        for start in range(0, len(ids), 40):
            targets = ids[start : start + 40]
            end = start + len(targets)
            expected += by_hand(lm, ids[end - 41 : start] if start else [PREFIX], targets)[0]
        assert math.isclose(value, expected, rel_tol=1e-5, abs_tol=1e-6), text


def test_windows_predict_every_token_once():
    # The example in the harness's own documentation of loglikelihood_rolling.
    assert list(adapter.rolling_windows(list(range(10)), -1, 4)) == [
        ([-1], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]
    assert list(adapter.rolling_windows([], -1, 4)) == []
    for n in range(1, 12):
        windows = list(adapter.rolling_windows(list(range(n)), -1, 3))
        assert [token for _, targets in windows for token in targets] == list(range(n))
        assert all(len(context) + len(targets) - 1 <= 3 for context, targets in windows)


def test_generate_until(lm):
    contexts = ["hello", "a", "something longer", ""]
    options = {"until": ["\n"], "max_gen_toks": 12}
    texts = lm.generate_until(requests(*((context, options) for context in contexts)))
    for context, text in zip(contexts, texts, strict=True):
        ids = torch.tensor([list(context.encode()) or [PREFIX]])
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        assert text == bytes(out[0, ids.shape[1] :].tolist()).decode()
        assert len(text) == 12
    # A stop string ends the text before it, also one of several letters, at once or later.
    stop = texts[0][4:6]
    (cut, whole, none) = lm.generate_until(
        requests(
            ("hello", {"until": stop, "max_gen_toks": 12}),
            ("hello", options),
            ("hello", {"until": texts[0][:1], "max_tokens": 3}),
        )
    )
    assert cut == texts[0].split(stop)[0]
    assert (whole, none) == (texts[0], "")
    sampled = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 2.0}
    torch.manual_seed(0)
    assert lm.generate_until(requests(("hello", sampled))) != [texts[0]]
    long = "abcdefgh" * 10
    (text,) = lm.generate_until(requests((long, options)))
    assert [text] == lm.generate_until(requests((long[-28:], options)))


def test_options(folder, tmp_path):
    lm = adapter.LongConvLM(folder, batch_size="2", max_length=7, add_bos_token=True, dtype="float64", device="cpu")
    assert lm.model.dtype == torch.float64
    ((value, _),) = lm.loglikelihood(requests(("hi", " you")))
    expected, _ = by_hand(lm, [PREFIX, *b"hi"], list(b" you"))
    assert_close(torch.tensor(value), torch.tensor(expected), torch.float32)
    with pytest.raises(ValueError, match="batch_size must be a number of at least 1, got 'auto'"):
        adapter.LongConvLM(folder, batch_size="auto")
    with pytest.raises(ValueError, match=r"max_length must be in 1..40, the model's longest sequence, got 41"):
        adapter.LongConvLM(folder, max_length=41)
    with pytest.raises(ValueError, match="dtype must be the name of a torch dtype, got 'float7'"):
        adapter.LongConvLM(folder, dtype="float7")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        adapter.LongConvLM(tmp_path / "nothing")
    with pytest.raises(ValueError, match="until must be a string or a list of strings, got 3"):
        lm.generate_until(requests(("a", {"until": 3})))
    with pytest.raises(ValueError, match="max_gen_toks = 256 leaves no room"):
        lm.generate_until(requests(("a", {"until": "x"})))


def test_the_harness_s_cache_is_filled(folder):
    lm, seen = adapter.LongConvLM(folder, device="cpu"), []
    lm.cache_hook = SimpleNamespace(add_partial=lambda *entry: seen.append(entry))
    values = lm.loglikelihood(requests(("a", "b"), ("c", "d")))
    assert seen == [("loglikelihood", ("a", "b"), values[0]), ("loglikelihood", ("c", "d"), values[1])]


def test_without_the_harness(monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ImportError, match=r"pip install 'longconv\[eval\]'"):
        adapter.register()


def test_the_harness_itself_agrees(folder):
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model
    from lm_eval.models.huggingface import HFLM

    cls = adapter.register()
    assert get_model("longconv") is cls
    ours = cls.create_from_arg_string(f"pretrained={folder}", {"batch_size": 3, "device": "cpu"})
    assert (ours.rank, ours.world_size, ours.device.type) == (0, 1, "cpu")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    theirs = HFLM(model, tokenizer=tokenizer, max_length=40, batch_size=3, device="cpu")

    def instances(kind, arguments):
        return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]

    def both(kind, arguments):
        return [getattr(m, kind)(instances(kind, arguments)) for m in (ours, theirs)]

    mine, reference = both("loglikelihood", [*PAIRS, ("abc" * 20, "xyz")])
    assert [greedy for _, greedy in mine] == [greedy for _, greedy in reference]
    values = [torch.tensor([value for value, _ in some]) for some in (mine, reference)]
    assert_close(values[0], values[1].double(), torch.float32)
    texts = [("short",), ("x" * 40,), ("a longer text, of more than forty tokens, so in windows" * 3,)]
    mine, reference = both("loglikelihood_rolling", texts)
    assert_close(torch.tensor(mine), torch.tensor(reference).double(), torch.float32)
    options = {"until": ["ab", "q"], "max_gen_toks": 12, "do_sample": False}
    mine, reference = both("generate_until", [(context, options) for context in ("hello", "a", "something longer")])
    assert mine == reference
