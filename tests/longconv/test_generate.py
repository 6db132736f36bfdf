"""`generate()` with the streaming states as its cache: greedy, sampling, beams, padding, EOS, chunks, continuation."""

import pytest
import torch
import transformers
from numerics import assert_close

from longconv.models import LongConvCache, LongConvConfig, LongConvForCausalLM

MIXERS = {
    "hyena": {"mixers": "hyena"},
    "modal": {"mixers": "hyena", "mixer_options": {"hyena": {"filter": {"name": "modal", "order": 4}}}},
    "attention": {"mixers": "attention"},
    "hybrid": {"mixers": "hyena hyena attention", "layer_options": {"1": {"filter": {"name": "modal", "order": 4}}}},
}
N = 12


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=MIXERS)
def model(request):
    options = {**MIXERS[request.param]}
    options["mixer_options"] = {"attention": {"num_heads": 2}, **options.get("mixer_options", {})}
    # A wide initialisation and untied embeddings, so that an untrained model does not just repeat itself.
    return LongConvForCausalLM(
        LongConvConfig(
            vocab_size=37,
            hidden_size=16,
            num_hidden_layers=3,
            max_position_embeddings=64,
            pad_token_id=0,
            tie_word_embeddings=False,
            initializer_range=0.5,
            **options,
        )
    ).eval()


def prompt(*shape):
    return torch.randint(2, 37, shape)


def greedy_by_hand(model, ids, count):
    with torch.no_grad():
        for _ in range(count):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids


def test_greedy_with_and_without_cache(model):
    ids = prompt(3, 7)
    expected = greedy_by_hand(model, ids, N)
    assert len(expected[:, 7:].unique()) > 3
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 3}, {"prefill_chunk_size": 1}):
        assert torch.equal(model.generate(ids, max_new_tokens=N, **options), expected), options
    assert torch.equal(model.generate(ids[:, :1], max_new_tokens=N), greedy_by_hand(model, ids[:, :1], N))


def test_cached_logits_equal_the_parallel_ones(model):
    ids = prompt(2, 40)
    with torch.no_grad():
        whole = model(ids).logits
        cache, outputs = LongConvCache(3), []
        for size in (9, 1, 1, 14, 1, 13, 1):
            start = cache.get_seq_length()
            outputs.append(model(ids[:, start : start + size], past_key_values=cache).logits)
        assert cache.get_seq_length() == 40
        assert_close(torch.cat(outputs, 1), whole.double(), torch.float32)


def left_padded(rows):
    L = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), L, dtype=torch.long), torch.zeros(len(rows), L, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, L - len(row) :], mask[i, L - len(row) :] = row, 1
    return ids, mask


def test_left_padded_prompts_continue_as_each_alone(model):
    rows = [prompt(length) for length in (1, 9, 4, 15)]
    ids, mask = left_padded(rows)
    for options in ({}, {"use_cache": False}, {"prefill_chunk_size": 4}, {"prefill_chunk_size": 1}):
        out = model.generate(ids, attention_mask=mask, max_new_tokens=N, **options)
        for i, row in enumerate(rows):
            assert torch.equal(out[i, ids.shape[1] :], greedy_by_hand(model, row[None], N)[0, len(row) :]), (options, i)


def test_a_prompt_is_read_in_chunks(model):
    """transformers splits the prompt, left padding included, and nothing puts it together again."""
    ids, mask = left_padded([prompt(length) for length in (3, 15)])
    sizes = []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    model.generate(ids, attention_mask=mask, max_new_tokens=4, prefill_chunk_size=4)
    hook.remove()
    assert sizes[:4] == [4, 4, 4, 3]
    assert all(size == 1 for size in sizes[4:])  # later tokens are steps, or chunks of one while a row is all padding


