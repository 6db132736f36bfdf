import math

import numpy as np
import pytest
import torch
from numerics import assert_close

from longconv.tasks.lm import ByteTokenizer, LanguageModelMetrics, token_nll
from longconv.tasks.lm.metrics import evaluate, mean_loss


def _brute_force(logits, labels):
    """nats of every counted label, one at a time in float64."""
    out = torch.zeros(labels.shape[0], labels.shape[1] - 1, dtype=torch.float64)
    for b in range(labels.shape[0]):
        for t in range(1, labels.shape[1]):
            if labels[b, t] != -100:
                p = logits[b, t - 1].double().softmax(0)[labels[b, t]]
                out[b, t - 1] = -math.log(p)
    return out


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_token_nll_against_brute_force(dtype):
    logits = torch.randn(3, 7, 11, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 11, (3, 7))
    labels[0, 4:] = labels[:, 0] = -100
    nll = token_nll(logits, labels)
    assert nll.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Half-precision logits are exact numbers: only the arithmetic is in question, and it is float32.
    assert_close(nll, _brute_force(logits, labels))
    assert_close(mean_loss(logits, labels), nll.double().sum() / (labels[:, 1:] != -100).sum(), torch.float32)


def test_loss_is_that_of_causal_models_in_transformers():
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, labels = torch.randn(2, 9, 13), torch.randint(0, 13, (2, 9))
    labels[:, 0] = labels[1, 5:] = -100
    assert_close(mean_loss(logits, labels), ForCausalLMLoss(logits, labels, vocab_size=13))


def test_gradient_reaches_only_what_predicts():
    logits = torch.randn(1, 4, 5, requires_grad=True)
    mean_loss(logits, torch.tensor([[-100, 1, -100, 2]])).backward()
    assert logits.grad.abs().sum(-1).ne(0).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(("logits", "labels"), [((2, 4, 5), (2, 3)), ((2, 4), (2, 4)), ((1, 4, 5), (2, 4))])
def test_shapes_that_do_not_fit(logits, labels):
    with pytest.raises(ValueError, match=r"expected logits \(B, L, V\) and labels \(B, L\), not"):
        token_nll(torch.zeros(logits), torch.zeros(labels, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected nll \(B, L - 1\)"):
        LanguageModelMetrics(np.ones(5)).update(torch.zeros(2, 4), torch.zeros(2, 4))


def test_bits_per_byte_and_perplexity_by_hand():
    # "é" and the end of the document, each with probability 1/4 per token: 3 tokens, 6 bits, 2 bytes.
    labels = torch.tensor([[-100, 0xC3, 0xA9, 256, -100]])
    metrics = LanguageModelMetrics(ByteTokenizer().token_bytes)
    metrics.update(torch.tensor([[math.log(4), math.log(4), math.log(4), 9.0]]), labels)
    assert metrics.compute() == pytest.approx({"loss": math.log(4), "perplexity": 4.0, "bits_per_byte": 3.0})


def test_sums_do_not_depend_on_batches():
    logits, labels = torch.randn(10, 6, 258), torch.randint(0, 258, (10, 6))
    labels[3, 2:] = -100
    results = []
    for sizes in ([10], [1] * 10, [7, 3]):
        metrics = LanguageModelMetrics(ByteTokenizer().token_bytes)
        for x, y in zip(logits.split(sizes), labels.split(sizes), strict=True):
            metrics.update(token_nll(x, y), y)
        results.append(metrics.compute())
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    assert results[0] == pytest.approx(results[2], rel=1e-6)


def test_nothing_seen_and_diverged():
    metrics = LanguageModelMetrics(ByteTokenizer().token_bytes)
    with pytest.raises(ValueError, match="no text among the 0 tokens"):
        metrics.compute()
    metrics.update(torch.tensor([[1e6]]), torch.tensor([[-100, 97]]))
    assert metrics.compute()["perplexity"] == math.inf


def test_evaluate_restores_training_mode_and_gradients():
    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask=None):
            assert not self.training
            assert not torch.is_grad_enabled()
            return torch.zeros(*input_ids.shape, 258)

    batch = {"input_ids": torch.zeros(1, 4, dtype=torch.int64), "labels": torch.tensor([[-100, 1, 2, 3]])}
    for training in (True, False):
        model = Model().train(training)
        result = evaluate(model, [batch], ByteTokenizer().token_bytes)
        assert model.training is training
        assert result["bits_per_byte"] == pytest.approx(math.log2(258))
