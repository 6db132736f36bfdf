"""Models: configuration, loading and saving to the bit, initialisation, training, the classifier."""

import copy
import json
import subprocess
import sys

import pytest
import safetensors.torch
import torch
import transformers
from numerics import assert_close
from safetensors import SafetensorError

from longconv.layers import Attention, Hyena
from longconv.models import (
    LongConvConfig,
    LongConvForCausalLM,
    LongConvForSequenceClassification,
    LongConvModel,
)

transformers.utils.logging.disable_progress_bar()


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(**options):
    defaults = {
        "vocab_size": 23,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "mixers": "hyena attention",
        "mixer_options": {"attention": {"num_heads": 2}, "hyena": {"filter": {"name": "hyena", "order": 8}}},
        "layer_options": {"2": {"filter": {"name": "modal", "order": 3}}},
        "max_position_embeddings": 32,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    return LongConvConfig(**{**defaults, **options})


def tokens(*shape):
    return torch.randint(2, 23, shape)


def marks(model):
    return {name: p._optim for name, p in model.named_parameters() if hasattr(p, "_optim")}


# Configuration


def test_pattern_and_options():
    model = LongConvModel(config(num_hidden_layers=5, mixers="hyena hyena attention", layer_options={1: {"order": 3}}))
    assert [type(block.mixer) for block in model.layers] == [Hyena, Hyena, Attention, Hyena, Hyena]
    assert [len(block.mixer.long_filters) for block in model.layers] == [1, 2, 0, 1, 1]
    assert all(block.mixer.max_length == 32 for block in model.layers)
    unlimited = {"filter": {"name": "modal", "order": 3}, "max_length": None}
    model = LongConvModel(config(mixers="hyena", mixer_options={"hyena": unlimited}))
    assert model(tokens(1, 40)).last_hidden_state.shape == (1, 40, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hiden_size": 16}, "no argument 'hiden_size'; did you mean 'hidden_size'"),
        ({"zzz": 1}, "no argument 'zzz'$"),
        ({"temperature": 1.0}, "no argument 'temperature'"),
        ({"mixers": "hyena mamba"}, "unknown mixer 'mamba'; known: attention, "),
        ({"mixers": " "}, "names no mixer"),
        ({"mixer_options": {"mamba": {}}}, "unknown mixer 'mamba'"),
        ({"layer_options": {"3": {}}}, "layer_options has '3'"),
        ({"activation": "relu"}, "activation"),
        ({"classifier_pooling": "max"}, "classifier_pooling"),
        ({"hidden_size": 0}, "hidden_size"),
    ],
)
def test_configuration_errors(options, message):
    with pytest.raises(ValueError, match=message) as error:
        config(**options)
    assert "\n" not in str(error.value)


def test_configuration_round_trip(tmp_path):
    ours = config(num_labels=5, dtype="bfloat16", eos_token_id=[1, 2])
    ours.save_pretrained(tmp_path)
    for cls in (LongConvConfig, transformers.AutoConfig):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is LongConvConfig
        assert {**loaded.to_dict(), "_name_or_path": ""} == ours.to_dict()
    assert transformers.AutoConfig.from_pretrained(tmp_path, num_labels=7).num_labels == 7
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**written, "hiden_size": 3}))
    with pytest.raises(ValueError, match="did you mean 'hidden_size'"):
        LongConvConfig.from_pretrained(tmp_path)


# Saving and loading


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_saved_and_loaded_to_the_bit(tmp_path, tie):
    model, ids = LongConvForCausalLM(config(tie_word_embeddings=tie)).eval(), tokens(2, 20)
    for parameter in model.parameters():  # as after training: nothing is at its initial value
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    for cls in (LongConvForCausalLM, transformers.AutoModelForCausalLM):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is LongConvForCausalLM
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert marks(loaded) == marks(model) != {}
        assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tie
    backbone = transformers.AutoModel.from_pretrained(tmp_path)
    assert torch.equal(backbone(ids).last_hidden_state, model.model(ids).last_hidden_state)
    assert marks(backbone)["layers.0.mixer.long_filters.0.z"] == {"lr": 1e-5, "weight_decay": 0.0}
    classifier, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=4, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"score.weight", "score.bias"}
    assert classifier(ids).logits.shape == (2, 4)


def test_half_precision_models_keep_their_filters(tmp_path):
    model, ids = LongConvForCausalLM(config()).eval(), tokens(2, 20)
    model.save_pretrained(tmp_path)
    for half in (LongConvForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16), copy.deepcopy(model).bfloat16()):
        logits = half(ids).logits
        assert logits.dtype == torch.bfloat16
        assert half.model.layers[0].mixer.long_filters[0].z.dtype == torch.float32
        assert torch.linalg.vector_norm(logits - model(ids).logits) < 0.1 * torch.linalg.vector_norm(logits)


