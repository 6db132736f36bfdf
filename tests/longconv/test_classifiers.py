"""Classifiers of sequences and of pairs: pooling, padding, files, transformers' Trainer, errors."""

import copy

import pytest
import torch
import transformers
from numerics import assert_close
from transformers import AutoModelForSequenceClassification

from longconv.models import (
    LongConvConfig,
    LongConvForCausalLM,
    LongConvForSequenceClassification,
    LongConvForSequencePairClassification,
    LongConvModel,
)
from longconv.models.classifiers import Pooling

transformers.utils.logging.disable_progress_bar()
POOLINGS = ("mean", "last", "attention")
BOTH = (LongConvForSequenceClassification, LongConvForSequencePairClassification)
#: Options that make each mixer two-sided, where it can be.
TWO_SIDED = {
    "attention": {"num_heads": 2, "bidirectional": True},
    "dynamicconv": {"kernel_size": 5, "num_heads": 2, "bidirectional": True},
    "global_conv": {"bidirectional": True},
    "hyena": {"bidirectional": True, "filter": {"name": "hyena", "order": 8}},
    "lightconv": {"kernel_size": 5, "num_heads": 2, "bidirectional": True},
    "mega": {"zdim": 4, "bidirectional": True},
    "micro_tcn": {"num_blocks": 2, "kernel_size": 3, "dilation_growth": 2, "causal": False},
    "multi_hyena": {"num_heads": 4, "bidirectional": True},
    "multires": {"depth": 4, "output": "glu", "bidirectional": True},
    "s4d": {"filter": {"name": "s4d", "state_size": 6}, "bidirectional": True},
    "sgconv": {"filter": {"name": "sgconv", "kernel_dim": 4}, "output": "glu", "bidirectional": True},
    "smpconv": {"filter": {"name": "smpconv", "points": 5, "radius": 0.3}, "bidirectional": True},
    "tcn": {"num_blocks": 2, "kernel_size": 2, "dropout": 0.0, "bidirectional": True},
    "tcnca": {"num_layers": 2, "kernel_size": 4, "dilation_factor": 3, "zdim": 4, "bidirectional": True},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(mixer="sgconv", **options):
    """As published on the Long Range Arena, but for the size."""
    defaults = {
        "vocab_size": 23,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "mixers": mixer,
        "mixer_options": {mixer: TWO_SIDED[mixer]},
        "max_position_embeddings": 32,
        "norm": "batch",
        "norm_position": "post",
        "intermediate_size": 0,
        "initializer_range": None,
        "num_labels": 3,
    }
    return LongConvConfig(**{**defaults, **options})


def trained(model):
    """The model in eval mode, with nothing at its initial value, as after training."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "filters" not in name:
                tensor += (0.2 if "var" in name else 0.1) * torch.rand_like(tensor)
    return model.eval()


def batch(pairs=False, values=None, lengths=(20, 11, 1), side="right"):
    """Rows of these lengths, padded to the longest: inputs and attention_mask."""
    lengths = torch.tensor([lengths, lengths[::-1]]).T if pairs else torch.tensor(lengths)
    L = int(lengths.max())
    place = torch.arange(L) if side == "right" else torch.arange(L).flip(0)
    mask = place < lengths[..., None]
    if values is None:
        ids = torch.randint(1, 23, mask.shape).masked_fill(~mask, 0)
        return {"input_ids": ids, "attention_mask": mask.long()}
    return {
        "input_values": torch.randn(*mask.shape, values).masked_fill(~mask[..., None], 0),
        "attention_mask": mask.long(),
    }


# Pooling


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("how", POOLINGS)
def test_pooling_is_its_definition(how, dtype):
    pool = Pooling(config(classifier_pooling=how)).to(dtype)
    if how == "attention":
        assert not pool.query.any()
        pool.query.data = torch.randn(8, dtype=dtype)
    x, mask = torch.randn(4, 13, 8, dtype=dtype), torch.rand(4, 13) < 0.6
    mask[:, 5] = True
    expected = []
    for row, keep in zip(x.double(), mask, strict=True):
        real = row[keep]
        if how == "mean":
            expected.append(real.mean(0))
        elif how == "last":
            expected.append(real[-1])
        else:
            expected.append((real @ pool.query.double() / 8**0.5).softmax(0) @ real)
    expected = torch.stack(expected)
    poisoned = x.masked_fill(~mask[..., None], float("nan"))  # nothing is promised about padding
    for given in (x, poisoned):
        assert_close(pool(given, mask), expected)
        assert pool(given, mask).dtype == dtype
    everything = torch.ones(4, 13, dtype=torch.bool)
    assert_close(pool(x, None), pool(x, everything).double())


def test_attention_pooling_begins_as_the_mean_and_learns():
    attention, mean = (Pooling(config(classifier_pooling=how)) for how in ("attention", "mean"))
    x, mask = torch.randn(4, 13, 8), torch.ones(4, 13, dtype=torch.bool)
    mask[2, 4:] = False
    assert_close(attention(x, mask), mean(x, mask).double())
    attention(x, mask).square().sum().backward()
    assert attention.query.grad.abs().min() > 1e-4


def test_mean_pooling_of_long_half_precision_sequences():
    x = torch.full((1, 100_000, 8), 3.0, dtype=torch.float16)  # their sum is no float16
    assert torch.equal(Pooling(config())(x, torch.ones(1, 100_000, dtype=torch.bool)), x[:, 0])


# Padding


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", POOLINGS)
@pytest.mark.parametrize("position", ["pre", "post"])
@pytest.mark.parametrize("norm", ["rms", "layer", "batch"])
def test_padded_rows_equal_the_rows_alone(norm, position, how, side):
    kind = {"norm": norm, "norm_position": position, "classifier_pooling": how, "intermediate_size": None}
    model, data = trained(LongConvForSequenceClassification(config(**kind))), batch(side=side)
    logits = model(**data).logits
    for row, keep in enumerate(data["attention_mask"].bool()):
        alone = model(data["input_ids"][row, keep][None]).logits
        assert_close(logits[row][None], alone.double(), torch.float32)


@pytest.mark.parametrize("mixer", TWO_SIDED)
def test_padded_rows_equal_the_rows_alone_with_every_mixer(mixer):
    model, data = trained(LongConvForSequenceClassification(config(mixer, classifier_pooling="attention"))), batch()
    logits = model(**data).logits
    for row, keep in enumerate(data["attention_mask"].bool()):
        alone = model(data["input_ids"][row, keep][None]).logits
        assert_close(logits[row][None], alone.double(), torch.float32)
    # In training the padding is not counted: more of it changes nothing.
    more = {name: torch.nn.functional.pad(x, (0, 5)) for name, x in data.items()}
    models = [copy.deepcopy(model).train() for _ in range(2)]
    a, b = (m(**d).logits for m, d in zip(models, (data, more), strict=True))
    assert_close(b, a.double(), torch.float32)
    for (name, one), other in zip(models[0].named_buffers(), models[1].buffers(), strict=True):
        if "running" in name:
            assert_close(other, one.double(), torch.float32, name)


@pytest.mark.parametrize("values", [None, 2])
def test_padded_pairs_equal_the_pairs_alone(values):
    model = trained(LongConvForSequencePairClassification(config(classifier_pooling="attention", input_size=values)))
    data = batch(pairs=True, values=values)
    logits = model(**data).logits
    name = "input_ids" if values is None else "input_values"
    for row, keep in enumerate(data["attention_mask"].bool()):
        features = []
        for i in range(2):
            hidden = model.model(**{name: data[name][row, i, keep[i]][None]}).last_hidden_state
            features.append(model.pooling(hidden, None)[0])
        a, b = features
        hidden = torch.relu(model.hidden(torch.cat([a, b, a - b, a * b])))
        assert_close(logits[row], model.score(hidden).double(), torch.float32)


# Parameters, files


def test_parameters_are_those_of_the_definition():
    D, V = 8, 23
    kind = config("lightconv", norm="layer", classifier_pooling="mean")
    block = 2 * D + sum(p.numel() for p in LongConvModel(kind).layers[0].mixer.parameters())

    def count(cls, **options):
        options = {"norm": "layer", "classifier_pooling": "mean", **options}
        return sum(p.numel() for p in cls(config("lightconv", **options)).parameters())

    single, pair = BOTH
    assert count(single) == V * D + 2 * block + 3 * (D + 1)
    assert count(single, input_size=5) == (5 + 1) * D + 2 * block + 3 * (D + 1)
    assert count(single, norm_position="pre", classifier_pooling="attention") == count(single) + 2 * D + D
    assert count(pair) == V * D + 2 * block + (4 * D + 1) * D + 3 * (D + 1)


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize("values", [None, 3], ids=["ids", "values"])
def test_saved_and_loaded_to_the_bit(tmp_path, cls, values):
    model = cls(config(classifier_pooling="attention", input_size=values, dropout=0.1, tie_dropout=True))
    data, labels = batch(pairs=cls is BOTH[1], values=values), torch.tensor([0, 2, 1])
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    model.train()(**data, labels=labels).loss.backward()  # running statistics
    model.eval().save_pretrained(tmp_path)
    for loader in (cls, AutoModelForSequenceClassification):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is cls
        state = loaded.state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(state[name], tensor), name
        assert any(name.endswith("num_batches_tracked") and tensor == 1 for name, tensor in state.items())
        assert torch.equal(loaded(**data).logits, model(**data).logits)
        assert loaded.config.to_dict() == {**model.config.to_dict(), "_name_or_path": loaded.config._name_or_path}
    backbone = transformers.AutoModel.from_pretrained(tmp_path)
    flat = {name: x.flatten(0, 1) for name, x in data.items()} if cls is BOTH[1] else data
    assert torch.equal(backbone(**flat).last_hidden_state, model.model(**flat).last_hidden_state)
    half = cls.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(**data).logits.dtype == torch.bfloat16
    expected = model(**data).logits
    assert torch.linalg.vector_norm(half(**data).logits - expected) < 0.1 * torch.linalg.vector_norm(expected)


def test_auto_classes_without_a_folder():
    assert type(AutoModelForSequenceClassification.from_config(config())) is LongConvForSequenceClassification
    named = config(architectures=["LongConvForSequencePairClassification"])
    assert type(AutoModelForSequenceClassification.from_config(named)) is LongConvForSequencePairClassification


def test_a_configuration_from_before_loads_as_it_was(tmp_path):
    """Of a language model with this configuration's defaults of then; the new fields are not in the file."""
    old = {"model_type": "longconv", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "mixers": "attention",
           "mixer_options": {"attention": {"num_heads": 2}}, "intermediate_size": 16, "activation": "swiglu",
           "initializer_range": 0.02, "classifier_pooling": "mean", "dropout": 0.0, "architectures": None}  # fmt: skip
    loaded = LongConvConfig(**old)
    assert (loaded.norm, loaded.norm_position, loaded.input_size, loaded.tie_dropout) == ("rms", "pre", None, False)
    names = set(LongConvForCausalLM(loaded).state_dict())
    block = ("mixer_norm.weight", "mixer.in_proj.weight", "mixer.out_proj.weight", "mlp_norm.weight", "mlp.up.weight",
             "mlp.down.weight")  # fmt: skip
    assert names == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"} | {
        f"model.layers.0.{name}" for name in block
    }


