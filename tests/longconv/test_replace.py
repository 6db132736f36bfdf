"""Mixers in place of the attention of other people's models: what they compute, padded, packed and as they generate."""

import copy

import pytest
import torch
from numerics import assert_close
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GPT2LMHeadModel, StaticCache

from longconv.layers import LAYERS, Hyena, build_layer
from longconv.models import replace_mixers, replacement_report
from longconv.models.adapter import MixerAttention, read_mask
from longconv.models.adapter_cache import MixerStateLayer
from longconv.models.replaced import ARCHITECTURES, adapters_of, mixers_of

V, D, LONGEST = 37, 16, 64
COMMON = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 3, "max_position_embeddings": LONGEST}
HEADS = {"num_attention_heads": 2, "intermediate_size": 24}
GROUPED = {**HEADS, "num_key_value_heads": 1}
CONFIGS = {
    "gpt2": {"num_attention_heads": 2},
    "gpt_neox": HEADS,
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 6},
    "olmo2": GROUPED,
    "opt": {"num_attention_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": D, "init_std": 0.5},
    "phi": HEADS,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 8},
}
# The three that are asked for; the others have the same call.
ASKED = ("gpt2", "llama", "gpt_neox")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def original(name="gpt2", **options):
    # A wide initialisation and untied embeddings, so that an untrained model does not just repeat itself.
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, "tie_word_embeddings": False}
    options = {**COMMON, **CONFIGS[name], **ids, "initializer_range": 0.5, **options}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **options)).eval()


def hybrid(name="gpt2", layers="h a h", **options):
    """The middle layer keeps its attention; the first, which the model asks how long its cache is, does not."""
    return replace_mixers(original(name, **options), "hyena", layers=layers)


def prompt(*shape):
    return torch.randint(2, V, shape)


def padded(lengths, side, total=None):
    """Random rows of these lengths, padded: ids, mask, and the positions of the real tokens."""
    total = total or max(lengths)
    mask = torch.zeros(len(lengths), total, dtype=torch.long)
    for row, length in zip(mask, lengths, strict=True):
        row[total - length :] = 1
    mask = mask if side == "left" else mask.flip(1)
    ids = prompt(len(lengths), total) * mask
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}


def test_configurations_of_all_that_is_known():
    assert CONFIGS.keys() == ARCHITECTURES.keys()


@torch.no_grad()
def test_llama_by_hand():
    model = replace_mixers(original("llama"), "hyena")
    ids = prompt(2, 23)
    x = model.model.embed_tokens(ids)
    for layer in model.model.layers:
        assert isinstance(layer.self_attn.mixer, Hyena)
        x = x + layer.self_attn.mixer(layer.input_layernorm(x))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    assert_close(model(ids).logits, model.lm_head(model.model.norm(x)))


@torch.no_grad()
def test_neox_by_hand():
    model = replace_mixers(original("gpt_neox"), "sgconv", layers=[0, 2])
    ids = prompt(2, 23)
    x = model.gpt_neox.embed_in(ids)
    for index, layer in enumerate(model.gpt_neox.layers):
        if index == 1:
            where = torch.arange(23)[None]
            x = layer(x, position_ids=where, position_embeddings=model.gpt_neox.rotary_emb(x, position_ids=where))
        else:  # attention and MLP side by side
            mixed = layer.attention.mixer(layer.input_layernorm(x))
            x = x + mixed + layer.mlp(layer.post_attention_layernorm(x))
    assert_close(model(ids).logits, model.lm_head(model.gpt_neox.final_layer_norm(x)))


