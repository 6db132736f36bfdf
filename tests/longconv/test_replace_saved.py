"""Models with mixers in place of attention: saved and loaded, initialised, trained, compiled, distilled."""

import copy
import json
import pickle

import pytest
import torch
from numerics import assert_close
from safetensors import safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    GPT2Config,
    GPT2Model,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from longconv.distill import distill, distill_to_budget
from longconv.models import replace_mixers, replacement_report
from longconv.models.adapter import MixerAttention
from longconv.models.replaced import ARCHITECTURES, adapters_of, mixers_of
from longconv.state import map_tensors
from longconv.training import parameter_groups

V, D = 37, 16
COMMON = {"vocab_size": V, "hidden_size": D, "num_hidden_layers": 3, "max_position_embeddings": 64}
COMMON |= {"num_attention_heads": 2, "pad_token_id": 0, "eos_token_id": 1}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(name, **options):
    sizes = {"ffn_dim": 24, "word_embed_proj_dim": D} if name == "opt" else {}
    if name not in ("gpt2", "opt"):
        sizes = {"intermediate_size": 24, "num_key_value_heads": 2}
    return AutoConfig.for_model(name, **{**COMMON, **sizes, **options})


def original(name="gpt2", **options):
    return AutoModelForCausalLM.from_config(config(name, **options)).eval()


def hybrid(name="gpt2", layers="h a h", mixer="hyena", **options):
    return replace_mixers(original(name, **options), mixer, layers=layers)


def prompt(*shape):
    return torch.randint(2, V, shape)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_round_trip_to_the_bit(name, tmp_path):
    model, ids = hybrid(name), prompt(2, 20)
    model.generation_config.max_new_tokens = 5
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == f"longconv-{name}"
    assert saved["architectures"] == [f"LongConv{type(original(name)).__name__}"]
    assert saved["longconv"]["mixers"]["2"] == {"name": "hyena", "options": {"max_length": 64}}
    for loader in (type(model), AutoModelForCausalLM):
        loaded, info = loader.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert type(loaded) is type(model)
        assert torch.equal(loaded(ids).logits, expected)
        assert torch.equal(loaded.generate(ids[:, :4]), model.generate(ids[:, :4]))
        marked = {name for name, parameter in loaded.named_parameters() if hasattr(parameter, "_optim")}
        assert marked == {name for name, parameter in model.named_parameters() if hasattr(parameter, "_optim")} != set()
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = list(file.keys())
    assert any(".mixer.long_filters." in key for key in stored)
    assert len(adapters_of(loaded)) == 2


@torch.no_grad()
def test_tied_weights_stay_tied(tmp_path):
    model = hybrid("gpt2", tie_word_embeddings=True)
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (no mapping)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


@torch.no_grad()
def test_other_heads(tmp_path):
    """A backbone alone, and a classifier, whose backbone transformers builds by itself."""
    ids = prompt(2, 9)
    backbone = replace_mixers(GPT2Model(config("gpt2")).eval(), "hyena", layers="odd")
    hidden = backbone(ids, output_hidden_states=True)
    assert len(hidden.hidden_states) == 4
    backbone.save_pretrained(tmp_path / "backbone")
    loaded = AutoModel.from_pretrained(tmp_path / "backbone")
    assert torch.equal(loaded(ids).last_hidden_state, hidden.last_hidden_state)
    assert len(loaded(ids, output_hidden_states=True).hidden_states) == 4

    classifier = replace_mixers(LlamaForSequenceClassification(config("llama", num_labels=3)).eval(), "sgconv")
    logits = classifier(ids).logits
    classifier.save_pretrained(tmp_path / "classifier")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier")
    assert torch.equal(loaded(ids).logits, logits)
    assert len(adapters_of(loaded)) == 3

    hybrid("llama").save_pretrained(tmp_path / "lm")  # the backbone of a language model
    assert len(adapters_of(AutoModel.from_pretrained(tmp_path / "lm"))) == 2