# Errors


@pytest.mark.parametrize("cls", [LongConvModel, *BOTH])
def test_wrong_inputs_are_named(cls):
    lead = (2, 2) if cls is BOTH[1] else (2,)
    ids, values = torch.ones(*lead, 5, dtype=torch.long), torch.randn(*lead, 5, 3)
    tokens, floats = cls(config()).eval(), cls(config(input_size=3)).eval()
    embeds = torch.randn(*lead, 5, 8)
    assert tokens(input_ids=ids)[0].isfinite().all()
    assert floats(input_values=values.double())[0].dtype == torch.float32
    assert floats(inputs_embeds=embeds)[0].isfinite().all()
    for model, given, error, message in (
        (tokens, {"input_values": values}, ValueError, "takes input_ids, not input_values: .* no input_size"),
        (
            floats,
            {"input_ids": ids},
            ValueError,
            r"takes input_values \(B, L, 3\), not input_ids: it has input_size = 3",
        ),
        (tokens, {}, ValueError, "exactly one of input_ids and inputs_embeds"),
        (floats, {}, ValueError, "exactly one of input_values and inputs_embeds"),
        (floats, {"input_values": values, "inputs_embeds": embeds}, ValueError, "exactly one of input_values"),
        (tokens, {"input_ids": ids.float()}, TypeError, "input_ids must be integers, got torch.float32"),
        (floats, {"input_values": values.long()}, TypeError, "input_values must be floats, got torch.int64"),
        (
            floats,
            {"input_values": values[..., :2]},
            ValueError,
            r"input_values must be \(B, L, 3\), got shape \(\d, 5, 2\)",
        ),
        (tokens, {"input_ids": ids[0, 0]}, ValueError, r"input_ids must be .*, got shape \("),
        (floats, {"input_values": values[0]}, ValueError, r"input_values must be .*, got shape \("),
        (tokens, {"input_ids": ids, "attention_mask": ids[..., 1:]}, ValueError, "attention_mask must be"),
    ):
        with pytest.raises(error, match=message):
            model(**given)


