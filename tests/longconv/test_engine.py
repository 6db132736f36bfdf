"""DecodeEngine: what a request gets is what `generate()` gives it alone, whoever joins and leaves meanwhile."""

import json
import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from longconv.distill import distill
from longconv.filters import set_state_dtype
from longconv.models import DecodeEngine, LongConvCache, LongConvConfig, LongConvForCausalLM, SamplingOptions

V = 37
MODAL = {"name": "modal", "order": 3}
SERVED = {
    "hyena": {"hyena": {"filter": MODAL}},
    "hyena of order 3": {"hyena": {"filter": MODAL, "order": 3}},
    "multi_hyena": {"multi_hyena": {"filter": MODAL, "num_heads": 4}},
    "s4d": {"s4d": {}},
    "global_conv": {"global_conv": {"filter": MODAL, "short_kernel": 4}},
    "lightconv": {"lightconv": {"kernel_size": 5}},
    "dynamicconv": {"dynamicconv": {"kernel_size": 5}},
}


def build(options, seed=0, **config):
    torch.manual_seed(seed)
    # A wide initialisation and untied embeddings, so that an untrained model does not just repeat itself.
    config = {"max_position_embeddings": 64, "num_hidden_layers": 2, "initializer_range": 0.5, **config}
    return LongConvForCausalLM(
        LongConvConfig(
            vocab_size=V,
            hidden_size=16,
            mixers=" ".join(options),
            mixer_options=options,
            tie_word_embeddings=False,
            **config,
        )
    ).eval()


@pytest.fixture(params=SERVED)
def served(request):
    return build(SERVED[request.param])


@pytest.fixture(scope="module")
def model():
    """A distilled hybrid of what can be served, whose channels have different orders."""
    teacher = build({"hyena": {"order": 2}, "multi_hyena": {"num_heads": 4}, "s4d": {}}, num_hidden_layers=3)
    return distill(teacher, tol=1e-2, max_order=32)[0]


def prompt(length, seed=None):
    generator = torch.Generator().manual_seed(1000 * length if seed is None else seed)
    return torch.randint(2, V, (length,), generator=generator)


def alone(model, ids, count, **options):
    out = model.generate(torch.as_tensor(ids)[None], max_new_tokens=count, do_sample=False, **options)
    return out[0, len(ids) :].tolist()


def test_every_request_is_what_it_is_alone(served):
    engine = DecodeEngine(served, slots=3)
    lengths, counts = (1, 9, 4, 15, 2, 7, 30), (12, 3, 20, 1, 8, 30, 9)
    options = [SamplingOptions(max_new_tokens=n) for n in counts]
    results = dict(engine.generate(map(prompt, lengths), options))
    assert sorted(results) == list(range(7))
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        assert results[i].tokens == alone(served, prompt(length), count), i
        assert (results[i].finish_reason, results[i].slot, results[i].prompt_length) == ("length", None, length)
    assert engine.free_slots == 3


def test_joining_and_leaving_at_random(model):
    rng, engine = random.Random(0), DecodeEngine(model, slots=4, prefill_chunk=5)
    prompts, left = {}, 0
    for _ in range(60):
        if engine.free_slots and rng.random() < 0.4:
            ids = prompt(rng.randint(1, 20), seed=len(prompts))
            request = engine.join(ids.tolist(), SamplingOptions(max_new_tokens=rng.randint(1, 25)))
            prompts[request] = ids
        if engine.active and rng.random() < 0.05:
            left += engine.leave(rng.choice(engine.active).slot).finish_reason == "left"
        engine.step()
    assert len(prompts) > 10
    assert left
    for request, ids in prompts.items():
        assert request.tokens == alone(model, ids, 25)[: len(request.tokens)]
        assert request.finish_reason != "length" or len(request.tokens) == request.options.max_new_tokens