def test_only_the_attention_is_replaced():
    shared = AutoConfig.for_model("gpt2", **COMMON, **CONFIGS["gpt2"])
    model, other = GPT2LMHeadModel(shared).eval(), GPT2LMHeadModel(shared).eval()
    before, other_before = dict(model.named_parameters()), other(ids := prompt(1, 5)).logits
    returned = replace_mixers(model, "hyena", layers=[2, 0])
    assert returned is model
    assert isinstance(model, GPT2LMHeadModel)
    assert sorted(adapters_of(model)) == [0, 2]
    after = dict(model.named_parameters())
    assert {name for name in before if name not in after} == {
        name for name in before if ".attn." in name and ".h.1." not in name
    }
    assert all(after[name] is parameter for name, parameter in before.items() if name in after)
    # A model that had the same configuration object is as it was.
    assert type(other) is GPT2LMHeadModel
    assert other.config is shared
    assert not hasattr(shared, "longconv")
    assert torch.equal(other(ids).logits, other_before)
    assert model.config.longconv == {
        "mixers": {i: {"name": "hyena", "options": {"max_length": LONGEST}} for i in ("0", "2")}
    }
    assert model.transformer.config is model.config is model.transformer.h[1].attn.config


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_padding_is_exact(name, side, attention):
    model = hybrid(name, attn_implementation=attention)
    lengths = [9, 17, 1, 16]
    batch = padded(lengths, side)
    whole = model(**batch).logits  # with a cache, which models make by themselves
    assert_close(
        model(**batch, use_cache=False).logits[batch["attention_mask"] == 1], whole[batch["attention_mask"] == 1]
    )
    for row, length in enumerate(lengths):
        real = batch["attention_mask"][row] == 1
        alone = model(batch["input_ids"][row][real][None]).logits[0]
        assert_close(whole[row][real], alone, name=f"{length} tokens")


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_generation_equals_the_whole_forward(name):
    model = hybrid(name)
    ids = prompt(2, 7)
    expected = ids
    for _ in range(10):
        expected = torch.cat([expected, model(expected, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert len(expected[:, 7:].unique()) > 3
    options = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    for more in ({}, {"use_cache": False}, {"prefill_chunk_size": 3}):
        assert torch.equal(model.generate(ids, attention_mask=torch.ones_like(ids), **options, **more), expected), more
    # Rows of unequal lengths, in one batch and alone.
    lengths = [3, 8, 5]
    batch = padded(lengths, "left")
    del batch["position_ids"]
    for more in ({}, {"prefill_chunk_size": 3}):
        out = model.generate(**batch, **options, **more)
        for row, length in enumerate(lengths):
            own = batch["input_ids"][row : row + 1, -length:]
            alone = model.generate(own, attention_mask=torch.ones_like(own), **options)
            assert torch.equal(out[row, 8:], alone[0, length:]), more


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("layers", ["h a h", "all"])
@torch.no_grad()
def test_beams_and_sampling(name, layers):
    model = hybrid(name, layers)
    batch = padded([4, 7], "left")
    del batch["position_ids"]
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    beams = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    for more in (beams, {"do_sample": True, "top_k": 0}):
        outputs = []
        for use_cache in (True, False):
            torch.manual_seed(3)
            outputs.append(model.generate(**batch, **options, **more, use_cache=use_cache))
        assert torch.equal(*outputs), more


OTHERS = {name: {} for name in sorted(LAYERS.keys() - {"hyena"})}
OTHERS |= {
    "attention": {"num_heads": 2},
    "dynamicconv": {"kernel_size": 4, "num_heads": 2},
    "hyena_nd": {"shape": (LONGEST,)},
    "lightconv": {"kernel_size": 4, "num_heads": 2},
    "multi_hyena": {"num_heads": 2},
}


@pytest.mark.parametrize("mixer", OTHERS)
@torch.no_grad()
def test_other_mixers(mixer):
    """Every mixer there is."""
    model = original("llama")
    if not build_layer(mixer, D, LONGEST, **OTHERS[mixer]).causal:
        with pytest.raises(ValueError, match="is not causal"):
            replace_mixers(model, mixer, options=OTHERS[mixer])
        return
    replace_mixers(model, mixer, [0, 1], OTHERS[mixer])
    batch = padded([5, 11], "left")
    logits = model(**batch).logits
    assert_close(logits[0, -5:], model(batch["input_ids"][:1, -5:]).logits[0])
    cache, ids = DynamicCache(), prompt(2, 12)
    steps = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([5, 4, 1, 1, 1], dim=1)]
    assert_close(torch.cat(steps, 1), model(ids).logits)


@pytest.mark.parametrize("name", ASKED)
@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(name):
    model = hybrid(name)
    lengths = [4, 1, 9]
    ids = prompt(2, sum(lengths))
    where = torch.cat([torch.arange(length) for length in lengths])[None].expand(2, -1)
    packed = model(ids, position_ids=where, use_cache=False).logits
    alone = torch.cat([model(part).logits for part in ids.split(lengths, dim=1)], dim=1)
    assert_close(packed, alone)
    assert not torch.allclose(packed, model(ids, use_cache=False).logits, atol=1e-2)


@torch.no_grad()
def test_packed_for_flash_attention():
    """Flash attention gets no mask for packed rows: it goes by the positions, of one row."""
    model = hybrid("llama")
    adapter = adapters_of(model)[0]
    model.config._attn_implementation_internal = "flash_attention_2"
    x, where = torch.randn(1, 9, D), torch.tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]])
    expected = torch.cat([adapter.mixer(part) for part in x.split([4, 2, 3], dim=1)], dim=1)
    assert_close(adapter(x, position_ids=where)[0], expected)
    assert_close(adapter(x, position_ids=torch.arange(9)[None])[0], adapter.mixer(x))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    assert_close(adapter(x, attention_mask=mask)[0][:, 2:], adapter.mixer(x[:, 2:]))