def test_missing_weights_are_initialised_as_published_and_loaded_ones_kept(tmp_path):
    model = LongConvForCausalLM(config(layer_options=None))
    for parameter in model.parameters():
        parameter.data += 1
    model.save_pretrained(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    prefix = "model.layers.0.mixer."
    dropped = [prefix + name for name in ("long_filters.0.z", "long_filters.0.mlp.1.weight", "skip")]
    for name in dropped:
        del tensors[name]
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, info = LongConvForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["missing_keys"]) == set(dropped)
    for name, parameter in loaded.named_parameters():
        if name not in dropped:
            assert torch.equal(parameter, model.get_parameter(name)), name
    mixer = loaded.model.layers[0].mixer
    fresh = LongConvForCausalLM(config(layer_options=None)).model.layers[0].mixer
    assert torch.equal(mixer.long_filters[0].z, fresh.long_filters[0].z)
    # torch.nn.Linear's initialisation, not initializer_range; a skip ~ N(0, 1), not zeros.
    assert mixer.long_filters[0].mlp[1].weight.abs().max() <= 8**-0.5
    assert 0.5 < mixer.skip.std() < 1.5


def test_a_new_model_has_the_published_filters():
    torch.manual_seed(1)
    mixer = LongConvForCausalLM(config()).model.layers[0].mixer
    bare = Hyena(16, 32, filter={"name": "hyena", "order": 8}).long_filters[0]
    assert torch.equal(mixer.long_filters[0].z, bare.z)
    assert torch.equal(mixer.long_filters[0].deltas, bare.deltas)
    assert mixer.long_filters[0].mlp[1].weight.abs().max() <= 8**-0.5
    assert mixer.skip.std() > 0.5


def test_broken_checkpoints_raise(tmp_path):
    LongConvForCausalLM(config()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        LongConvForCausalLM.from_pretrained(tmp_path, config=config(hidden_size=32))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises((SafetensorError, OSError)):
        LongConvForCausalLM.from_pretrained(tmp_path)


def test_copies_can_be_marked_again():
    model = LongConvForCausalLM(config())
    copied = copy.deepcopy(model)
    copied.mark_parameters()
    assert marks(copied) == marks(model)


# Forward


def test_causal_language_model_loss_and_outputs():
    model, ids = LongConvForCausalLM(config()).eval(), tokens(2, 20)
    labels = ids.clone()
    labels[1, 15:] = -100
    out = model(ids, labels=labels, output_hidden_states=True)
    expected = torch.nn.functional.cross_entropy(
        out.logits[:, :-1].reshape(-1, 23), labels[:, 1:].reshape(-1), ignore_index=-100
    )
    assert_close(out.loss, expected)
    counted = model(ids, labels=labels, num_items_in_batch=10).loss
    assert_close(counted, expected * (19 + 14) / 10)
    assert len(out.hidden_states) == 4
    assert out.past_key_values is None
    assert_close(model(ids, logits_to_keep=1).logits, out.logits[:, -1:].double(), torch.float32)
    assert torch.equal(model(inputs_embeds=model.model.embed_tokens(ids)).logits, out.logits)
    assert torch.equal(model(ids, return_dict=False)[0], out.logits)
    with pytest.raises(ValueError, match="exactly one"):
        model()
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(ids, labels=labels, logits_to_keep=1)
    with pytest.raises(ValueError, match="max_length = 32"):
        model(tokens(1, 33))
    with pytest.raises(TypeError):
        model(ids, atention_mask=None)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_the_rows_alone(side):
    model, lengths = LongConvForCausalLM(config()).eval(), [20, 11, 1]
    ids, mask = torch.zeros(3, 20, dtype=torch.long), torch.zeros(3, 20, dtype=torch.long)
    for row, length in enumerate(lengths):
        real = slice(20 - length, 20) if side == "left" else slice(0, length)
        ids[row, real], mask[row, real] = tokens(length), 1
    logits = model(ids, attention_mask=mask).logits
    for row in range(3):
        keep = mask[row].bool()
        assert_close(logits[row, keep], model(ids[row, keep][None]).logits[0].double(), torch.float32)


def test_packed_sequences_do_not_see_each_other():
    model, lengths = LongConvForCausalLM(config()).eval(), [20, 1, 32]  # 53 tokens, each sequence within max_length
    ids, ends = tokens(1, sum(lengths)), torch.tensor([0, 20, 21, 53])
    logits = model(ids, cu_seqlens=ends).logits
    pieces = [model(piece).logits for piece in ids.split(lengths, 1)]
    assert_close(logits, torch.cat(pieces, 1).double(), torch.float32)
    for options in ({"attention_mask": torch.ones_like(ids)}, {"use_cache": True}):
        with pytest.raises(ValueError, match="cu_seqlens goes with neither"):
            model(ids, cu_seqlens=ends, **options)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_classifier_sees_only_real_tokens(pooling, side):
    model = LongConvForSequenceClassification(config(num_labels=4, classifier_pooling=pooling)).eval()
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[1, slice(0, 8) if side == "left" else slice(12, 20)] = 0
    out = model(ids, attention_mask=mask, labels=torch.tensor([1, 3]))
    assert_close(out.logits[1], model(ids[1, mask[1].bool()][None]).logits[0].double(), torch.float32)
    assert_close(out.logits[0], model(ids[:1]).logits[0].double(), torch.float32)
    assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, torch.tensor([1, 3])))
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


