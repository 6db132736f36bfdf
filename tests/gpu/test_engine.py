"""DecodeEngine on a GPU: a step as a CUDA graph gives what it gives without one, and what `generate()` gives."""

import pytest
import torch

from longconv.distill import distill
from longconv.models import DecodeEngine, LongConvConfig, LongConvForCausalLM, SamplingOptions

pytestmark = pytest.mark.gpu
LENGTHS = (3, 40, 17, 1, 64, 9, 25, 12)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    options = {"hyena": {"order": 3}, "multi_hyena": {"num_heads": 8}, "s4d": {}}
    config = LongConvConfig(
        vocab_size=500, hidden_size=64, num_hidden_layers=3, mixers=" ".join(options), mixer_options=options,
        max_position_embeddings=256, initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    return distill(LongConvForCausalLM(config).eval(), tol=1e-2, max_order=32)[0].cuda()


def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 500, (n,), generator=generator) for n in LENGTHS]


def eager(engine):
    """The same engine without graphs."""
    engine._graphs = None
    return engine


def tokens_of(engine, options):
    return [request.tokens for _, request in sorted(dict(engine.generate(prompts(), options)).items())]


def test_tokens_are_those_of_generate_alone(model):
    engine = DecodeEngine(model, slots=3, prefill_chunk=16)  # graphs of 1, 2 and 3 slots, captured on the way
    got = tokens_of(engine, [SamplingOptions(max_new_tokens=20 + 3 * i) for i in range(len(LENGTHS))])
    for i, ids in enumerate(prompts()):
        out = model.generate(ids[None].cuda(), max_new_tokens=20 + 3 * i, do_sample=False)
        assert got[i] == out[0, len(ids) :].tolist(), i
    assert engine._graphs is not None
    assert sorted(engine._graphs._graphs) == [(1, 0), (2, 0), (3, 0)]


@pytest.mark.parametrize("top_k", [0, 7])
def test_sampling_in_the_graph(model, top_k):
    options = [
        SamplingOptions(max_new_tokens=30, temperature=0.3 * (i % 4), top_k=top_k, top_p=0.95, seed=i) for i in range(8)
    ]
    with_graphs = tokens_of(DecodeEngine(model, slots=5), options)
    assert with_graphs == tokens_of(eager(DecodeEngine(model, slots=5)), options)
    assert with_graphs == tokens_of(DecodeEngine(model, slots=8), options)  # whoever else is there


def test_a_capture_leaves_running_requests_alone(model):
    engine, options = DecodeEngine(model, slots=8), SamplingOptions(max_new_tokens=40)
    expected = dict(DecodeEngine(model, slots=1).generate(prompts()[:1], options))[0].tokens
    first = engine.join(prompts()[0], options)
    for ids in prompts()[1:]:
        for _ in range(3):
            engine.step()
        engine.join(ids, options)  # more slots: another graph, captured while requests are under way
    while engine.active:
        engine.step()
    assert first.tokens == expected


def test_roll_back_and_disk(model, tmp_path):
    engine, options = DecodeEngine(model, slots=2), SamplingOptions(max_new_tokens=30, temperature=1.0, seed=4)
    requests = [engine.join(ids, options) for ids in prompts()[:2]]
    for _ in range(10):
        engine.step()
    snapshot = engine.snapshot()
    engine.save(tmp_path / "engine")
    while engine.active:
        engine.step()
    expected = [list(request.tokens) for request in requests]
    engine.restore(snapshot)
    while engine.active:
        engine.step()
    assert [request.tokens for request in requests] == expected
    other = DecodeEngine(model, slots=2)
    loaded = other.load(tmp_path / "engine")
    while other.active:
        other.step()
    assert [request.tokens for request in loaded] == expected


def test_memory_does_not_grow_and_free_slots_do_no_harm(model):
    engine = DecodeEngine(model, slots=4)
    options = SamplingOptions(max_new_tokens=200, temperature=1.0)
    requests = [engine.join(ids, options) for ids in prompts()[:4]]
    engine.leave(1)
    with torch.inference_mode():
        for tensor in [*engine._states.tensors().values(), engine._logits]:
            share = tensor.shape[0] // 4
            tensor[share : 2 * share] = float("nan")
    for _ in range(5):
        engine.step()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    for _ in range(100):
        engine.step()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == held
    alone = dict(DecodeEngine(model, slots=1).generate(prompts()[3:4], options))[0].tokens
    assert requests[3].tokens == alone[: len(requests[3].tokens)]


def test_half_precision(model):
    half = LongConvForCausalLM(model.config).eval().cuda()
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)
    engine = DecodeEngine(half, slots=4)
    got = tokens_of(engine, SamplingOptions(max_new_tokens=50))
    assert all(len(tokens) == 50 for tokens in got)
    assert torch.isfinite(engine._logits).all()
