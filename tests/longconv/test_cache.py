"""LongConvCache: tokens taken back, by hand and in assisted generation; states on disk; memory of a long prompt."""

import json

import pytest
import torch
from numerics import assert_close

from longconv.models import LongConvCache, LongConvConfig, LongConvForCausalLM, state_io
from longconv.models import cache as cache_module

V, N = 37, 24
MODAL = {"name": "modal", "order": 4}
MODELS = {
    "hyena": {"hyena": {}},
    "modal": {"hyena": {"filter": MODAL}},
    "hybrid": {"hyena": {}, "attention": {"num_heads": 2}},
    "multi_hyena": {"multi_hyena": {"num_heads": 4, "filter": MODAL}},
    "tcn": {"tcn": {}, "multires": {}},
    "mega": {"mega": {"chunk_size": 8}, "dynamicconv": {"kernel_size": 5}},
}


def build(options, seed=0, **config):
    torch.manual_seed(seed)
    config = {"max_position_embeddings": 400, "hidden_size": 16, "num_hidden_layers": 2, **config}
    return LongConvForCausalLM(
        LongConvConfig(
            vocab_size=V,
            mixers=" ".join(options),
            mixer_options=options,
            tie_word_embeddings=False,
            initializer_range=0.5,
            pad_token_id=0,
            **config,
        )
    ).eval()


@pytest.fixture(params=MODELS)
def model(request):
    return build(MODELS[request.param])


def prompt(*shape):
    return torch.randint(2, V, shape)


@torch.no_grad()
def logits(model, cache, ids):
    return model(ids, past_key_values=cache).logits


def test_snapshots_lead_back(model):
    ids, cache = prompt(2, 40), LongConvCache(2)
    with torch.no_grad():
        whole = model(ids).logits.double()
    empty = cache.snapshot()
    logits(model, cache, ids[:, :11])
    early = cache.snapshot()
    expected = [logits(model, cache, ids[:, t : t + 1]) for t in range(11, 20)]
    late = cache.snapshot()
    for snapshot, start in ((early, 11), (late, 20), (early, 11), (empty, 0)):
        cache.restore(snapshot)
        assert cache.get_seq_length() == start
        assert_close(logits(model, cache, ids[:, start:30]), whole[:, start:30], torch.float32)
    cache.restore(early)
    again = [logits(model, cache, ids[:, t : t + 1]) for t in range(11, 20)]
    assert torch.equal(torch.cat(again), torch.cat(expected))
    with pytest.raises(ValueError, match="snapshot has 2 layers, the cache 3"):
        LongConvCache(3).restore(early)


def test_crop_and_go_on(model):
    """Back by any number of tokens, into chunks and between them, right after each other: as if they had never been."""
    ids, cache = prompt(1, 220), LongConvCache(2)
    with torch.no_grad():
        whole = model(ids).logits.double()
    cache.activate_past_recording()
    at = 0
    for forward, back in ((100, 0), (9, 3), (1, 1), (1, 0), (80, 70), (1, 0), (5, 5), (2, 1), (1, 0), (3, 0)):
        other = (ids[:, at : at + forward] + 1) % V  # what is taken back is something else
        chunk = torch.cat([ids[:, at : at + forward - back], other[:, forward - back :]], 1)
        out = logits(model, cache, chunk)
        assert_close(out[:, : forward - back], whole[:, at : at + forward - back], torch.float32)
        at += forward - back
        cache.crop(-back)
        assert cache.get_seq_length() == at
    for size in (1, 1, 4):  # each step is a chunk of its own: back over several of them
        logits(model, cache, ids[:, at : at + size])
        at += size
    cache.crop(-5)
    out = logits(model, cache, ids[:, at - 5 :])
    assert_close(out, whole[:, at - 5 :], torch.float32)


def test_a_crop_into_left_padding():
    model = build(MODELS["modal"])
    ids, mask = prompt(2, 12), torch.ones(2, 12, dtype=torch.int64)
    mask[1, :6] = 0
    cache = LongConvCache(2)
    cache.activate_past_recording()
    with torch.no_grad():
        model(ids[:, :8], attention_mask=mask[:, :8], past_key_values=cache)
        cache.crop(-5)
        cache.batch_select_indices(torch.tensor([1, 0]))
        flipped = model(ids.flip(0)[:, 3:], attention_mask=mask.flip(0), past_key_values=cache).logits
        assert_close(flipped[0, 3:], model(ids[1:, 6:]).logits[0].double(), torch.float32)
        assert_close(flipped[1], model(ids[:1]).logits[0, 3:].double(), torch.float32)