def test_masks():
    """Every way to say the same: 2-D, 4-D bool, 4-D added to scores; with tokens before these, windows and packing."""
    B, L, past = 3, 7, 4
    real = torch.ones(B, past + L, dtype=torch.bool)
    real[0, :6] = False
    real[1, :2] = False
    causal = torch.ones(past + L, past + L, dtype=torch.bool).tril()
    for window in (2, 3, 100):
        seen = (causal & causal.triu(1 - window))[None] & real[:, None]
        last = seen[:, None, -L:]
        low = [torch.zeros(last.shape).masked_fill(~last, x) for x in (float("-inf"), torch.finfo(torch.float32).min)]
        for mask in (last, *low):
            found, starts = read_mask(mask, B, L)
            assert torch.equal(found, real[:, -L:])
            assert starts is None
    assert torch.equal(read_mask(real.long(), B, L)[0], real[:, -L:])
    assert read_mask(None, B, L) == (None, None)
    assert read_mask(torch.ones(B, L), B, L) == (None, None)
    assert read_mask(causal[None, None, -L:], B, L) == (None, None)
    apart = causal.clone()
    apart[6:, :6] = False
    found, starts = read_mask(apart[None, None, -L:], B, L)
    assert found is None
    assert torch.equal(starts, torch.tensor([[False, True, False, False, False, False]]).expand(B, -1))


def test_masks_that_cannot_be():
    both = torch.ones(1, 1, 5, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="a token sees the next one"):
        read_mask(both, 1, 5)
    for shape in ((2, 4), (1, 1, 4, 5), (3, 1, 5, 5), (1, 5, 5), (5,)):
        with pytest.raises(ValueError, match="attention_mask must be"):
            read_mask(torch.ones(shape), 2, 5)
    with pytest.raises(ValueError, match="a dict cannot be read; set attn_implementation"):
        read_mask({}, 2, 5)
    model = hybrid()
    packed = torch.ones(6, 6).tril().bool()
    packed[3:, :3] = False
    with pytest.raises(ValueError, match="go without a cache"):
        model(prompt(1, 6), attention_mask=packed[None, None])
    packed[:, 0] = False
    with pytest.raises(ValueError, match="cannot be padded as well"):
        model(prompt(1, 6), attention_mask=packed[None, None], use_cache=False)


@torch.no_grad()
def test_cache():
    model = hybrid()
    ids = prompt(3, 9)
    whole = model(ids).logits
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        model(ids[:, :4], past_key_values=cache, use_cache=True)
        assert [type(layer) is MixerStateLayer for layer in cache.layers] == [True, False, True]
        assert cache.get_seq_length() == cache.get_seq_length(1) == 4
        assert_close(model(ids[:, 4:7], past_key_values=cache, use_cache=True).logits, whole[:, 4:7])
        branch = copy.deepcopy(cache)
        rows = torch.tensor([2, 0, 2])
        branch.reorder_cache(rows)
        assert_close(model(ids[rows, 7:8], past_key_values=branch, use_cache=True).logits, whole[rows, 7:8])
        branch.batch_select_indices(torch.tensor([1]))
        assert_close(model(ids[:1, 8:], past_key_values=branch, use_cache=True).logits, whole[:1, 8:])
        cache.batch_repeat_interleave(2)
        again = [0, 0, 1, 1, 2, 2]
        assert_close(model(ids[again, 7:8], past_key_values=cache, use_cache=True).logits, whole[again, 7:8])
        cache.reset()
        assert cache.get_seq_length() == 0
        assert_close(model(ids, past_key_values=cache, use_cache=True).logits, whole)


