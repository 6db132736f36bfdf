"""Classifiers in training: transformers' Trainer, bfloat16, gradient checkpointing, torch.compile."""

import copy

import pytest
import torch
import transformers
from numerics import assert_close

from longconv.models import (
    LongConvConfig,
    LongConvForSequenceClassification,
    LongConvForSequencePairClassification,
)

transformers.utils.logging.disable_progress_bar()
SINGLE, PAIR = LongConvForSequenceClassification, LongConvForSequencePairClassification


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """These tensors are tiny: on a busy machine, threads waiting for each other make the module ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(**options):
    """As published on the Long Range Arena, but for the size."""
    defaults = {
        "vocab_size": 9,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "mixers": "lightconv",
        "mixer_options": {"lightconv": {"kernel_size": 9, "num_heads": 2, "bidirectional": True}},
        "max_position_embeddings": 32,
        "norm": "batch",
        "norm_position": "post",
        "intermediate_size": 0,
        "initializer_range": None,
        "num_labels": 2,
    }
    return LongConvConfig(**{**defaults, **options})


def marked_rows(pairs, values, rows=64):
    """Whether the marker is at the beginning of a row (of both, for pairs), or not: learnt in a few steps."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, 2, 12) if pairs else (rows, 12)
    ids = torch.randint(2, 9, shape, generator=generator)
    marked = torch.randint(2, shape[:-1], generator=generator).bool()
    ids[marked] = ids[marked] * 0 + 1
    labels = (marked.all(1) if pairs else marked).long()
    lengths = torch.randint(6, 13, shape[:-1], generator=generator)
    mask = torch.arange(12) < lengths[..., None]
    inputs = (
        {"input_ids": ids * mask}
        if values is None
        else {"input_values": (ids == 1).float()[..., None] * mask[..., None]}
    )
    return [
        {**{name: x[row] for name, x in inputs.items()}, "attention_mask": mask[row].long(), "labels": labels[row]}
        for row in range(rows)
    ]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("cls", "values", "bf16"), [(SINGLE, None, False), (SINGLE, 1, True), (PAIR, None, True), (PAIR, 1, False)]
)
def test_the_trainer_of_transformers_trains_it(tmp_path, cls, values, bf16):
    torch.manual_seed(0)
    model = cls(config(input_size=values, dropout=0.1))
    data = marked_rows(cls is PAIR, values)
    arguments = transformers.TrainingArguments(
        tmp_path,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        max_steps=30,
        learning_rate=1e-2,
        bf16=bf16,
        use_cpu=True,
        gradient_checkpointing=bf16,
        report_to="none",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        include_num_input_tokens_seen="all",
    )
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=data,
        eval_dataset=data,
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
    )
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert trainer.evaluate()["eval_accuracy"] > 0.9
    assert model.model.layers[0].mixer_norm.num_batches_tracked == 30
    assert trainer.state.num_input_tokens_seen == 30 * 16 * 12 * (1 + (cls is PAIR))


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize("cls", [SINGLE, PAIR])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_gradient_checkpointing_gives_the_same_gradients(cls, norm):
    model = cls(config(norm=norm, dropout=0.2, tie_dropout=True, classifier_pooling="attention")).train()
    rows = marked_rows(cls is PAIR, None, rows=3)
    data = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    grads = []
    for checkpoint in (False, True):
        if checkpoint:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(1)
        model(**data).loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.equal(grads[1][name], grad), name


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")
@pytest.mark.parametrize(("cls", "checkpoint"), [(PAIR, False), (SINGLE, True)])
def test_compiled(cls, checkpoint):
    """One graph; in parts with checkpointing, where something has to happen only once."""
    torch._dynamo.reset()
    eager = cls(config(num_hidden_layers=1, classifier_pooling="attention")).train()
    if checkpoint:
        eager.gradient_checkpointing_enable()
    compiled = copy.deepcopy(eager)
    run = torch.compile(compiled, fullgraph=not checkpoint, backend="aot_eager")
    rows = marked_rows(cls is PAIR, None, rows=3)
    data = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    for _ in range(2):
        losses = [call(**data).loss for call in (eager, run)]
        assert_close(losses[1], losses[0].double())
        for loss in losses:
            loss.backward()
    for (name, one), other in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        if not name.endswith("out_proj.bias"):  # zero but for rounding: the norm behind it takes the mean off
            assert_close(other.grad, one.grad.double(), torch.float32, name)
    for (name, one), other in zip(eager.named_buffers(), compiled.named_buffers(), strict=True):
        assert other[0] == name
        assert_close(other[1].float(), one.double(), torch.float32, name)