def test_what_lies_in_a_free_slot_does_not_matter(model):
    engine = DecodeEngine(model, slots=3)
    first, second = (
        engine.join(prompt(n), SamplingOptions(max_new_tokens=10, temperature=t)) for n, t in ((5, 0), (8, 1))
    )
    third = engine.join(prompt(3))
    engine.leave(first.slot)
    with torch.inference_mode():
        for tensor in [*engine._states.tensors().values(), engine._logits]:
            tensor[: tensor.shape[0] // 3] = float("nan")
    while engine.active:
        engine.step()
    assert third.tokens == alone(model, prompt(3), 62)
    assert len(second.tokens) == 10
    again = engine.join(prompt(6), SamplingOptions(max_new_tokens=4))
    assert again.slot is None or again.slot == 0
    while engine.active:
        engine.step()
    assert again.tokens == alone(model, prompt(6), 4)


def test_stop_tokens_and_limits(model):
    free = alone(model, prompt(5), 20)
    stop = next(token for i, token in enumerate(free) if i > 2 and token not in free[:i])
    cut = free[: free.index(stop) + 1]
    engine = DecodeEngine(model, slots=2)
    for options in (
        SamplingOptions(stop_tokens=(stop,)),
        SamplingOptions(max_new_tokens=len(cut), stop_tokens=(stop, 99)),
    ):
        ((_, request),) = engine.generate([prompt(5)], options)
        assert request.tokens == cut
        assert request.finish_reason == "stop"
    # The model's own end of text, and none although it has one.
    model.generation_config.eos_token_id = [stop, 1]
    try:
        results = dict(engine.generate([prompt(5)] * 2, [SamplingOptions(), SamplingOptions(20, stop_tokens=())]))
    finally:
        model.generation_config.eos_token_id = None
    assert results[0].tokens == cut
    assert results[1].tokens == free
    # As many as the length allows: the last token need not be run, as in generate().
    ((_, request),) = engine.generate([prompt(60)])
    assert request.tokens == alone(model, prompt(60), 5)
    assert request.options.max_new_tokens == 5


def test_prompts_are_read_as_slots_become_free(model):
    engine, taken = DecodeEngine(model, slots=2), []

    def prompts():
        for i in range(5):
            taken.append(i)
            yield prompt(3 + i)

    results = engine.generate(prompts(), [SamplingOptions(max_new_tokens=n) for n in (4, 9, 5, 6, 7)])
    index, _ = next(results)
    assert index == 0
    assert taken == [0, 1, 2]
    outsider = engine.leave(engine.active[0].slot)  # someone else takes one of them out
    rest = dict(results)
    assert sorted([index, *rest]) == [0, 1, 2, 3, 4]
    assert outsider.finish_reason == "left"


def test_a_prefix_is_run_once(model):
    start, cache = prompt(20), LongConvCache(3)
    with torch.no_grad():
        model(start[None], past_key_values=cache)
    engine = DecodeEngine(model, slots=2, prefill_chunk=3)
    requests = {n: engine.join(prompt(n), SamplingOptions(max_new_tokens=9), prefix=cache) for n in (1, 8)}
    assert cache.seen_tokens == 20
    while engine.active:
        engine.step()
    for n, request in requests.items():
        assert request.prompt_length == 20 + n
        assert request.tokens == alone(model, torch.cat([start, prompt(n)]), 9)
    two, other = LongConvCache(3), LongConvCache(2)
    with torch.no_grad():
        model(torch.stack([start, start]), past_key_values=two)
        build(SERVED["hyena"])(start[None], past_key_values=other)
    for wrong in (two, other, LongConvCache(3)):
        with pytest.raises(ValueError, match="prefix must be the cache of one sequence"):
            engine.join(prompt(2), prefix=wrong)
    with pytest.raises(ValueError, match="a prompt of 65 tokens"):
        engine.join([1] * 45, prefix=cache)
    assert engine.free_slots == 2


def test_whoever_stops_listening_frees_the_slots(model):
    engine = DecodeEngine(model, slots=3)
    mine = engine.join(prompt(4))
    results = engine.generate([prompt(3), prompt(5), prompt(6)], [SamplingOptions(n) for n in (2, 9, 9)])
    next(results)
    results.close()
    assert engine.active == [mine]
    with pytest.raises(ValueError, match="outside the vocabulary"):
        list(engine.generate([prompt(3), [V]]))
    assert engine.active == [mine]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_roll_back(model, temperature):
    engine = DecodeEngine(model, slots=3)
    options = SamplingOptions(max_new_tokens=40, temperature=temperature, seed=5)
    requests = [engine.join(prompt(n), options) for n in (4, 9)]
    expected = [r.tokens for _, r in sorted(DecodeEngine(model, 2).generate([prompt(4), prompt(9)], options))]
    for _ in range(5):
        engine.step()
    one, both = engine.snapshot([requests[1].slot]), engine.snapshot()
    for _ in range(7):
        engine.step()
    engine.restore(one)  # the second 7 tokens back, the first stays where it is
    assert [len(r.tokens) for r in requests] == [12, 5]
    for _ in range(3):
        engine.step()
    engine.restore(both)
    assert [len(r.tokens) for r in requests] == [5, 5]
    while engine.active:
        engine.step()
    assert [r.tokens for r in requests] == expected
    engine.restore(both)  # although both have finished
    assert [r.slot for r in requests] == [0, 1]
    assert requests[0].finish_reason is None
    while engine.active:
        engine.step()
    assert [r.tokens for r in requests] == expected
    engine.join(prompt(2))
    with pytest.raises(ValueError, match="slot 0 has been given to another request"):
        engine.restore(both)


def test_save_and_load(model, tmp_path):
    engine = DecodeEngine(model, slots=3)
    options = [
        SamplingOptions(20),
        SamplingOptions(20, temperature=0.8, top_k=9, top_p=0.9, seed=3),
        SamplingOptions(30),
    ]
    requests = [engine.join(prompt(3 + i), o) for i, o in enumerate(options)]
    for _ in range(6):
        engine.step()
    engine.leave(0)
    engine.save(tmp_path / "served")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["served"]
    other = DecodeEngine(model, slots=4)
    loaded = other.load(tmp_path / "served")
    assert [vars(a) == vars(b) for a, b in zip(loaded, requests[1:], strict=True)] == [True, True]
    for e in (engine, other):
        while e.active:
            e.step()
    assert [r.tokens for r in loaded] == [r.tokens for r in requests[1:]]
    assert other.join(prompt(3)).id == 3

    with pytest.raises(ValueError, match="1 requests are active"):
        other.load(tmp_path / "served")
    with pytest.raises(FileNotFoundError, match="no saved states in"):
        engine.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="a request in slot 2, and this engine 2 slots"):
        DecodeEngine(model, slots=2).load(tmp_path / "served")
    with pytest.raises(ValueError, match="another model: its config differs"):
        DecodeEngine(build(SERVED["hyena"]), slots=3).load(tmp_path / "served")
    changed = DecodeEngine(model, slots=3)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-3
    try:
        with pytest.raises(ValueError, match="another model: its weights differ"):
            changed.load(tmp_path / "served")
    finally:
        with torch.no_grad():
            model.model.norm.weight[0] -= 1e-3
    file = tmp_path / "served" / "states.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-100])
    with pytest.raises(ValueError, match="does not hold whole states"):
        engine.load(tmp_path / "served")
    file.write_bytes(data)
    description = json.loads((tmp_path / "served" / "states.json").read_text())
    description["kind"] = "LongConvCache"
    (tmp_path / "served" / "states.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="of a LongConvCache, not of a DecodeEngine"):
        engine.load(tmp_path / "served")
    assert not engine.active


def test_half_precision_weights_and_wide_states(model):
    half = build(SERVED["hyena"]).bfloat16()
    engine = DecodeEngine(half, slots=2)
    assert all(t.dtype == torch.complex128 for name, t in engine._states.tensors().items() if "long" in name)
    results = dict(engine.generate([prompt(4), prompt(9)], SamplingOptions(max_new_tokens=8)))
    assert all(len(r.tokens) == 8 for r in results.values())


def test_memory_is_fixed(model):
    engine = DecodeEngine(model, slots=2)
    before = {name: (t.data_ptr(), t.shape) for name, t in engine._states.tensors().items()}
    dict(engine.generate([prompt(n) for n in (3, 40, 7)], SamplingOptions(max_new_tokens=10)))
    assert {name: (t.data_ptr(), t.shape) for name, t in engine._states.tensors().items()} == before
    total = sum(t.numel() * t.element_size() for t in engine._states.tensors().values())
    assert engine.bytes_per_slot == total // 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"s4d": {}, "attention": {"num_heads": 2}}, r"layer 1 \(Attention\).*only layers that are recurrences"),
        ({"s4d": {}, "hyena": {}}, r"layer 1 \(Hyena\).*distil the model first"),
        ({"sgconv": {}}, r"layer 0 \(SGConv\).*distil the model first"),
        ({"tcn": {}}, r"layer 0 \(TCN\).*only layers that are recurrences"),
        ({"multires": {}}, r"layer 0 \(MultiresLayer\).*only layers that are recurrences"),
        ({"mega": {"chunk_size": 8}}, r"layer 0 \(Mega\).*only layers that are recurrences"),
    ],
)
def test_what_cannot_be_served(options, message):
    with pytest.raises(ValueError, match=message):
        DecodeEngine(build(options), slots=2)