@torch.no_grad()
def test_tokens_taken_back():
    """`crop`, also to the middle of a chunk, of a padded one, and twice."""
    model = hybrid()
    batch = padded([12, 9, 4], "left")
    ids, mask, where = batch.values()
    whole = model(**batch).logits

    def run(start, end, inputs=ids):
        given = {"attention_mask": mask[:, :end], "position_ids": where[:, start:end], "past_key_values": cache}
        return model(inputs[:, start:end], **given, use_cache=True).logits

    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        run(0, 2)
        with pytest.raises(ValueError, match="cannot go back to 1 tokens"):
            cache.crop(-1)
        cache.reset()
        run(0, 2)
        cache.activate_past_recording()
        cache.crop(0)
        other = prompt(3, 12)
        for start, end, target in ((2, 10, 4), (4, 5, 4), (4, 9, 7)):
            run(start, end, other.where(torch.arange(12) >= target, ids))
            cache.crop(target - end)
            assert cache.get_seq_length() == cache.get_seq_length(1) == target
        with pytest.raises(ValueError, match="cannot go back to 6 tokens"):
            cache.layers[0].crop(-1)
        rows = torch.tensor([1, 0, 2])
        cache.reorder_cache(rows)
        cache.reorder_cache(rows)
        parts = [run(7, 8), run(8, 10, other)]
        cache.crop(-2)
        parts += [run(8, 12)]
        logits = torch.cat([parts[0], parts[2]], dim=1)
        assert_close(logits[mask[:, 7:] == 1], whole[:, 7:][mask[:, 7:] == 1])
        with pytest.raises(ValueError, match="must be 0 or negative"):
            cache.layers[0].crop(1)


@pytest.mark.parametrize("name", ASKED)
@torch.no_grad()
def test_assisted_generation(name):
    torch.manual_seed(5)  # the draft comes to the pad token, which it must not take for padding
    model, draft, ids = hybrid(name), hybrid(name, "all"), prompt(1, 9)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **options)
    assert torch.equal(model.generate(ids, **options, prompt_lookup_num_tokens=3), expected)
    assert torch.equal(model.generate(ids, **options, assistant_model=draft), expected)
    assert torch.equal(model.generate(ids, **options, assistant_model=copy.deepcopy(model)), expected)


@torch.no_grad()
def test_caches_that_cannot_be():
    model = hybrid()
    static = StaticCache(config=model.config, max_cache_len=20)
    with pytest.raises(ValueError, match="StaticCache has memory of a fixed layout"):
        model(prompt(1, 4), past_key_values=static, use_cache=True)
    foreign = original()(prompt(1, 4), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="layer 0 holds keys and values"):
        model(prompt(1, 1), past_key_values=foreign, use_cache=True)
    with pytest.raises(TypeError, match=r"must be a transformers\.DynamicCache, got list"):
        adapters_of(model)[0](torch.randn(1, 2, D), past_key_values=[])
    # Padding on the right: nothing can follow, whether it is all in one chunk or a row ends between two.
    for chunks in ([5], [3, 2]):
        batch = padded([3, 5], "right")
        cache, masks = DynamicCache(), batch["attention_mask"]
        start = 0
        for length in chunks:
            end = start + length
            logits = model(
                batch["input_ids"][:, start:end],
                attention_mask=masks[:, :end],
                position_ids=batch["position_ids"][:, start:end],
                past_key_values=cache,
                use_cache=True,
            ).logits
            start = end
        assert torch.isfinite(logits).all()
        with pytest.raises(ValueError, match="padded on the right, so nothing can follow"):
            model(prompt(2, 1), past_key_values=cache, use_cache=True)


def test_too_long():
    model = replace_mixers(original("llama"), "hyena", max_length=8)
    model(prompt(1, 8))
    with pytest.raises(ValueError, match="longer than max_length = 8"):
        model(prompt(1, 9))
    with pytest.raises(ValueError, match="longer than max_length = 8"):
        model.generate(prompt(1, 6), max_new_tokens=4, eos_token_id=None)


@torch.no_grad()
def test_dropout_of_the_attention_stays():
    """GPT-2 has the dropout of its residual branch inside the attention."""
    model = replace_mixers(original(resid_pdrop=0.5), "hyena")
    adapter, x = adapters_of(model)[0].train(), torch.randn(2, 50, D)
    assert 0.4 < (adapter(x)[0] == 0).double().mean() < 0.6
    assert not any(isinstance(m, nn.Dropout) and m.p for m in adapters_of(hybrid("llama"))[0].modules())


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1, 2, 3, 4]),
        ("all", [0, 1, 2, 3, 4]),
        ("even", [0, 2, 4]),
        ("odd", [1, 3]),
        ([4, 1], [1, 4]),
        (range(2), [0, 1]),
        ("h h a", [0, 1, 3, 4]),
        ("attention hyena", [1, 3]),
        ("hy att att att", [0, 4]),
    ],
)
def test_choice_of_layers(layers, expected):
    model = replace_mixers(original(num_hidden_layers=5), "hyena", layers=layers)
    assert sorted(mixers_of(model)) == expected
    assert sorted(map(int, model.config.longconv["mixers"])) == expected