@torch.no_grad()
def test_copies_and_pickles():
    model, ids = hybrid("llama"), prompt(1, 9)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model)
        assert torch.equal(twin(ids).logits, model(ids).logits)
        assert adapters_of(twin)[0].config is twin.config


@torch.no_grad()
def test_half_precision(tmp_path):
    def dtypes(model):
        mixer = mixers_of(model)[0]
        return {p.dtype for p in mixer.long_filters.parameters()}, mixer.in_proj.weight.dtype

    expected = {torch.float32}, torch.bfloat16
    model, ids = hybrid("llama").to(torch.bfloat16), prompt(2, 12)
    assert dtypes(model) == expected
    assert dtypes(replace_mixers(original("llama").to(torch.bfloat16), "hyena")) == expected
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert dtypes(loaded) == expected
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    cache = DynamicCache()
    parts = [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split([8, 1, 3], 1)]
    assert_close(torch.cat(parts, 1), model(ids).logits)


def test_initialisation():
    """Linear maps are the model's, GPT-2's scaling by depth included; filters are their own."""
    torch.manual_seed(1)
    for name, scale in (("gpt2", (2 * 3) ** -0.5), ("llama", 1.0)):
        model = hybrid(name, hidden_size=64, initializer_range=1e-3)
        mixer = mixers_of(model)[0]
        assert mixer.in_proj.weight.std().item() == pytest.approx(1e-3, rel=0.05)
        assert mixer.out_proj.weight.std().item() == pytest.approx(1e-3 * scale, rel=0.05)
        assert not mixer.in_proj.bias.any()
        assert all(m.weight.std() > 1e-2 for m in mixer.long_filters.modules() if isinstance(m, nn.Linear))
    # Constructed from a configuration, as from_pretrained does. GPT-2 scales parts of its MLPs, too.
    backbone = replace_mixers(GPT2Model(config("gpt2", hidden_size=64, initializer_range=1e-3)), "hyena")
    for either in (backbone, type(backbone)(backbone.config)):
        assert either.h[0].mlp.c_proj.weight.std().item() == pytest.approx(1e-3 * 6**-0.5, rel=0.05)
    built = type(model)(model.config)
    assert mixers_of(built)[0].in_proj.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert built.model.layers[1].self_attn.q_proj.weight.std().item() == pytest.approx(1e-3, rel=0.05)


def test_missing_weights_are_initialised(tmp_path):
    """A file without the mixers, as of the model before: they begin as new ones, and what is there is loaded."""
    model = original("llama")
    mixed = replace_mixers(copy.deepcopy(model), "hyena")
    mixed.config.save_pretrained(tmp_path)
    weights = {name: t.clone() for name, t in mixed.state_dict().items() if "mixer.in_proj" not in name}
    loaded = type(mixed).from_pretrained(None, config=mixed.config, state_dict=weights)
    mixer, kept = mixers_of(loaded)[1], mixers_of(mixed)[1]
    assert mixer.in_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(mixer.out_proj.weight, kept.out_proj.weight)
    assert torch.equal(mixer.short_weight, kept.short_weight)
    assert torch.equal(mixer.long_filters[0](9), kept.long_filters[0](9))
    # None of the mixer: its filters begin as they do themselves.
    mixed = hybrid("llama", hidden_size=64, initializer_range=1e-3)
    weights = {name: t.clone() for name, t in mixed.state_dict().items() if ".mixer." not in name}
    mixer = mixers_of(type(mixed).from_pretrained(None, config=mixed.config, state_dict=weights))[0]
    assert mixer.in_proj.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert all(m.weight.std() > 1e-2 for m in mixer.long_filters.modules() if isinstance(m, nn.Linear))


