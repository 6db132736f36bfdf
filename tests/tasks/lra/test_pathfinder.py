"""Pathfinder: the images say what their labels say, and nothing else gives the labels away."""

import functools
import zlib
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy import spatial, stats

from longconv.tasks.lra import paddles as tables
from longconv.tasks.lra.pathfinder import Scenes, generate
from longconv.tasks.lra.plans import Plans
from longconv.tasks.lra.random import Stream
from longconv.tasks.lra.settings import DIFFICULTIES, pathfinder_config

P_VALUE = 1e-4  # of a chance failure, were the seeds not fixed
CASES = [(32, "easy", 300), (32, "intermediate", 300), (32, "hard", 300), (64, "easy", 100), (64, "hard", 60)]
CASES += [(128, "hard", 24), (256, "hard", 24), (512, "easy", 8)]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request):
    size, difficulty, n = request.param
    config = pathfinder_config(size, difficulty)
    return config, generate(n, seed=7, config=config)


@pytest.fixture(scope="module")
def hard():
    return generate(4000, seed=1)


def target(scenes: Scenes, contour: int) -> np.ndarray:
    """Lines (N, contour_length, 4) of a target contour."""
    mask = scenes.contours == contour
    return scenes.lines[mask].reshape(len(scenes), -1, 4)


def points(lines: np.ndarray, n: int = 9) -> np.ndarray:
    """Points on lines (..., 4): (..., n, 2)."""
    share = np.linspace(0, 1, n)[:, None]
    return lines[..., None, :2] * (1 - share) + lines[..., None, 2:] * share


def test_shapes_and_types(case):
    config, scenes = case
    n, paddles = len(scenes), 2 * config.contour_length + config.n_distractors * config.distractor_length
    assert scenes.images.shape == (n, config.size, config.size)
    assert scenes.images.dtype == np.uint8
    assert scenes.lines.shape == (n, paddles, 4)
    assert scenes.contours.shape == (n, paddles)
    assert scenes.markers.shape == (n, 2, 2)
    assert set(np.unique(scenes.labels)) == {0, 1}


def test_every_contour_has_its_paddles(case):
    config, scenes = case
    for row in scenes.contours:
        counts = np.bincount(row[row >= 0], minlength=2)
        assert counts[:2].tolist() == [config.contour_length] * 2
        assert set(counts[2:]) <= {0, config.distractor_length}
    # What the published generator places: all but few, except in 32 hard, where the image is full.
    placed = np.array([len(set(row[row > 1])) for row in scenes.contours])
    full = config.size == 32 and config.contour_length == 14
    assert placed.mean() > (0.85 if full else 0.9) * config.n_distractors


def test_published_settings():
    for size, paddles in ((32, 20), (64, 22), (128, 35), (256, 30)):
        for difficulty, contour_length in DIFFICULTIES.items():
            config = pathfinder_config(size, difficulty)
            assert config.contour_length == contour_length
            assert config.distractor_length == contour_length // 3
            assert config.n_distractors == paddles // (contour_length // 3)


def test_paddles_of_a_contour_follow_each_other(case):
    """Gaps of twice the margin, strokes of the given length, turns below 90 degrees (60 where continuity says so)."""
    config, scenes = case
    rounding = 2 * np.sqrt(2)  # a pivot is up to a pixel down and right of its place, an end up and left
    for contour in range(2):
        lines = target(scenes, contour)
        steps = lines[..., 2:] - lines[..., :2]
        assert np.allclose(np.hypot(*np.moveaxis(steps, -1, 0)), config.paddle_length, atol=1e-4)
        gaps = np.hypot(*np.moveaxis(lines[:, 1:, :2] - lines[:, :-1, 2:], -1, 0))
        assert gaps.max() <= 2 * max(config.margins) + rounding
        cosine = (steps[:, 1:] * steps[:, :-1]).sum(-1) / config.paddle_length**2
        assert cosine.min() > np.cos(np.pi / 2 / config.continuity) - 1e-4


