"""Everything that runs a model, on every form of block: streams, generation, the engine, distillation, export."""

import itertools

import pytest
import torch
import transformers
from numerics import assert_close

from longconv.distill import distill
from longconv.export import to_onnx
from longconv.models import (
    DecodeEngine,
    LongConvConfig,
    LongConvForCausalLM,
    LongConvForSequenceClassification,
    LongConvForSequencePairClassification,
    LongConvModel,
)

transformers.utils.logging.disable_progress_bar()
FORMS = {
    f"{norm}-{position}-{'mlp' if mlp is None else 'bare'}": {
        "norm": norm,
        "norm_position": position,
        "intermediate_size": mlp,
    }
    for norm, position, mlp in itertools.product(("rms", "layer", "batch"), ("pre", "post"), (None, 0))
}
V, D = 23, 8
MIXERS = {
    "s4d": {"filter": {"name": "s4d", "state_size": 4}},
    "hyena": {"filter": {"name": "modal", "order": 3}},
    "multires": {"depth": 4},
}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(**options):
    defaults = {
        "vocab_size": V,
        "hidden_size": D,
        "num_hidden_layers": 2,
        "mixers": "s4d hyena",
        "mixer_options": MIXERS,
        "max_position_embeddings": 64,
        "initializer_range": 0.4,
        "tie_word_embeddings": False,
    }
    return LongConvConfig(**{**defaults, **options})


def build(cls, **options):
    """In eval mode, with norms and running statistics away from where they start."""
    torch.manual_seed(1)
    model = cls(config(**options))
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "norm" in name and tensor.is_floating_point():
                tensor += 0.3 * torch.rand_like(tensor)
    return model.eval()


@pytest.mark.parametrize("form", FORMS)
def test_chunks_and_steps_equal_the_whole(form):
    """The backbone, on tokens and on continuous inputs; left-padded rows too."""
    for values in (None, 3):
        model = build(LongConvModel, mixers="s4d hyena multires", num_hidden_layers=3, input_size=values, **FORMS[form])
        name, x = (
            ("input_ids", torch.randint(V, (2, 17))) if values is None else ("input_values", torch.randn(2, 17, 3))
        )
        mask = torch.ones(2, 17, dtype=torch.long)
        mask[1, :4] = 0
        whole = model(**{name: x}, attention_mask=mask).last_hidden_state
        for sizes in ((17,), (7, 10), (6, *[1] * 11)):
            cache, outputs = None, []
            ends = list(itertools.accumulate(sizes))
            for size, end in zip(sizes, ends, strict=True):
                piece = {name: x[:, end - size : end]}
                out = model(**piece, attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                outputs.append(out.last_hidden_state)
            y = torch.cat(outputs, 1)
            assert_close(y[mask.bool()], whole[mask.bool()].double(), torch.float32, f"chunks {sizes}")


LM_FORMS = [form for form in FORMS if "batch" not in form]


@pytest.mark.parametrize("form", LM_FORMS)
def test_generation_engine_and_distillation(form, tmp_path):
    model, ids = build(LongConvForCausalLM, **FORMS[form]), torch.randint(V, (1, 9))
    expected = ids
    for _ in range(8):
        expected = torch.cat([expected, model(expected).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False), expected)
    engine = DecodeEngine(model, 2)
    request = engine.join(ids)
    for _ in range(8):
        engine.step()
    assert request.tokens[:8] == expected[0, 9:].tolist()
    student, _ = distill(model, tol=1e-9)
    assert student.config.norm_position == model.config.norm_position
    assert_close(student(expected).logits, model(expected).logits.double(), torch.float32)
    student.save_pretrained(tmp_path)
    assert torch.equal(LongConvForCausalLM.from_pretrained(tmp_path)(ids).logits, student(ids).logits)


@pytest.mark.parametrize("form", ["layer-post-bare", "rms-post-mlp"])
def test_packed_sequences_and_receptive_field(form):
    options = {"mixers": "multires", "num_hidden_layers": 3, **FORMS[form]}
    model = build(LongConvForCausalLM, **options)
    assert model.receptive_field == 1 + 3 * 15
    ids, ends = torch.randint(V, (1, 30)), torch.tensor([0, 12, 30])
    alone = torch.cat([model(piece).logits for piece in ids.split([12, 18], 1)], 1)
    assert_close(model(ids, cu_seqlens=ends).logits, alone.double(), torch.float32)


def test_onnx_of_classifiers():
    """As published on the Long Range Arena: batch norm behind every block, and attention pooling."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = {**FORMS["batch-post-bare"], "mixers": "multires", "classifier_pooling": "attention", "num_labels": 3}
    single = build(LongConvForSequenceClassification, input_size=2, **options)
    pair = build(LongConvForSequencePairClassification, **options)
    for model, lead, axis in ((single, (2,), 1), (pair, (2, 2), 2)):
        axes = {0: "batch", axis: "length"}

        def inputs(*shape, model=model):
            mask = (torch.arange(shape[-1]) < 1 + torch.randint(shape[-1], shape[:-1])[..., None]).long()
            if model is single:
                return {"input_values": torch.randn(*shape, 2), "attention_mask": mask}
            return {"input_ids": torch.randint(V, shape), "attention_mask": mask}

        example = inputs(*lead, 11)
        program = to_onnx(model, example, max_length=64, axes=dict.fromkeys(example, axes))
        session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
        for B, L in ((1, 1), (3, 37)):
            given = inputs(B, *lead[1:], L)
            (logits,) = session.run(None, {name: x.numpy() for name, x in given.items()})
            assert_close(torch.from_numpy(logits), model(**given).logits.double(), torch.float32)