def test_crop_keeps_its_word():
    model, cache = build(MODELS["modal"]), LongConvCache(2)
    ids = prompt(1, 20)
    logits(model, cache, ids[:, :5])
    with pytest.raises(ValueError, match="unless its past is kept"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="must be 0 or negative, got 2"):
        cache.crop(2)
    assert not cache.records_past
    cache.activate_past_recording()
    logits(model, cache, ids[:, 5:9])
    with pytest.raises(ValueError, match="cannot go back to 4 tokens: only the states since 5 were kept"):
        cache.crop(-5)
    cache.crop(-2)
    with pytest.raises(ValueError, match="right after crop"):
        cache.snapshot()
    with pytest.raises(ValueError, match="cannot go back to 6 tokens: only the states since 7"):
        cache.crop(-1)
    logits(model, cache, ids[:, 7:9])
    cache.crop(0)
    assert cache.get_seq_length() == 9
    cache.deactivate_past_recording()
    logits(model, cache, ids[:, 9:10])
    assert cache._past is None
    cache.activate_past_recording()
    cache.reset()
    assert cache.records_past
    assert cache.get_seq_length() == 0


@pytest.mark.parametrize("kind", ["hyena", "modal", "hybrid"])
@pytest.mark.parametrize("length", [1, 150])
def test_assisted_generation_is_greedy_generation(kind, length):
    model, draft = build(MODELS[kind]), build(MODELS[kind])
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    ids = prompt(1, length)
    expected = model.generate(ids, max_new_tokens=N, do_sample=False)
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(None))
    for options in (
        {"assistant_model": draft},
        {"assistant_model": draft, "prefill_chunk_size": 7},
        {"prompt_lookup_num_tokens": 4},
    ):
        calls.clear()
        out = model.generate(ids, max_new_tokens=N, do_sample=False, **options)
        assert torch.equal(out, expected), options
        assert len(calls) <= N
        if options.get("assistant_model") is draft:
            assert len(calls) < N  # some drafts were taken
    hook.remove()


def test_prompt_lookup_saves_steps():
    """A model that repeats itself: its own past is a good draft."""
    model = build(MODELS["modal"])
    with torch.no_grad():
        model.lm_head.weight[5] += 10 * model.model.norm(model.model.embed_tokens.weight[5])
        model.model.embed_tokens.weight[5] *= 30
    ids = torch.full((1, 6), 5)
    expected, calls = model.generate(ids, max_new_tokens=N, do_sample=False), []
    hook = model.register_forward_hook(lambda *_: calls.append(None))
    assert torch.equal(model.generate(ids, max_new_tokens=N, do_sample=False, prompt_lookup_num_tokens=5), expected)
    assert len(calls) <= N // 4
    hook.remove()


def test_a_cache_from_assisted_generation_keeps_no_past_when_others_use_it():
    model = build(MODELS["modal"])
    ids = prompt(1, 9)
    out = model.generate(ids, max_new_tokens=6, prompt_lookup_num_tokens=3, return_dict_in_generate=True)
    cache = out.past_key_values
    assert cache.records_past
    more = model.generate(out.sequences, max_new_tokens=6, past_key_values=cache)
    assert torch.equal(more, model.generate(ids, max_new_tokens=12))
    assert not cache.records_past


def test_states_go_to_disk_and_come_back(model, tmp_path):
    ids, mask = prompt(3, 30), torch.ones(3, 30, dtype=torch.int64)
    mask[1, :13] = 0
    cache = LongConvCache(2)
    with torch.no_grad():
        model(ids[:, :20], attention_mask=mask[:, :20], past_key_values=cache)
        cache.save(tmp_path / "cache", model)
        loaded = LongConvCache.load(tmp_path / "cache", model)
        assert loaded.get_seq_length() == 20
        assert loaded.may_be_padding == cache.may_be_padding
        for part in (slice(20, 26), slice(26, 27), slice(27, 30)):
            outs = [
                model(ids[:, part], attention_mask=mask[:, : part.stop], past_key_values=c).logits[mask[:, part] > 0]
                for c in (cache, loaded)
            ]
            assert_close(outs[1], outs[0].double(), torch.float32)
    assert [p.name for p in tmp_path.iterdir()] == ["cache"]