def test_errors(model):
    with pytest.raises(ValueError, match="slots must be at least 1, got 0"):
        DecodeEngine(model, 0)
    with pytest.raises(ValueError, match="prefill_chunk must be at least 1 or None, got 0"):
        DecodeEngine(model, 1, prefill_chunk=0)
    with pytest.raises(ValueError, match="training mode"):
        DecodeEngine(build(SERVED["hyena"]).train(), 1)
    engine = DecodeEngine(model, 1)
    assert engine.step() == []
    for wrong, error, message in [
        ([], ValueError, "prompt must be .* got shape"),
        (torch.ones(2, 3, dtype=torch.int64), ValueError, r"got shape \(2, 3\)"),
        ([0.5], TypeError, "prompt must be integers, got torch.float32"),
        ([1, V], ValueError, f"outside the vocabulary of {V}: 1 ... {V}"),
        ([-1], ValueError, "outside the vocabulary"),
        ([1] * 65, ValueError, "a prompt of 65 tokens and 1 new ones exceed the model's limit of 64"),
    ]:
        with pytest.raises(error, match=message):
            engine.join(wrong)
    with pytest.raises(ValueError, match="a prompt of 60 tokens and 6 new ones exceed"):
        engine.join([1] * 60, SamplingOptions(6))
    with pytest.raises(ValueError, match=r"slot must be one with a request, one of \[\], got 0"):
        engine.leave(0)
    assert engine.free_slots == 1
    engine.join([1, 2])
    with pytest.raises(ValueError, match="all 1 slots are taken"):
        engine.join([1])
    with pytest.raises(ValueError, match=r"one of \[0\], got -1"):
        engine.snapshot([-1])
    engine.leave(0)
    with pytest.raises(ValueError, match="1 options for more prompts"):
        list(engine.generate([[1], [2]], [SamplingOptions(1)]))
    endless = build({"lightconv": {"kernel_size": 3, "max_length": None}})
    with pytest.raises(ValueError, match="nothing would end this request"):
        DecodeEngine(endless, 1).join([1])
    assert len(dict(DecodeEngine(endless, 1).generate([[1]], SamplingOptions(90)))[0].tokens) == 90


