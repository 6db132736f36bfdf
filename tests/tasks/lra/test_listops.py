"""ListOps against the definition: the published generator's steps one by one, in Python's recursion."""

import random
import zlib
from statistics import median

import numpy as np
import pytest
from scipy import stats

from longconv.tasks.lra import listops
from longconv.tasks.lra.listops import OPERATORS, VOCABULARY, ListOpsConfig, generate

SMALL = ListOpsConfig(max_depth=6, max_args=5, min_length=20, max_length=120)
P_VALUE = 1e-4  # of a chance failure, were the seeds not fixed


def tree(draw: random.Random, depth: int, config: ListOpsConfig) -> list | int:
    """A node at `depth`: a digit, or an operator and its arguments."""
    if depth == config.max_depth or draw.random() >= 0.25:
        return draw.randrange(10)
    arguments = [tree(draw, depth + 1, config) for _ in range(draw.randint(2, config.max_args))]
    return [draw.choice(OPERATORS), *arguments]


def length_of(node: list | int) -> int:
    return 1 if isinstance(node, int) else 2 + sum(map(length_of, node[1:]))


def words(node: list | int) -> list[str]:
    return [str(node)] if isinstance(node, int) else [node[0], *(w for a in node[1:] for w in words(a)), "]"]


def value_of(node: list | int) -> int:
    if isinstance(node, int):
        return node
    arguments = [value_of(argument) for argument in node[1:]]
    operations = {"[MIN": min, "[MAX": max, "[MED": lambda a: int(median(a)), "[SM": lambda a: sum(a) % 10}
    return operations[node[0]](arguments)


def published(n: int, seed: int, config: ListOpsConfig) -> list[list]:
    draw, kept = random.Random(seed), {}
    while len(kept) < n:
        node = tree(draw, 1, config)
        if config.min_length < length_of(node) < config.max_length:
            kept[" ".join(words(node))] = node
    return list(kept.values())


def parse(tokens: np.ndarray) -> list | int:
    """Tokens to a tree; fails unless they are one whole expression."""
    stack: list[list] = [[]]
    for token in tokens:
        word = VOCABULARY[token]
        if word in OPERATORS:
            stack.append([word])
        elif word == "]":
            closed = stack.pop()
            assert len(closed) > 2, "an operator has two arguments or more"
            stack[-1].append(closed)
        else:
            assert word.isdigit(), word
            stack[-1].append(int(word))
    assert len(stack) == 1
    assert len(stack[0]) == 1
    return stack[0][0]


def summary(nodes: list[list]) -> dict[str, list]:
    """What is compared: one number for each tree or each node."""
    found: dict[str, list] = {
        "length": [],
        "depth": [],
        "args": [],
        "operator": [],
        "digit": [],
        "root": [],
        "share": [],
    }

    def visit(node: list | int) -> int:
        if isinstance(node, int):
            found["digit"].append(node)
            return 1
        found["operator"].append(OPERATORS.index(node[0]))
        found["args"].append(len(node) - 1)
        return 1 + max(map(visit, node[1:]))

    for node in nodes:
        before = len(found["operator"])
        found["depth"].append(visit(node))
        found["length"].append(length_of(node))
        found["share"].append((len(found["operator"]) - before) / length_of(node))
        found["root"].append(OPERATORS.index(node[0]))
    found["label"] = [value_of(node) for node in nodes]
    return found


def same_distribution(ours: list, theirs: list) -> float:
    """p value of a chi-squared test that two samples of integers have one distribution."""
    table = np.stack([np.bincount(ours, minlength=80), np.bincount(theirs, minlength=80)])
    return stats.chi2_contingency(table[:, table.sum(axis=0) >= 20]).pvalue


@pytest.mark.parametrize(("config", "n"), [(SMALL, 2000), (ListOpsConfig(), 200)], ids=["small", "long"])
def test_the_distribution_is_the_published_one(config, n):
    expressions = generate(3 * n, seed=1, config=config)
    ours = summary([parse(expressions[i][0]) for i in range(len(expressions))])
    theirs = summary(published(n, 2, config))
    for name in ("length", "share"):
        assert stats.ks_2samp(ours[name], theirs[name]).pvalue > P_VALUE, name
    # Only what belongs to trees is independent enough for the test; nodes of one tree share its fate.
    for name in ("depth", "root", "label"):
        assert same_distribution(ours[name], theirs[name]) > P_VALUE, name
    for name in ("args", "operator", "digit"):
        ours_mean, theirs_mean = (np.bincount(x[name], minlength=16) / len(x[name]) for x in (ours, theirs))
        assert np.abs(ours_mean - theirs_mean).max() < 0.01, name