def test_contours_begin_together_in_the_middle(case):
    config, scenes = case
    starts = np.stack([target(scenes, contour)[:, 0, :2] for contour in range(2)])
    away = np.hypot(*(starts[1] - starts[0]).T)
    assert np.abs(away - config.seed_distance).max() <= 1
    low = 2 * config.seed_distance
    assert starts[0].min() >= low
    assert starts[0].max() < config.size - low


def test_markers_are_where_the_label_says(case):
    _, scenes = case
    ends = np.stack([target(scenes, contour) for contour in range(2)])
    row = np.arange(len(scenes))
    at_start = np.abs(ends[:, :, 0, :2] - scenes.markers[:, 0]).max(-1) < 1e-3
    at_end = np.abs(ends[:, :, -1, 2:] - scenes.markers[:, 1]).max(-1) < 1e-3
    assert (at_start.sum(0) == 1).all()
    assert (at_end.sum(0) == 1).all()
    assert np.array_equal(at_start.argmax(0) == at_end.argmax(0), scenes.labels[row] == 1)


def trace(lines: np.ndarray, start: np.ndarray, margins: tuple[int, ...]) -> np.ndarray:
    """Follow paddles from the one that begins at `start`, with nothing but where they lie; the far end of each.

    One follows another if both point at one place between them, `margin` from each: the nearest such is taken.
    """
    left = list(range(len(lines)))
    ends = np.concatenate([lines, lines[:, [2, 3, 0, 1]]])  # a paddle has no direction
    current = int(np.hypot(*(ends[:, :2] - start).T).argmin())
    passed = []
    while True:
        passed.append(ends[current, 2:])
        left.remove(current % len(lines))
        direction = ends[current, 2:] - ends[current, :2]
        direction /= np.hypot(*direction)
        best, following = 4.0, -1  # pixels, roundings of a first paddle included
        for other in (*left, *(i + len(lines) for i in left)):
            turned = ends[other, 2:] - ends[other, :2]
            turned /= np.hypot(*turned)
            for margin in margins:
                between = ends[current, 2:] + margin * direction
                error = np.hypot(*(ends[other, :2] - margin * turned - between))
                if error < best and turned @ direction > 0:
                    best, following = error, other
        if following < 0:
            return np.array(passed)
        current = following


def test_tracing_finds_the_label(case):
    """From one marker along the dashes to the other, or not; in 32 px others are sometimes nearer than the next."""
    config, scenes = case
    right = 0
    for i in range(n := min(len(scenes), 60)):
        lines = scenes.lines[i][scenes.contours[i] >= 0].astype(float)
        lines = lines[np.random.default_rng(i).permutation(len(lines))]
        found = trace(lines, scenes.markers[i, 0], config.margins)
        right += (np.hypot(*(found - scenes.markers[i, 1]).T).min() < 1e-3) == scenes.labels[i]
    assert right >= (0.7 if config.size == 32 else 0.95) * n


def test_strokes_do_not_cross(case):
    config, scenes = case
    for i in range(min(len(scenes), 40)):
        there = scenes.contours[i] >= 0
        contours, dots = scenes.contours[i][there], points(scenes.lines[i][there].astype(float))
        distances = np.hypot(*np.moveaxis(dots[:, None, :, None] - dots[None, :, None], -1, 0)).min((-1, -2))
        order = np.arange(len(contours))
        neighbours = (contours[:, None] == contours) & (np.abs(order[:, None] - order) <= 1)
        assert distances[~neighbours].min() > 0.7 * config.paddle_thickness  # the points of a cross are nearer