def test_files_that_do_not_fit(tmp_path):
    model, cache = build(MODELS["modal"]), LongConvCache(2)
    folder = tmp_path / "cache"
    logits(model, cache, prompt(1, 7))
    with pytest.raises(ValueError, match="the cache has 1 layers, the model 2"):
        LongConvCache(1).save(folder, model)
    cache.save(folder, model)
    with pytest.raises(FileNotFoundError, match=r"no saved states in .*states.json is missing"):
        LongConvCache.load(tmp_path, model)
    with pytest.raises(ValueError, match="another model: its config differs"):
        LongConvCache.load(folder, build(MODELS["hyena"]))
    with pytest.raises(ValueError, match="another model: its weights differ"):
        LongConvCache.load(folder, build(MODELS["modal"], seed=1))
    with pytest.raises(ValueError, match="another model: its weights differ"):
        LongConvCache.load(folder, build(MODELS["modal"]).bfloat16())
    text = (folder / "states.json").read_text()
    for damage, message in [
        (text[:-5], "does not hold whole states"),
        ("{}", "does not hold whole states: 'kind'"),
        (text.replace("longconv.layers.hyena:HyenaState", "os:system"), "os:system is no state of longconv"),
        (text.replace("HyenaState", "Hyena"), "Hyena is no state of longconv"),
        (text.replace('"0.short"', '"0.shirt"'), "does not hold whole states: '0.shirt'"),
    ]:
        assert damage != text
        (folder / "states.json").write_text(damage)
        with pytest.raises(ValueError, match=message) as caught:
            LongConvCache.load(folder, model)
        assert "\n" not in str(caught.value)
    assert json.loads(text)["kind"] == "LongConvCache"


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.bfloat16, torch.bool])
def test_tensors_on_disk(dtype, tmp_path):
    """Bit by bit, and in memory as a complex multiplication wants it, however long the file's header is."""
    model = build(MODELS["modal"])
    for n in range(1, 17):
        tensor = torch.randn(3, 5, dtype=dtype) if dtype.is_complex else torch.randn(3, 5).to(dtype)
        kept = {"t" * n: tensor, "conjugate": tensor.conj() if dtype.is_complex else tensor, "empty": tensor[:0]}
        state_io.save_states(tmp_path / "s", "test", model, {"n": n}, kept)
        data, back = state_io.load_states(tmp_path / "s", "test", model, lambda *loaded: loaded)
        assert data == {"n": n}
        assert back.keys() == kept.keys()
        for name, value in kept.items():
            assert back[name].dtype == dtype
            assert torch.equal(back[name], value)
            assert back[name].data_ptr() % 16 == 0


def peak_bytes(run) -> int:
    """The most memory that tensors held at one time during a run, more than before it."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_the_memory_of_a_long_prompt_is_that_of_a_chunk():
    model = build(MODELS["modal"], max_position_embeddings=1 << 16, hidden_size=32)
    ids, chunk = prompt(1, 1 << 15), 1 << 10
    options = {"max_new_tokens": 2, "do_sample": False}
    outs = []

    def run(ids, **more):
        return peak_bytes(lambda: outs.append(model.generate(ids, **options, **more)[:, -2:]))

    one_chunk = run(ids[:, :chunk])
    chunked, whole = run(ids, prefill_chunk_size=chunk), run(ids)
    assert torch.equal(outs[1], outs[2])
    prompt_itself = 4 * ids.numel() * ids.element_size()  # ids, mask, and their copies in generate()
    assert chunked < 1.5 * one_chunk + prompt_itself
    assert whole > 8 * one_chunk


def test_recorded_chunks_are_cut_so_that_little_is_run_again():
    model, cache = build(MODELS["modal"]), LongConvCache(2)
    cache.activate_past_recording()
    ids = prompt(1, 300)
    logits(model, cache, ids)
    cache.crop(-10)
    assert cache.pending is not None
    assert cache.pending.x.shape[1] == cache_module.REPLAYED - 10