def test_another_distribution_is_told_apart():
    """The tests above have the power to fail: a tree of another depth, and labels of another rule."""
    theirs = summary(published(1000, 2, SMALL))
    deeper = summary(published(1000, 3, ListOpsConfig(max_depth=7, max_args=5, min_length=20, max_length=120)))
    assert same_distribution(deeper["depth"], theirs["depth"]) < P_VALUE
    assert stats.ks_2samp(deeper["length"], theirs["length"]).pvalue < P_VALUE


@pytest.mark.parametrize("config", [SMALL, ListOpsConfig()], ids=["small", "long"])
def test_labels_are_what_an_independent_evaluation_gives(config):
    expressions = generate(200, seed=3, config=config)
    for i in range(len(expressions)):
        tokens, label = expressions[i]
        node = parse(tokens)
        assert config.min_length < len(tokens) < config.max_length
        assert len(tokens) == length_of(node)
        assert label == value_of(node)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("[MED 1 2 ]", 1),
        ("[MED 9 8 7 6 ]", 7),
        ("[MED 3 9 1 ]", 3),
        ("[SM 9 9 9 ]", 7),
        ("[MIN 4 [MAX 2 9 ] 5 ]", 4),
        ("[MAX 2 9 [MIN 4 7 ] 0 ]", 9),
        ("[MAX 2 9 [MIN 4 7 ] 0 [SM 1 2 3 4 5 6 7 8 9 9 ] ]", 9),
    ],
)
def test_operators(expression, value):
    """The vectorised evaluation on expressions that can be evaluated in one's head."""
    node = parse(np.array([VOCABULARY.index(word) for word in expression.split()]))
    assert value_of(node) == value
    arguments = np.array([value_of(argument) for argument in node[1:]], np.uint8)
    kind = np.array([OPERATORS.index(node[0])], np.uint8)
    assert listops._evaluate(kind, arguments, np.array([0]), np.array([len(arguments)])).tolist() == [value]


def test_the_same_for_any_number_of_workers_and_any_n():
    expected = generate(700, seed=5, config=SMALL, workers=1)
    for n, workers in ((700, 2), (700, 5), (701, None), (150, 3)):
        actual = generate(n, seed=5, config=SMALL, workers=workers)
        assert len(actual) == n
        shared = min(n, 700)
        assert np.array_equal(actual.labels[:shared], expected.labels[:shared])
        assert np.array_equal(actual.offsets[: shared + 1], expected.offsets[: shared + 1])
        end = expected.offsets[shared]
        assert np.array_equal(actual.tokens[:end], expected.tokens[:end])


def test_what_a_seed_gives_never_changes():
    """Files made from a seed are cited by it: another version of this code or of numpy must give the same ones."""
    first = generate(300, seed=0)
    assert zlib.crc32(first.tokens.tobytes() + first.labels.tobytes()) == 677715675


def test_another_seed_gives_other_expressions():
    ours, others = (generate(100, seed=seed, config=SMALL) for seed in (0, 1))
    assert not {ours[i][0].tobytes() for i in range(100)} & {others[i][0].tobytes() for i in range(100)}


def test_no_expression_twice():
    # Few trees are that short: without the check most would be there several times.
    few = ListOpsConfig(max_depth=2, max_args=2, min_length=1, max_length=5)
    expressions = generate(400, config=few)  # 4 operators, 100 pairs of digits
    assert len({expressions[i][0].tobytes() for i in range(400)}) == 400
    with pytest.raises(ValueError, match="found 400 of 401 trees"):
        generate(401, config=few)


def test_what_comes_out():
    expressions = generate(3, config=SMALL)
    assert (expressions.tokens.dtype, expressions.offsets.dtype, expressions.labels.dtype) == (
        np.uint8, np.int64, np.uint8,
    )  # fmt: skip
    assert expressions.offsets[0] == 0
    assert expressions.offsets[-1] == len(expressions.tokens)
    assert np.array_equal(expressions[-1][0], expressions[2][0])
    with pytest.raises(IndexError):
        expressions[3]
    assert len(generate(0).tokens) == 0
    assert len(VOCABULARY) == 18
    assert VOCABULARY[listops.PAD] == "<pad>"
    assert VOCABULARY[listops.EOS] == "<eos>"


@pytest.mark.parametrize(
    "options",
    [{"max_depth": 1}, {"max_args": 1}, {"min_length": 0}, {"min_length": 10, "max_length": 11}, {"max_length": 3}],
)
def test_settings_that_make_no_sense(options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        ListOpsConfig(**{"min_length": 1, **options})


@pytest.mark.parametrize(("arguments", "match"), [((-1,), "n must"), ((1, -1), "seed"), ((1, 0.5), "seed")])
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        generate(*arguments)
    with pytest.raises(ValueError, match="workers"):
        generate(1, workers=0)


def test_lengths_that_hardly_occur():
    with pytest.raises(ValueError, match="found 0 of 1 trees"):
        generate(1, config=ListOpsConfig(max_depth=2, max_args=2, min_length=50, max_length=60))