def test_images_show_the_strokes_and_nothing_else(case):
    config, scenes = case
    grid = np.stack(np.mgrid[: config.size, : config.size], -1)
    for i in range(min(len(scenes), 3)):
        image = scenes.images[i]
        dots = points(scenes.lines[i][scenes.contours[i] >= 0].astype(float))
        far = spatial.KDTree(dots.reshape(-1, 2)).query(grid)[0]
        for marker in scenes.markers[i]:
            distance = np.hypot(*np.moveaxis(grid - marker, -1, 0))
            assert (image[distance <= config.marker_radius - 0.5] == 255).all()
            far = np.minimum(far, distance - config.marker_radius)
        assert not image[far > config.paddle_thickness / 2 + 1].any()
        middle = np.round(dots[:, 4]).astype(int)
        assert image[middle[:, 0], middle[:, 1]].min() > 0.15 * 255 * config.contrast * min(config.paddle_thickness, 1)


def test_targets_are_no_brighter_than_distractors(hard):
    middle = np.round(hard.lines.reshape(*hard.lines.shape[:2], 2, 2).mean(2)).astype(int)
    brightness = hard.images[np.arange(len(hard))[:, None], middle[..., 0], middle[..., 1]].astype(float)
    away = np.abs(middle[:, :, None] - hard.markers[:, None]).max(-1).min(-1) > 3  # discs are brighter, of course
    targets, distractors = (
        brightness[away & mask] for mask in ((hard.contours >= 0) & (hard.contours < 2), hard.contours > 1)
    )
    assert abs(targets.mean() - distractors.mean()) < 0.01 * 255
    assert targets.max() == distractors.max()


def test_labels_are_drawn_by_lot(hard):
    assert stats.binomtest(int(hard.labels.sum()), len(hard)).pvalue > P_VALUE
    # Not alternating, and not the same in every block.
    repeats = int((hard.labels[1:] == hard.labels[:-1]).sum())
    assert stats.binomtest(repeats, len(hard) - 1).pvalue > P_VALUE
    for number in ((hard.contours > 1).sum(1), hard.images.sum((1, 2)), (hard.images > 0).sum((1, 2))):
        assert stats.ks_2samp(number[hard.labels == 1], number[hard.labels == 0]).pvalue > P_VALUE


def linear_probe(features: np.ndarray, labels: np.ndarray) -> tuple[int, int]:
    """How many of the second half a logistic regression on the first half gets right, and how many there are."""
    n = len(features) // 2
    x = (features - features[:n].mean(0)) / (features[:n].std(0) + 1e-9)
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    weights, ridge = np.zeros(x.shape[1]), 0.01 * n
    for _ in range(6):  # Newton's method
        p = 1 / (1 + np.exp(-x[:n] @ weights))
        hessian = (x[:n] * (p * (1 - p))[:, None]).T @ x[:n] + ridge * np.eye(x.shape[1])
        weights += np.linalg.solve(hessian, x[:n].T @ (labels[:n] - p) - ridge * weights)
    return int(((x[n:] @ weights > 0) == labels[n:]).sum()), len(x) - n