def test_beam_search_with_and_without_cache(model):
    rows = [prompt(length) for length in (5, 9, 2)]
    ids, mask = left_padded(rows)
    options = {"attention_mask": mask, "max_new_tokens": 8, "num_beams": 4, "eos_token_id": 3}
    cached = model.generate(ids, **options)
    assert torch.equal(cached, model.generate(ids, use_cache=False, **options))
    several = model.generate(ids, num_return_sequences=3, **options)
    assert torch.equal(several[::3, : cached.shape[1]], cached)


def test_sampling_follows_the_seed(model):
    ids, draws = prompt(2, 7), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(model.generate(ids, do_sample=True, top_k=0, max_new_tokens=N))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(1)
    assert torch.equal(model.generate(ids, do_sample=True, top_k=0, max_new_tokens=N, use_cache=False), draws[0])


def test_eos_stops_each_row(model):
    ids = prompt(4, 7)
    free = model.generate(ids, max_new_tokens=N)
    eos = free[0, 7 + 3].item()
    out = model.generate(ids, max_new_tokens=N, eos_token_id=eos)
    for row, unstopped in zip(out[:, 7:], free[:, 7:], strict=True):
        hits = (unstopped == eos).nonzero()
        end = hits[0].item() + 1 if len(hits) else N
        assert torch.equal(row[:end], unstopped[:end])
        assert not row[end:].any()  # padding
    alone = model.generate(ids[:1], max_new_tokens=N, eos_token_id=eos)
    assert alone[0, -1] == eos


def test_a_returned_cache_continues_the_conversation(model):
    ids, more = prompt(2, 7), prompt(2, 5)
    first = model.generate(ids, max_new_tokens=6, return_dict_in_generate=True)
    dialogue = torch.cat([first.sequences, more], 1)
    expected = greedy_by_hand(model, dialogue, 6)
    second = model.generate(dialogue, past_key_values=first.past_key_values, max_new_tokens=6)
    assert torch.equal(second, expected)
    embeds = model.generate(inputs_embeds=model.model.embed_tokens(ids), max_new_tokens=6)
    assert torch.equal(embeds, first.sequences[:, 7:])


def test_modal_decoding_does_not_grow_with_the_context():
    config = LongConvConfig(
        vocab_size=37, hidden_size=16, num_hidden_layers=2, mixers="hyena", max_position_embeddings=4096,
        mixer_options={"hyena": {"filter": {"name": "modal", "order": 4}}},
    )  # fmt: skip
    model = LongConvForCausalLM(config).eval()

    def elements(value):
        if isinstance(value, torch.Tensor):
            return value.numel()
        parts = (
            value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else vars(value).values()
        )
        return sum(elements(p) for p in parts if not isinstance(p, int | None))

    with torch.no_grad():
        sizes = {elements(tuple(model(prompt(1, L), use_cache=True).past_key_values.states)) for L in (3, 300)}
    assert len(sizes) == 1


def test_errors(model):
    ids = prompt(2, 7)
    with pytest.raises(ValueError, match="max_length = 64"):
        model.generate(ids, max_new_tokens=80)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, -1] = 0
    with pytest.raises(ValueError, match="pads on the right"):
        model.generate(ids, attention_mask=mask, max_new_tokens=2)
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="LongConvCache"):
        model(ids, past_key_values=transformers.DynamicCache())
    with pytest.raises(ValueError, match="attention_mask must be"):
        model(ids, attention_mask=torch.ones(2, 6))


def test_cache_bookkeeping(model):
    ids, cache = prompt(2, 7), LongConvCache(3)
    with torch.no_grad():
        expected = model(ids, past_key_values=cache).logits
        assert len(cache) == 3
        assert "seen_tokens=7" in repr(cache)
        with pytest.raises(ValueError, match="take tokens back"):
            cache.crop(-1)
        cache.crop(0)
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([0, 2]))
        a = model(ids[:, :1], past_key_values=cache.to("cpu")).logits
        assert_close(a, model(torch.cat([ids, ids[:, :1]], 1)).logits[:, -1:].double(), torch.float32)
        cache.reset()
        assert torch.equal(model(ids, past_key_values=cache).logits, expected)