@pytest.mark.parametrize("how", POOLINGS)
def test_rows_without_a_real_position_are_named(how):
    ids, mask = torch.ones(3, 5, dtype=torch.long), torch.ones(3, 5, dtype=torch.long)
    mask[1] = 0
    model = LongConvForSequenceClassification(config(classifier_pooling=how)).eval()
    with pytest.raises(ValueError, match=r"attention_mask has no real position in row 1$"):
        model(ids, attention_mask=mask)
    pairs = LongConvForSequencePairClassification(config(classifier_pooling=how)).eval()
    with pytest.raises(ValueError, match=r"attention_mask has no real position in row 0, sequence 1$"):
        pairs(
            torch.ones(2, 2, 5, dtype=torch.long),
            attention_mask=torch.tensor([[1, 0], [1, 1]])[..., None].expand(2, 2, 5),
        )


def test_pairs_are_pairs():
    model = LongConvForSequencePairClassification(config()).eval()
    with pytest.raises(ValueError, match=r"input_ids must be pairs \(B, 2, L\), got shape \(4, 5\)"):
        model(torch.ones(4, 5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"attention_mask must be pairs \(B, 2, L\), got shape \(2, 5\)"):
        model(torch.ones(2, 2, 5, dtype=torch.long), attention_mask=torch.ones(2, 5))
    ids = torch.randint(1, 23, (3, 2, 5))
    states = model(ids, output_hidden_states=True).hidden_states
    assert [tuple(h.shape) for h in states] == [(3, 2, 5, 8)] * 3
    assert_close(states[-1][:, 1], model.model(ids[:, 1]).last_hidden_state.double(), torch.float32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "group"}, "norm must be one of rms, layer, scale, batch, got 'group'"),
        ({"norm_position": "both"}, "norm_position must be one of pre, post, got 'both'"),
        ({"classifier_pooling": "max"}, "classifier_pooling must be one of mean, last, attention, got 'max'"),
        ({"intermediate_size": -1}, "intermediate_size must be at least 0, or None, got -1"),
        ({"input_size": 0}, "input_size must be at least 1, or None for token ids, got 0"),
        ({"embedding_dropout": 1.0}, r"embedding_dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
        ({"initializer_range": -1.0}, "initializer_range must be at least 0, or None, got -1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_language_models_refuse_what_would_let_them_see_the_future():
    causal = {"mixers": "hyena", "mixer_options": None}
    with pytest.raises(ValueError, match=r"norm: .*'batch', whose statistics in training contain the tokens"):
        LongConvForCausalLM(config(**causal))
    with pytest.raises(ValueError, match="input_size: a language model takes token ids, so it must be None, got 1"):
        LongConvForCausalLM(config(**causal, norm="layer", input_size=1))
    LongConvForCausalLM(config(**causal, norm="layer"))