def features_of(scenes: Scenes, kind: str) -> np.ndarray:
    images = scenes.images.astype(float)
    n, size = images.shape[:2]
    if kind == "statistics":
        levels = np.stack([(images > level).mean((1, 2)) for level in (0, 64, 128, 192, 254)], 1)
        return np.c_[images.mean((1, 2)), images.std((1, 2)), levels]
    if kind == "pixels":
        return images.reshape(n, 8, size // 8, 8, size // 8).mean((2, 4)).reshape(n, -1)
    return scenes.markers.reshape(n, 4).astype(float)


@pytest.mark.parametrize("kind", ["statistics", "pixels", "markers"])
def test_a_linear_probe_stays_at_chance(hard, kind):
    right, n = linear_probe(features_of(hard, kind), hard.labels)
    assert stats.binomtest(right, n).pvalue > 1e-3


def test_the_probe_finds_a_shortcut_if_there_is_one(hard):
    """With images of label 1 brighter by two of 255 levels."""
    images = np.minimum(hard.images + 2 * hard.labels[:, None, None], 255).astype(np.uint8)
    right, n = linear_probe(features_of(replace(hard, images=images), "statistics"), hard.labels)
    assert stats.binomtest(right, n).pvalue < 1e-6


def test_where_paddles_go_has_the_published_probabilities():
    """Nothing in the way: cos² of continuity times the turn, over the pixels of the circle."""
    config = pathfinder_config(64)
    paddles = tables.make_paddles(5, 1.0, 1, 1.8)
    plans = Plans(config, paddles)
    n = 20_000
    angle = np.deg2rad(37)
    seed = np.full(n, 180 + 37)
    pivot = plans.pixel(np.full((n, 2), 32))
    taken = plans.blank(1)
    following, found = plans._extend(Stream(3), taken, np.zeros(n, int), pivot, seed, tables.TAKEN)
    assert found.all()
    y, x = paddles.ends.T
    turn = np.abs((np.arctan2(y, x) - angle + np.pi) % (2 * np.pi) - np.pi)
    expected = np.where(1.8 * turn < np.pi / 2, np.cos(1.8 * turn), 0) ** 2
    counts = np.bincount(following - tables.N_SEEDS, minlength=len(expected))
    possible = expected > 1e-3
    assert counts[~possible].sum() <= 0.001 * n
    share = expected[possible] / expected[possible].sum()
    assert stats.chisquare(counts[possible], share * counts[possible].sum()).pvalue > P_VALUE


def test_the_same_for_any_number_of_workers_and_any_n():
    config = pathfinder_config(128, "easy")  # blocks of 16
    expected = generate(40, seed=5, config=config, workers=1)
    for n, workers in ((40, 2), (40, 5), (17, None)):
        actual = generate(n, seed=5, config=config, workers=workers)
        for name in Scenes.__annotations__:
            assert np.array_equal(getattr(actual, name), getattr(expected, name)[:n]), (name, n, workers)


@pytest.mark.parametrize(("size", "checksum"), [(32, 2847459751), (128, 2109038498)])
def test_what_a_seed_gives_never_changes(size, checksum):
    """Files made from a seed are cited by it: another version of this code or of numpy must give the same ones."""
    scenes = generate(16, seed=0, config=pathfinder_config(size, "easy"))
    assert zlib.crc32(scenes.images.tobytes() + scenes.labels.tobytes()) == checksum


@pytest.mark.parametrize("size", [32, 64, 128, 256])
def test_the_last_bits_of_a_processor_do_not_matter(size, monkeypatch):
    config = pathfinder_config(size, "easy")
    given = config.paddle_length, config.paddle_thickness, config.margins[-1], config.continuity
    expected = asdict(tables.make_paddles.__wrapped__(*given))
    disc = tables.disc(config.marker_radius)
    signs = np.random.default_rng(0)

    def rough(exact, *x):
        y = exact(*x)
        return y * (1 + 3e-16 * signs.choice([-1, 1], y.shape))

    for name in ("sin", "cos", "arctan2", "hypot"):
        monkeypatch.setattr(np, name, functools.partial(rough, getattr(np, name)))
    actual = asdict(tables.make_paddles.__wrapped__(*given))
    for name in expected:
        assert np.array_equal(actual[name], expected[name]), name
    for one, other in zip(tables.disc(config.marker_radius), disc, strict=True):
        assert np.array_equal(one, other)


def test_another_seed_gives_other_images():
    ours, others = (generate(50, seed=seed).images for seed in (0, 1))
    assert not (ours[:, None] == others[None]).all((-1, -2)).any()


def test_none():
    assert generate(0).images.shape == (0, 32, 32)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: pathfinder_config(48), "size must be one of 32, 64, 128, 256, 512, got 48"),
        (lambda: pathfinder_config(32, "harder"), "difficulty must be one of easy, intermediate, hard, got 'harder'"),
        (lambda: generate(-1), "n must"),
        (lambda: generate(1, -1), "seed"),
        (lambda: generate(1, workers=0), "workers"),
        (lambda: generate(1, config=replace(pathfinder_config(), padding=14)), "no room for two contours"),
        (lambda: replace(pathfinder_config(), seed_distance=8), "seed_distance"),
        (lambda: replace(pathfinder_config(), contour_length=2), "contour_length"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()