def test_marks_reach_the_optimiser():
    model = hybrid("llama")
    marked = {id(p): p._optim for p in model.parameters() if hasattr(p, "_optim")}
    assert marked
    for group in parameter_groups(model, lr=0.5, weight_decay=0.3):
        for parameter in group["params"]:
            options = marked.get(id(parameter), {})
            decay = options.get("weight_decay", 0.3 if parameter.ndim >= 2 else 0.0)
            assert (group["lr"], group["weight_decay"]) == (options.get("lr", 0.5), decay)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_gradients_with_checkpointing(name):
    model, ids = hybrid(name).train(), prompt(2, 20)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters()})
    assert any("long_filters" in key for key in gradients[0])
    for key, expected in gradients[0].items():
        assert torch.allclose(gradients[1][key], expected, rtol=1e-5, atol=1e-7), key


@torch.no_grad()
def test_compiled():
    model = hybrid("llama")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = prompt(2, 16)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    for inputs in ({}, {"attention_mask": mask}):
        expected = model(ids, **inputs, use_cache=False).logits
        assert_close(compiled(ids, **inputs, use_cache=False).logits[1], expected[1])
        assert_close(compiled(ids, **inputs, use_cache=False).logits[0, 5:], expected[0, 5:])


@torch.no_grad()
def test_packed_rows_fail_when_compiled():
    model = hybrid("llama")
    compiled = torch.compile(model, backend="eager")
    where = torch.tensor([[0, 1, 2, 0, 1]])
    with pytest.raises(RuntimeError, match="a compiled model cannot take packed sequences"):
        compiled(prompt(1, 5), position_ids=where, use_cache=False)


def numbers(layer):
    """How many numbers a layer of a cache holds."""
    counts = []
    held = getattr(layer, "state", None) or (layer.keys, layer.values)
    map_tensors(held, lambda tensor: counts.append(tensor.numel()) or tensor)
    return sum(counts)


@torch.no_grad()
def test_distilled(tmp_path):
    model = hybrid("llama", initializer_range=0.3)
    student, report = distill(model, order=62, method="hankel")
    assert type(student) is type(model)
    assert [fit.layer for fit in report.layers] == [0, 2]
    assert student.config.longconv["mixers"]["0"]["options"]["filter"]["name"] == "modal"
    assert "filter" not in model.config.longconv["mixers"]["0"]["options"]
    ids = prompt(2, 40)
    teacher, expected = model(ids).logits, student(ids).logits
    assert torch.linalg.vector_norm(teacher - expected) / torch.linalg.vector_norm(teacher) < 0.05
    cache, sizes = DynamicCache(), []
    for t in range(40):
        assert_close(student(ids[:, t : t + 1], past_key_values=cache, use_cache=True).logits[:, 0], expected[:, t])
        sizes.append([numbers(layer) for layer in cache.layers])
    assert sizes[-1][0] == sizes[0][0]  # the state does not grow with the context; that of attention does
    assert sizes[-1][1] == 40 * sizes[0][1]
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(student.generate(ids, **options), student.generate(ids, **options, use_cache=False))
    student.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, expected)
    assert len(replacement_report(student).layers) == 3


@torch.no_grad()
def test_distilled_to_a_budget():
    model = hybrid("gpt2", initializer_range=0.3)
    batches = [{"input_ids": prompt(2, 20)}]
    student, report, _ = distill_to_budget(model, state_size=200, calibration=batches, method="balanced", max_order=8)
    assert 0 < report.state_size <= 200
    assert [fit.layer for fit in report.layers] == [0, 2]
    assert isinstance(student.transformer.h[0].attn, MixerAttention)


def test_nothing_to_distil():
    with pytest.raises(ValueError, match="no long filter to distil"):
        distill(LlamaForCausalLM(config("llama")), order=4)


def test_configuration_classes():
    model = hybrid("gpt2")
    assert isinstance(model.config, GPT2Config)
    again = AutoConfig.for_model(
        "longconv-gpt2", **{k: v for k, v in model.config.to_dict().items() if k != "model_type"}
    )
    assert type(again) is type(model.config)
    assert again.longconv == model.config.longconv