def test_two_kinds_of_mixers():
    model = replace_mixers(original(), "hyena", layers=[2])
    first = mixers_of(model)[2]
    replace_mixers(model, "sgconv", layers=[0], max_length=40)
    assert mixers_of(model)[2] is first
    assert [entry["name"] for entry in model.config.longconv["mixers"].values()] == ["sgconv", "hyena"]
    report = replacement_report(model)
    attention = D * 3 * D + 3 * D + D * D + D
    counts = [sum(p.numel() for p in mixers_of(model)[i].parameters()) for i in (0, 2)]
    assert [(row.mixer, row.before, row.after) for row in report.layers] == [
        ("sgconv", attention, counts[0]),
        ("attention", attention, attention),
        ("hyena", attention, counts[1]),
    ]
    assert report.before == sum(p.numel() for p in original().parameters())
    assert report.after == sum(p.numel() for p in model.parameters())
    lines = str(report).splitlines()
    assert len(lines) == 5
    assert f"{report.after:,}" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixer": "hyenas"}, "unknown mixer 'hyenas'; known: attention"),
        ({"mixer": "hyena", "options": {"ordre": 3}}, "has no option ordre"),
        ({"mixer": "hyena", "options": {"bidirectional": True}}, "is not causal"),
        ({"mixer": "attention", "options": {"num_heads": 3}}, "num_heads must split 16 channels"),
        ({"mixer": "hyena", "layers": [0, 3]}, r"layers must be in 0\.\.2, got 3"),
        ({"mixer": "hyena", "layers": [-1]}, r"layers must be in 0\.\.2, got -1"),
        ({"mixer": "hyena", "layers": [1, 1]}, "names one twice"),
        ({"mixer": "hyena", "layers": []}, "none of the 3 layers"),
        ({"mixer": "hyena", "layers": "a"}, "none of the 3 layers"),
        ({"mixer": "hyena", "layers": "h x"}, "'x' in 'h x' must begin either 'hyena' or 'attention'"),
        ({"mixer": "attention", "layers": "a"}, "must begin either 'attention'"),
        ({"mixer": "hyena", "max_length": 0}, "max_length must be at least 1"),
        ({"mixer": "hyena", "max_length": 9, "options": {"max_length": 8}}, "max_length is given twice"),
    ],
)
def test_errors_leave_the_model_alone(arguments, message):
    model = original()
    before, config = dict(model.named_modules()), model.config
    with pytest.raises(ValueError, match=message):
        replace_mixers(model, **arguments)
    assert dict(model.named_modules()) == before
    assert type(model) is GPT2LMHeadModel
    assert model.config is config


def test_errors_of_the_model():
    with pytest.raises(TypeError, match="layers must be integers"):
        replace_mixers(original(), "hyena", layers=[1.0])
    with pytest.raises(TypeError, match=r"must be a transformers\.PreTrainedModel, got Linear"):
        replace_mixers(nn.Linear(2, 2), "hyena")
    with pytest.raises(TypeError, match="one that replace_mixers has changed"):
        replacement_report(original())
    bert = AutoConfig.for_model("bert", hidden_size=16, num_hidden_layers=1, num_attention_heads=2, is_decoder=True)
    with pytest.raises(
        ValueError, match="'bert' models cannot be replaced; known architectures: gpt2, gpt_neox, llama"
    ):
        replace_mixers(AutoModelForCausalLM.from_config(bert), "hyena")
    with pytest.raises(ValueError, match="cross-attention"):
        replace_mixers(original(add_cross_attention=True), "hyena")
    model = hybrid()
    with pytest.raises(ValueError, match="attention of 0, 2 has been replaced already"):
        replace_mixers(model, "sgconv")


def test_printed():
    text = repr(hybrid())
    assert "LongConvGPT2LMHeadModel" in text
    assert "(mixer): Hyena" in text
    assert isinstance(adapters_of(hybrid())[0], MixerAttention)