@pytest.mark.parametrize("width", [0, 8])
def test_a_step_never_looks_at_a_value(served, width):
    """So that it can be captured in a CUDA graph: nothing goes to Python, no shape depends on data."""

    class Watch(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = set()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    engine = DecodeEngine(served, slots=3)
    engine.join(prompt(5), SamplingOptions(temperature=1.0))
    with torch.inference_mode(), Watch() as watch:
        engine._advance(2, width)
    assert {"embedding", "argmax"} <= watch.seen
    assert not watch.seen & {"_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero"}


def test_states_of_half_the_memory(model):
    ids = prompt(6)
    options = SamplingOptions(max_new_tokens=8)
    whole = DecodeEngine(model, slots=2)
    try:
        half = DecodeEngine(model, slots=2, state_dtype=torch.complex64)
        assert {state.dtype for state in half._states.tensors().values() if state.is_complex()} == {torch.complex64}
        assert half.bytes_per_slot < 0.6 * whole.bytes_per_slot
        (_, request), = half.generate([ids], options)  # fmt: skip
        assert request.tokens == alone(model, ids, 8)
        with pytest.raises(ValueError, match="complex64 or complex128"):
            DecodeEngine(model, slots=1, state_dtype=torch.bfloat16)
    finally:
        set_state_dtype(model, torch.complex128)
