"""Sampling for many slots at once: transformers' supports and probabilities, published random numbers, seeds."""

import pytest
import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from longconv.models.sampling import SamplingOptions, candidates, choose, uniform

V = 23


def pick(logits, draws, temperature=1.0, top_k=0, top_p=1.0, seed=0, width=None):
    """`draws` tokens of one distribution (V,), as so many slots that have each drawn one token more than the last."""
    options = SamplingOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return choose(
        logits.expand(draws, V),
        torch.full((draws,), temperature),
        torch.full((draws,), top_k),
        torch.full((draws,), top_p),
        torch.full((draws,), seed),
        torch.arange(draws),
        candidates([options], V) if width is None else width,
    )


def expected_probabilities(logits, temperature, top_k, top_p):
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    return warpers(None, logits[None])[0].double().softmax(-1)


@pytest.mark.parametrize("top_k", [0, 1, 2, 5, 16, 100])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.01])
def test_the_distribution_is_that_of_transformers(top_k, top_p):
    logits, draws = 2 * torch.randn(V), 4000
    probabilities = expected_probabilities(logits, 0.7, top_k, top_p)
    counts = pick(logits, draws, 0.7, top_k, top_p).bincount(minlength=V)
    assert not counts[probabilities == 0].any()
    likely = probabilities * draws >= 5
    # Pearson's statistic of n classes has mean n - 1 and variance 2 (n - 1): six deviations above.
    expected = probabilities[likely] * draws
    statistic = ((counts[likely] - expected) ** 2 / expected).sum()
    classes = int(likely.sum())
    assert statistic <= classes - 1 + 6 * (2 * classes) ** 0.5
    assert counts.sum() == draws


def test_splitmix64():
    # The first outputs for seed 1234567, as published with the generator (and on Rosetta Code).
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    numbers = uniform(torch.full((5,), 1234567), torch.arange(5))
    assert numbers.dtype == torch.float64
    assert numbers.tolist() == [(n >> 11) / 2**53 for n in known]


def test_uniform_numbers_of_neighbouring_seeds():
    numbers = uniform(torch.arange(400)[:, None], torch.arange(300))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(numbers.unique()) == numbers.numel()
    assert (numbers.mean(0) - 0.5).abs().max() < 6 * (12 * 400) ** -0.5
    correlation = torch.corrcoef(numbers).fill_diagonal_(0)
    assert correlation.abs().max() < 6 * 300**-0.5


def test_greedy_and_sampling_slots_do_not_see_each_other():
    logits = torch.randn(4, V)
    temperature = torch.tensor([0.0, 1.0, 0.0, 2.0])
    others = (torch.tensor([3, 0, 0, 4]), torch.tensor([0.5, 1.0, 1.0, 0.9]), torch.arange(4), torch.arange(4))
    together = choose(logits, temperature, *others, V)
    alone = [choose(*(t[i : i + 1] for t in (logits, temperature, *others)), V) for i in range(4)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together[[0, 2]], logits.argmax(-1)[[0, 2]])
    # Fewer candidates than the vocabulary, as many as the largest top_k needs: the same.
    row = torch.randn(V)
    assert torch.equal(pick(row, 200, 1.5, 5, 0.9), pick(row, 200, 1.5, 5, 0.9, width=V))
    # A slot full of NaN gives some token, and the others theirs.
    broken = logits.clone()
    broken[1] = float("nan")
    after = choose(broken, temperature, *others, V)
    assert torch.equal(after[[0, 2, 3]], together[[0, 2, 3]])
    assert 0 <= int(after[1]) < V


def test_candidates():
    greedy, five, eight, all_ = (
        SamplingOptions(top_k=3),
        SamplingOptions(temperature=1, top_k=5),
        SamplingOptions(temperature=1, top_k=8),
        SamplingOptions(temperature=1),
    )
    assert candidates([greedy], 100) == 0
    assert candidates([greedy, five, eight], 100) == 8
    assert candidates([five], 6) == 6
    assert candidates([five, all_], 100) == 100
    assert candidates([SamplingOptions(temperature=1, top_k=1)], 100) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1 or None, got 0"),
        ({"temperature": -0.1}, "temperature must be 0 or positive, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be 0 or positive, got nan"),
        ({"top_k": -1}, "top_k must be 0 or positive, got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.5}, r"top_p must be in \(0, 1\], got 1.5"),
        ({"seed": -1}, "seed must be in"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingOptions(**options)
