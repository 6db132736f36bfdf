"""A needle in a haystack: does a model find one sentence in a long text (Kamradt 2023)?

"The number of amber is 48213." is put into text that has nothing to do with it, at a depth of 0 % (the beginning) to
100 % (the end), and behind the text stands "The number of amber is". Two things are measured of what comes next:
whether the model would say just this number, token by token the likeliest, and the rank that its likelihood gives the
number among others of as many digits. The rank tells more of a small model, and is (n + 1) / 2 of n for one that
knows nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longconv.tasks.extras import require
from longconv.tasks.lm.metrics import evaluating, target_nll
from longconv.tasks.lm.tokenizers import Tokenizer

# (context, continuations), all of them ids -> for each continuation its negative log-likelihood in nats, and whether
# each of its tokens is the likeliest.
Score = Callable[[list[int], list[list[int]]], list[tuple[float, bool]]]

DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)
KEYS = (
    *("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "ivory", "jasper", "karma", "lemon"),
    *("maple", "north", "ocean", "pearl", "quartz", "raven", "sable", "tulip", "umbra", "violet", "willow", "zephyr"),
)
NEEDLE, QUESTION, ANSWER = "\nThe number of {key} is {value}.\n", "\nThe number of {key} is", " {value}"
_DIGITS = (10_000, 100_000)


@dataclass(frozen=True)
class Case:
    """One question: `context`, and the candidates to go on with, the right one first; all of them ids."""

    context: list[int]
    candidates: list[list[int]]


@dataclass(frozen=True)
class NeedleResult:
    """What was found, by context and depth.

    Attributes:
        contexts: tokens, the answer included.
        depths: where the needle was, in percent of the text before it.
        exact: (contexts, depths), the fraction of the trials in which the model would say the number.
        rank: (contexts, depths), the mean rank of the number among the candidates: 1 is best; equals share a rank.
        candidates: how many there are.
        trials: how many in each cell.
    """

    contexts: tuple[int, ...]
    depths: tuple[float, ...]
    exact: np.ndarray
    rank: np.ndarray
    candidates: int
    trials: int

    def table(self) -> str:
        """Depth by context: per cent of exact answers, and the mean rank."""
        lines = [
            f"needle in a haystack, {self.trials} trials a cell: exact answers, mean rank among {self.candidates} "
            f"({(self.candidates + 1) / 2:g} by chance)",
            f"{'depth':>7}" + "".join(f"{f'{context:,} tokens':>18}" for context in self.contexts),
        ]
        for d, depth in enumerate(self.depths):
            cells = (f"{self.exact[c, d]:>9.0%} {self.rank[c, d]:>8.2f}" for c in range(len(self.contexts)))
            lines.append(f"{depth:>6g}%" + "".join(cells))
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("contexts", "depths", "candidates", "trials")
        return {name: getattr(self, name) for name in names} | {
            "exact": self.exact.tolist(),
            "rank": self.rank.tolist(),
        }


def find_needles(
    score: Score,
    tokenizer: Tokenizer,
    text: np.ndarray,
    contexts: Sequence[int],
    *,
    depths: Sequence[float] = DEPTHS,
    trials: int = 5,
    candidates: int = 10,
    seed: int = 0,
) -> NeedleResult:
    """Hide needles at all `depths` of all `contexts`, and ask for them.

    The cases of a cell depend on the tokenizer, the text, its context and depth and the seed, on no other cell.

    Args:
        score: the model, see `Score` and `scorer`.
        tokenizer: the model's.
        text: (n,) ids of real text, longer than the contexts; pieces of it are the haystacks, as one document each.
        contexts: tokens in all, from the one that begins a document to the answer.
        depths: in percent.
        trials: cases in a cell.
        candidates: numbers that the answer is compared with, itself included.
        seed: of the keys, numbers and pieces of text.

    Raises:
        ValueError: an argument is out of range, a context has no room for the sentences or is longer than the text, or
            the tokenizer does not tell numbers apart.
    """
    if not contexts or not depths or not all(0 <= depth <= 100 for depth in depths):
        raise ValueError(f"contexts and depths must not be empty, depths in 0..100 percent; got {contexts}, {depths}")
    if trials < 1 or candidates < 2 or candidates > _DIGITS[1] - _DIGITS[0]:
        raise ValueError(f"trials must be at least 1 and candidates at least 2, got {trials} and {candidates}")
    text = text[text != tokenizer.eos_id]
    exact, rank = np.zeros((2, len(contexts), len(depths)))
    cells = [(c, d, trial) for c in range(len(contexts)) for d in range(len(depths)) for trial in range(trials)]
    for c, d, trial in require("tqdm").tqdm(cells, "needle", disable=None, leave=False):
        key = [seed, contexts[c], round(1000 * depths[d]), trial]
        case = make_case(tokenizer, text, contexts[c], depths[d], np.random.default_rng(key), candidates)
        scores = score(case.context, case.candidates)
        right, said = scores[0]
        others = [nats for nats, _ in scores[1:]]
        exact[c, d] += said
        rank[c, d] += 1 + sum(nats < right for nats in others) + 0.5 * sum(nats == right for nats in others)
    return NeedleResult(tuple(contexts), tuple(depths), exact / trials, rank / trials, candidates, trials)


def make_case(
    tokenizer: Tokenizer, text: np.ndarray, context: int, depth: float, rng: np.random.Generator, candidates: int
) -> Case:
    """A needle at `depth` percent of a random piece of `text`, `context` tokens in all; see `find_needles`.

    `text` has no end-of-text token.
    """
    key = KEYS[rng.integers(len(KEYS))]
    values = _DIGITS[0] + rng.choice(_DIGITS[1] - _DIGITS[0], candidates, replace=False)
    sentence = tokenizer.encode(NEEDLE.format(key=key, value=values[0]))
    question, answers = _split_behind(tokenizer, QUESTION.format(key=key), [ANSWER.format(value=v) for v in values])
    if len({tuple(answer) for answer in answers}) < candidates:
        raise ValueError("the tokenizer does not tell numbers apart, so a needle cannot be asked for")
    sentences = 1 + len(sentence) + len(question) + max(map(len, answers))
    room = context - sentences
    if room < 0:
        raise ValueError(
            f"a context of {context} tokens has no room for the needle and the question, {sentences} tokens"
        )
    if room > len(text):
        raise ValueError(f"a context of {context} tokens needs {room} tokens of text, and there are only {len(text)}")
    start = int(rng.integers(len(text) - room + 1))
    hay, cut = text[start : start + room].tolist(), round(room * depth / 100)
    return Case([tokenizer.bos_id, *hay[:cut], *sentence, *hay[cut:], *question], answers)


def _split_behind(tokenizer: Tokenizer, question: str, answers: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Ids of the question, and of each answer behind it; tokens that reach across are the answers'."""
    alone = tokenizer.encode(question)
    whole = [tokenizer.encode(question + answer) for answer in answers]
    shared = min(_shared(alone, ids) for ids in whole)
    return alone[:shared], [ids[shared:] for ids in whole]


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids both begin with."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def scorer(model: Callable[..., Any], device: torch.device | str = "cpu") -> Score:
    """`Score` of a causal model, by a pass over every continuation with the whole context before it.

    ``model(input_ids=…)`` with integers (B, L) returns logits (B, L, V) or an object that has them as ``.logits``.
    """

    def score(context: list[int], continuations: list[list[int]]) -> list[tuple[float, bool]]:
        longest = max(map(len, continuations))
        # Padding behind a continuation is later than all that counts.
        rows = [[*context, *ids, *[ids[-1]] * (longest - len(ids))] for ids in continuations]
        ids = torch.tensor(rows, device=device)
        with evaluating(model):
            output = model(input_ids=ids[:, :-1])
        logits = output if isinstance(output, Tensor) else output.logits
        return read_off(logits[:, -longest:], continuations)

    return score


def read_off(logits: Tensor, continuations: Sequence[Sequence[int]]) -> list[tuple[float, bool]]:
    """The answer of a `Score`: logits (B, L, V) at position t predict token t of the B continuations."""
    results = []
    for row, ids in zip(logits, continuations, strict=True):
        targets = torch.tensor(ids, device=row.device)
        nll = target_nll(row[None, : len(ids)], targets[None])
        likeliest = bool((row[: len(ids)].argmax(-1) == targets).all())
        results.append((nll.cpu().double().sum().item(), likeliest))
    return results
