"""compare(): KL, agreement and losses of two models, against their definitions."""

import importlib
import itertools
import math

import pytest
import torch
from numerics import assert_close

from longconv.distill import Agreement, Recorded, compare, distill
from longconv.models import LongConvConfig, LongConvForCausalLM
from longconv.tasks.lm import ByteTokenizer, LanguageModelMetrics, token_nll

V = 11


def table(seed: int, dtype=torch.float32):
    """A model whose logits depend on the token alone."""
    logits = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return lambda input_ids, attention_mask=None: logits.to(dtype)[input_ids]


def text(*sizes: tuple[int, int]) -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": torch.randint(V, size)} for size in sizes]


def test_numbers_are_those_of_the_definitions():
    teacher, student, batches = table(1, torch.float64), table(2, torch.float64), text((2, 5), (3, 7), (1, 1))
    token_bytes = torch.arange(V)
    found = compare(teacher, student, batches, token_bytes=token_bytes)
    kl, losses, same, n_bytes, tokens, error, norm = 0.0, [0.0, 0.0], 0, 0, 0, 0.0, 0.0
    for batch in batches:
        for row in batch["input_ids"]:
            for now, following in itertools.pairwise(row):
                z, w = teacher(now), student(now)
                p, q = z.exp() / z.exp().sum(), w.exp() / w.exp().sum()
                kl += float((p * (p / q).log()).sum())
                losses = [losses[0] - math.log(p[following]), losses[1] - math.log(q[following])]
                same += int(p.argmax() == q.argmax())
                error, norm = error + float((z - w).square().sum()), norm + float(z.square().sum())
                n_bytes, tokens = n_bytes + int(following), tokens + 1
    expected = Agreement(
        tokens, n_bytes, losses[0] / tokens, losses[1] / tokens, kl / tokens, same / tokens, math.sqrt(error / norm)
    )
    assert (found.tokens, found.bytes, tokens) == (expected.tokens, expected.bytes, 2 * 4 + 3 * 6)
    for name in ("teacher_loss", "student_loss", "kl", "top1", "logit_error", "bits_per_byte_lost"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-12), name
    assert found.bits_per_byte_lost == pytest.approx((losses[1] - losses[0]) / math.log(2) / n_bytes)
    assert found.to_dict()["student_bits_per_byte"] == pytest.approx(losses[1] / math.log(2) / n_bytes)


def test_bits_per_byte_are_the_tasks():
    tokenizer = ByteTokenizer()
    model = lambda input_ids: torch.sin(torch.arange(tokenizer.vocab_size) * (1.0 + input_ids[..., None]))  # noqa: E731
    labels = torch.tensor([[256, 65, 66, 67, -100], [256, 70, -100, 72, 256]])
    batch = {"input_ids": labels.clamp(min=0), "labels": labels}
    metrics = LanguageModelMetrics(tokenizer.token_bytes)
    metrics.update(token_nll(model(batch["input_ids"]), labels), labels)
    found = compare(model, model, [batch], token_bytes=tokenizer.token_bytes)
    assert found.tokens == 6
    assert found.bytes == 5  # the end of a document is predicted, and stands for no byte
    assert found.teacher_bits_per_byte == pytest.approx(metrics.compute()["bits_per_byte"], rel=1e-6)
    assert (found.kl, found.top1, found.logit_error, found.bits_per_byte_lost) == (0.0, 1.0, 0.0, 0.0)


def test_padding_and_unpredicted_positions_do_not_count():
    teacher, student = table(1), table(2)
    ids = torch.randint(V, (1, 6))
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=ids.dtype)], dim=1)
    mask = (torch.arange(9) < 6)[None].long()
    expected = compare(teacher, student, [{"input_ids": ids}])
    for batch in (
        {"input_ids": padded, "attention_mask": mask},
        {"input_ids": padded, "labels": padded.masked_fill(mask == 0, -100)},
    ):
        assert compare(teacher, student, [batch]) == expected
    # How the text is cut into batches does not weigh.
    batches = text((2, 5), (1, 5))
    one = {"input_ids": torch.cat([batch["input_ids"] for batch in batches])}
    for name, value in compare(teacher, student, batches).to_dict().items():
        other = compare(teacher, student, [one]).to_dict()[name]
        assert other == value or other == pytest.approx(value, rel=1e-12), name


def test_a_large_vocabulary_goes_through_in_parts(monkeypatch):
    whole = compare(table(1), table(2), batches := text((2, 9)))
    monkeypatch.setattr(importlib.import_module("longconv.distill.compare"), "_LOGITS_AT_ONCE", 3 * V)
    for name, value in compare(table(1), table(2), batches).to_dict().items():
        assert value is None or value == pytest.approx(getattr(whole, name), rel=1e-12)


def test_models_are_compared_in_eval_mode_and_left_as_they_were():
    options = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 40, "dropout": 0.5}
    model = LongConvForCausalLM(LongConvConfig(**options))
    student, _ = distill(model, tol=1e-5)
    batches = text((2, 40))
    model.train()
    found = compare(model, student, batches)
    assert model.training
    assert not student.training
    assert found.logit_error < 1e-4
    assert 0 <= found.kl < 1e-7
    assert found.top1 == 1.0
    recorded = Recorded(model, batches)
    assert model.training
    assert_close(recorded(batches[0]["input_ids"]), model.eval()(batches[0]["input_ids"]).logits)
    assert compare(recorded, student, batches) == found


def test_errors():
    with pytest.raises(ValueError, match="no token is predicted"):
        compare(table(1), table(2), text((3, 1)))
    with pytest.raises(ValueError, match=r"student: logits \(1, 4, 2\), but the teacher's are \(1, 4, 11\)"):
        compare(table(1), lambda input_ids: table(2)(input_ids)[..., :2], text((1, 4)))
    found = compare(table(1), table(2), text((1, 4)))
    assert "student_bits_per_byte" not in found.to_dict()
    with pytest.raises(ValueError, match="token_bytes"):
        _ = found.bits_per_byte_lost
    with pytest.raises(ValueError, match="not one of the tensors"):
        Recorded(table(1), text((1, 4)))(torch.zeros(1, 4, dtype=torch.long))
