"""A distilled model in a folder is a model of transformers: Auto classes, pipeline, streamers, stops, beams."""

import threading

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, StoppingCriteria, StoppingCriteriaList

from longconv.distill import distill
from longconv.models import DecodeEngine, LongConvConfig, LongConvForCausalLM, SamplingOptions, save_model
from longconv.tasks.lm import ByteTokenizer

LETTERS = range(97, 123)
N = 14


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A distilled byte model that says letters only, so that its text can be read, beside its tokenizer."""
    torch.manual_seed(1)
    config = LongConvConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=2, max_position_embeddings=200, initializer_range=0.5,
        tie_word_embeddings=False, bos_token_id=256, eos_token_id=256, pad_token_id=257,
    )  # fmt: skip
    model = LongConvForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight[[i for i in range(258) if i not in LETTERS]] = 0
    student, _ = distill(model, tol=1e-2)
    path = tmp_path_factory.mktemp("ecosystem") / "model"
    save_model(student, path, ByteTokenizer())
    return path


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def said(model, prompt, count=N):
    """Greedy text by hand, without a cache."""
    ids = torch.tensor([list(prompt.encode())])
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return bytes(ids[0, len(prompt.encode()) :].tolist()).decode()


def test_auto_classes_give_the_distilled_model(model, tokenizer):
    assert type(model) is LongConvForCausalLM
    assert model.config.layer_options["1"]["filter"]["name"] == "modal"
    assert model.generation_config.eos_token_id == 256
    assert len(set(said(model, "hello"))) > 3
    batch = tokenizer(["hello", "hi"], padding=True, return_tensors="pt")
    out = model.generate(**batch, max_new_tokens=N, do_sample=False)
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :])
    assert texts == [said(model, "hello"), said(model, "hi")]


def test_pipeline(folder, model):
    pipe = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    assert type(pipe.model) is LongConvForCausalLM
    prompts = ["hello", "a longer prompt", "x"]
    for options in ({}, {"batch_size": 2}):
        out = pipe(prompts, max_new_tokens=N, do_sample=False, return_full_text=False, **options)
        assert [text[0]["generated_text"] for text in out] == [said(model, prompt) for prompt in prompts]
    (text,) = pipe("hello", max_new_tokens=N, do_sample=False)
    assert text["generated_text"] == "hello" + said(model, "hello")
    assert len(pipe("hello", max_new_tokens=4, do_sample=True, num_return_sequences=3)) == 3


def test_streamers(model, tokenizer, capsys):
    batch = tokenizer("hello", return_tensors="pt")
    options = {"max_new_tokens": N, "do_sample": False}
    model.generate(**batch, **options, streamer=transformers.TextStreamer(tokenizer))
    assert capsys.readouterr().out == "hello" + said(model, "hello") + "\n"
    streamer = transformers.TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = threading.Thread(target=model.generate, kwargs={**batch, **options, "streamer": streamer})
    thread.start()
    assert "".join(streamer) == said(model, "hello")
    thread.join()


def test_stopping(model, tokenizer):
    batch, text = tokenizer("hello", return_tensors="pt"), said(model, "hello")
    stop = text[4:6]
    out = model.generate(**batch, max_new_tokens=N, do_sample=False, stop_strings=[stop, "QQ"], tokenizer=tokenizer)
    assert tokenizer.decode(out[0, 5:]) == text[: text.index(stop) + 2]

    class AfterSeven(StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            return torch.full((len(ids),), ids.shape[1] >= 5 + 7)

    criteria = StoppingCriteriaList([AfterSeven()])
    out = model.generate(**batch, max_new_tokens=N, do_sample=False, stopping_criteria=criteria)
    assert tokenizer.decode(out[0, 5:]) == text[:7]


def test_beams_and_sampling(model, tokenizer):
    batch = tokenizer(["hello", "something else"], padding=True, return_tensors="pt")
    options = {"max_new_tokens": 8, "num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.5}
    out = model.generate(**batch, **options, do_sample=False)
    assert torch.equal(out, model.generate(**batch, **options, do_sample=False, use_cache=False))
    drawn = []
    for use_cache in (True, False):
        transformers.set_seed(3)
        options = {"do_sample": True, "temperature": 1.3, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
        drawn.append(model.generate(**batch, **options, max_new_tokens=8, use_cache=use_cache))
    assert torch.equal(*drawn)


def test_half_precision_weights_with_wide_filters_and_states(folder, model, tokenizer):
    half = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert half.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for block in half.model.layers for p in block.mixer.long_filters.parameters()} == {torch.float32}
    batch = tokenizer(["hello there, this is a prompt"], return_tensors="pt")
    with torch.no_grad():
        cache = half(**batch, use_cache=True).past_key_values
        logits, wide = half(**batch).logits, model(**batch).logits
    assert all(state.long[0].state.dtype == torch.complex128 for state in cache.states)
    # Weights rounded to bfloat16, once each: what is lost is theirs.
    relative = torch.linalg.vector_norm(logits - wide) / torch.linalg.vector_norm(wide)
    assert relative < 0.05
    # Step by step as well as all at once, in bfloat16, to what bfloat16 can tell.
    whole = half.generate(**batch, max_new_tokens=N, do_sample=False)
    assert whole.shape[1] == batch["input_ids"].shape[1] + N
    ((_, request),) = DecodeEngine(half, 1).generate([batch["input_ids"]], SamplingOptions(max_new_tokens=N))
    assert request.tokens == whole[0, -N:].tolist()


def test_the_engine_serves_what_was_loaded(model, tokenizer):
    prompts = ["hello", "a longer prompt", "x", "more", "and one more"]
    engine = DecodeEngine(model, slots=2)
    results = dict(engine.generate([tokenizer(p)["input_ids"] for p in prompts], SamplingOptions(max_new_tokens=N)))
    texts = [tokenizer.decode(results[i].tokens, skip_special_tokens=True) for i in range(len(prompts))]
    assert texts == [said(model, prompt) for prompt in prompts]