# Training


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_a_few_steps_learn_a_toy(activation):
    model = LongConvForCausalLM(config(activation=activation, dropout=0.05, initializer_range=0.05))
    ids = tokens(1, 5).repeat(4, 6)  # a repeated phrase
    optimiser, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(30):
        loss = model(ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
def test_gradient_checkpointing_gives_the_same_gradients():
    model, ids = LongConvForCausalLM(config()).train(), tokens(2, 20)
    mask = torch.ones(2, 20, dtype=torch.long)
    mask[0, :5] = 0
    model(ids, attention_mask=mask, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    assert all(g.any() for g in expected.values())
    model.zero_grad()
    model.gradient_checkpointing_enable()
    calls = []
    model.model.layers[0].mixer.register_forward_hook(lambda *_: calls.append(1))
    model(ids, attention_mask=mask, labels=ids).loss.backward()
    assert len(calls) == 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(ids, use_cache=True)


def test_longconv_alone_does_not_import_transformers_and_models_say_what_they_need():
    script = (
        "import sys, longconv, longconv.functional, longconv.layers\n"
        "assert 'transformers' not in sys.modules\n"
        "sys.modules['transformers'] = None\n"
        "try: import longconv.models\n"
        "except ImportError as error: assert 'longconv[train]' in str(error), error\n"
        "else: raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "options",
    [{"mixer_options": {"hyena": {"ordr": 2}}}, {"layer_options": {"1": {"ordr": 2}}}],
    ids=["mixer", "layer"],
)
def test_unknown_mixer_options_are_named(options):
    with pytest.raises(ValueError, match="mixer 'hyena' has no option ordr; it has: max_length, order, filter"):
        LongConvConfig(num_hidden_layers=2, **options)


@pytest.mark.parametrize(
    ("mixers", "field", "ahead"),
    [
        ("tcn multires lightconv", 1 + (2 * 2 * 3 + 15 + 4) + 12, 0),
        ("micro_tcn", 1 + 4 * (1 + 4) * 2, 0),
        ("tcn micro_tcn", 1 + 2 * 12 + 2 * 10, 0),
        ("tcn hyena", None, 0),
    ],
)
def test_receptive_field_of_a_stack(mixers, field, ahead):
    """By gradient: of one hidden state, for the embeddings of the tokens."""
    options = {
        "tcn": {"num_blocks": 2, "kernel_size": 3},
        "multires": {"depth": 4},
        "lightconv": {"kernel_size": 5, "num_heads": 2},
        "micro_tcn": {"num_blocks": 2, "kernel_size": 3, "dilation_growth": 4},
    }
    used = {name: options[name] for name in mixers.split() if name in options}
    config = LongConvConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=4, mixers=mixers, mixer_options=used,
        max_position_embeddings=100, initializer_range=0.3,
    )  # fmt: skip
    model = LongConvModel(config).double().eval()
    assert (model.receptive_field, model.lookahead) == (field, ahead)
    assert LongConvForCausalLM(config).receptive_field == field
    if field is None:
        return
    x = torch.randn(1, 100, 16, dtype=torch.float64, requires_grad=True)
    out = model(inputs_embeds=x).last_hidden_state
    reached = torch.autograd.grad(out[0, 90].square().sum(), x)[0][0].abs().sum(1).nonzero().flatten()
    assert (reached.min(), reached.max()) == (90 - field + 1, 90)


def test_lookahead_of_a_stack():
    config = LongConvConfig(
        vocab_size=11, hidden_size=16, num_hidden_layers=3, mixers="tcn lightconv", max_position_embeddings=100,
        mixer_options={
            "tcn": {"num_blocks": 2, "kernel_size": 3, "lookahead": 5},
            "lightconv": {"kernel_size": 4, "num_heads": 2, "bidirectional": True},
        },
        initializer_range=0.3,
    )  # fmt: skip
    model = LongConvModel(config).double().eval()
    assert (model.receptive_field, model.lookahead) == (1 + 2 * 12 + 3, 2 * 5 + 2)
    x = torch.randn(1, 100, 16, dtype=torch.float64, requires_grad=True)
    out = model(inputs_embeds=x).last_hidden_state
    reached = torch.autograd.grad(out[0, 50].square().sum(), x)[0][0].abs().sum(1).nonzero().flatten()
    assert (reached.min(), reached.max()) == (50 + 12 - 28 + 1, 50 + 12)
    assert LongConvModel(LongConvConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2, mixers="sgconv",
        mixer_options={"sgconv": {"bidirectional": True}}, max_position_embeddings=100)).lookahead is None  # fmt: skip
