"""Speech Commands and spoken words: which clips are in which split, and what a model is given of them."""

import pickle
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from numerics import assert_close
from scipy.signal import resample_poly
from sklearn.model_selection import train_test_split

from longconv import tasks
from longconv.tasks.audio import espeak, spoken_words
from longconv.tasks.audio.files import write
from longconv.tasks.audio.speech_commands import WORDS_10, WORDS_35, deal
from longconv.tasks.audio.standin import write_standin


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    write_standin("audio/sc35", root / "sc35", rows=(3, 2, 2))
    write_standin("audio/sc10", root / "sc10", rows=(16, 2, 2))
    return root


def task_of(name, root, **options):
    return tasks.get(f"audio/{name}", data_dir=root / name, cache_dir=root / "cache", **options)


def raw(path):
    """A clip as it is in its file, with zeros behind it."""
    samples, _ = soundfile.read(path, dtype="int16")
    return np.pad(samples, (0, 16_000 - len(samples)))


def test_sc35_is_dealt_by_the_lists(root):
    task = task_of("sc35", root)
    folder = root / "sc35"
    lists = {
        "validation": (folder / "validation_list.txt").read_text().split(),
        "test": (folder / "testing_list.txt").read_text().split(),
    }
    every = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*.wav"))
    lists["train"] = [name for name in every if name not in lists["validation"] + lists["test"]]
    assert {split: len(names) for split, names in lists.items()} == {"train": 105, "validation": 70, "test": 70}
    for split, names in lists.items():
        rows = task.splits()[split]
        expected = sorted((WORDS_35.index(name.split("/")[0]), raw(folder / name).tobytes()) for name in names)
        assert sorted((int(row["label"]), np.asarray(row["samples"]).tobytes()) for row in rows) == expected
    assert task.n_classes == len(WORDS_35) == len(set(WORDS_35)) == 35
    assert set(WORDS_10) < set(WORDS_35)


def test_sc10_has_whole_clips_dealt_by_scikit_learn(root):
    task, folder = task_of("sc10", root), root / "sc10"
    files = [path for word in WORDS_10 for path in sorted((folder / word).glob("*.wav"))]
    whole = [path for path in files if soundfile.info(path).frames == 16_000]
    assert 0 < len(whole) < len(files)
    labels = [WORDS_10.index(path.parent.name) for path in whole]
    train, rest, _, rest_labels = train_test_split(
        whole, labels, train_size=0.7, random_state=0, shuffle=True, stratify=labels
    )
    validation, test = train_test_split(rest, train_size=0.5, random_state=1, shuffle=True, stratify=rest_labels)
    for split, expected in (("train", train), ("validation", validation), ("test", test)):
        rows = task.splits()[split]
        assert [int(row["label"]) for row in rows] == [WORDS_10.index(path.parent.name) for path in expected]
        assert all(np.array_equal(row["samples"], raw(path)) for row, path in zip(rows, expected, strict=True))


def test_sc10_has_as_many_rows_as_published():
    counts = {split: len(rows) for split, rows in deal(np.arange(34_975) % 10).items()}
    assert counts == {"train": 24_482, "validation": 5_246, "test": 5_247}
    with pytest.raises(ValueError, match="2 clips of 16000 samples cannot be dealt 70/15/15"):
        deal(np.array([0, 1]))


@pytest.mark.parametrize("name", ["sc35", "sc10"])
def test_the_train_split_has_mean_0_and_deviation_1(name, root):
    task = task_of(name, root)
    rows = {split: list(task.splits()[split]) for split in ("train", "test")}
    samples = np.stack([row["samples"] for row in rows["train"]]).astype(np.float64) / 32768
    mean, deviation = samples.mean(), samples.std(ddof=1)
    for split in rows:
        batch = task.collate(rows[split])
        assert batch["input_values"].shape == (len(rows[split]), 16_000, 1)
        assert batch["input_values"].dtype == torch.float32
        assert batch["labels"].tolist() == [int(row["label"]) for row in rows[split]]
        x = np.stack([row["samples"] for row in rows[split]]).astype(np.float64) / 32768
        expected = torch.from_numpy((x - mean) / (deviation + 1e-5)).float()[..., None]
        assert_close(batch["input_values"], expected)
    assert_close(task.collate(rows["train"])["input_values"].std(), torch.ones(()) * deviation / (deviation + 1e-5))


def test_standardised_by_position_as_in_s4s_code(root):
    task = task_of("sc35", root, standardise="position")
    train, test = (list(task.splits()[split]) for split in ("train", "test"))
    x_train, x_test = (torch.from_numpy(np.stack([row["samples"] for row in rows])) / 32768 for rows in (train, test))
    expected = (x_test - x_train.double().mean(0)) / (x_train.double().std(0) + 1e-5)
    assert_close(task.collate(test)["input_values"][..., 0], expected.float())
    plain = task_of("sc35", root, standardise="none").collate(test)["input_values"][..., 0]
    assert torch.equal(plain, x_test.float())


def test_half_the_rate(root):
    full, half = task_of("sc10", root), task_of("sc10", root, sample_rate=8000)
    rows = list(full.splits()["test"])[:5]
    assert (full.length, half.length) == (16_000, 8_000)
    assert half.statistics == full.statistics
    x = full.collate(rows)["input_values"]
    assert torch.equal(half.collate(rows)["input_values"], x[:, ::2])
    low = task_of("sc10", root, sample_rate=8000, half_rate="resample").collate(rows)["input_values"]
    assert low.shape == (5, 8000, 1)
    # Another low-pass gives nearly the same; leaving samples out does not.
    expected = torch.from_numpy(resample_poly(x[..., 0].numpy(), 1, 2, axis=1)).float()
    assert torch.linalg.vector_norm(low[..., 0] - expected) < 0.02 * torch.linalg.vector_norm(expected)
    noise = [{"samples": np.random.default_rng(0).integers(-9000, 9000, 16_000), "label": 0}]
    loud, soft = (
        task_of("sc10", root, sample_rate=8000, half_rate=how).collate(noise)["input_values"].std()
        for how in ("drop", "resample")
    )
    assert soft < 0.75 * loud  # half of the power was above 4 kHz


def test_frames_of_samples(root):
    rows = list(task_of("sc10", root).splits()["test"])[:5]
    x = task_of("sc10", root).collate(rows)["input_values"]
    framed = task_of("sc10", root, frame=8)
    assert (framed.length, framed.input_size) == (2_000, 8)
    assert torch.equal(framed.collate(rows)["input_values"], x.view(5, 2_000, 8))
    assert framed.lengths("test").tolist() == [2_000] * len(framed.splits()["test"])
    half = task_of("sc10", root, frame=4, sample_rate=8000)
    assert torch.equal(half.collate(rows)["input_values"], x[:, ::2].reshape(5, 2_000, 4))


@pytest.mark.parametrize("name", ["sc35", "sc10"])
def test_it_is_a_classification_like_the_others(name, root):
    task = task_of(name, root)
    assert (task.name, task.input_size, task.vocab_size, task.is_pair) == (f"audio/{name}", 1, None, False)
    assert task.describe().splitlines()[0] == f"audio/{name}: {task.n_classes} classes, 16,000 steps of 1 channel"
    assert task.lengths("test").tolist() == [16_000] * len(task.splits()["test"])
    rows = task.splits()["test"].select(range(3))
    batch = task.collate(rows.__getitems__([0, 2]))
    other = pickle.loads(pickle.dumps(task)).collate(rows.__getitems__([0, 2]))
    assert torch.equal(batch["input_values"], other["input_values"])
    logits = torch.nn.functional.one_hot(batch["labels"], task.n_classes).float() * 20
    assert task.loss(logits, batch["labels"]) < 1e-6
    prediction = SimpleNamespace(predictions=logits.numpy(), label_ids=batch["labels"].numpy())
    assert task.compute_metrics(prediction) == {"accuracy": 1.0}


def test_what_is_missing_or_broken_is_named(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"audio/sc35 needs its data.*speech_commands_v0\.02\.tar\.gz"):
        tasks.get("audio/sc35", cache_dir=tmp_path).splits()
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder; fetch http"):
        tasks.get("audio/sc35", data_dir=tmp_path / "nowhere", cache_dir=tmp_path).splits()

    def broken(name, change):
        folder = tmp_path / f"broken-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(root / name, folder)
        change(folder)
        return tasks.get(f"audio/{name}", data_dir=folder, cache_dir=tmp_path / "cache")

    task = broken("sc35", lambda folder: shutil.rmtree(folder / "wow"))
    with pytest.raises(FileNotFoundError, match="has no wow; fetch"):
        task.splits()
    task = broken("sc35", lambda folder: (folder / "testing_list.txt").unlink())
    with pytest.raises(FileNotFoundError, match=r"has no testing_list\.txt; fetch"):
        task.splits()
    task = broken("sc35", lambda folder: (folder / "testing_list.txt").open("a").write("bed/gone.wav\n"))
    with pytest.raises(FileNotFoundError, match=r"1 clips of testing_list\.txt are not in .*: bed/gone\.wav"):
        task.splits()

    def in_both(folder):
        (folder / "testing_list.txt").open("a").write((folder / "validation_list.txt").read_text().split()[0])

    with pytest.raises(ValueError, match="1 clips are in both lists"):
        broken("sc35", in_both).splits()
    first = sorted((root / "sc10" / "go").glob("*.wav"))[0].name
    for samples, rate, said in (
        (np.zeros(16_000), 8_000, "8000 samples per second, expected 16000"),
        (np.zeros((16_000, 2)), 16_000, "2 channels, expected 1"),
    ):
        task = broken("sc10", lambda folder, s=samples, r=rate: write(folder / "go" / first, s, r))
        with pytest.raises(ValueError, match=f"go/{first} has {said}"):
            task.splits()
    first = sorted((root / "sc35" / "bed").glob("*.wav"))[0].name
    task = broken("sc35", lambda folder: write(folder / "bed" / first, np.zeros(16_001), 16_000))
    with pytest.raises(ValueError, match=f"bed/{first} has 16001 samples, clips have at most 16000"):
        task.splits()


def test_options_that_are_none():
    for option, said in (
        ({"sample_rate": 44_100}, "sample_rate must be 16000 or 8000, got 44100"),
        ({"half_rate": "average"}, 'half_rate must be "drop" or "resample"'),
        ({"frame": 3}, "frame must be a positive divisor of sample_rate, 16000, got 3"),
        ({"standardise": "clip"}, 'standardise must be "split", "position" or "none"'),
        ({"words": ["yes", "yes"]}, "words must be 2 to 255 different ones"),
        ({"words": ["yes", " "]}, "words must be texts"),
        ({"noise": [200.0]}, "noise must be ratios"),
        ({"sizes": (1, 2)}, "sizes must be three numbers"),
        ({"stretch": (1.2, 0.8)}, "stretch must be a lowest and a highest factor of 0.5 … 2"),
        ({"stretch": (1.0,)}, "stretch must be a lowest and a highest factor of 0.5 … 2"),
    ):
        with pytest.raises(ValueError, match=said):
            tasks.get("audio/spoken-words", **option)


@pytest.fixture
def said(monkeypatch):
    """A synthesiser that is not there; what it was asked to say."""
    asked = []

    def speak(text, *, accent, voice, words_per_minute, pitch):
        asked.append((text, accent, voice, words_per_minute, pitch))
        t = np.arange(int(22_050 * 0.4 * 150 / words_per_minute)) / 22_050
        tone = 0.3 * np.sin(2 * np.pi * (300 + 40 * len(text)) * t).astype(np.float32)
        return np.concatenate([np.zeros(500, np.float32), tone, np.zeros(4000, np.float32)]), 22_050

    monkeypatch.setattr(espeak, "speak", speak)
    monkeypatch.setattr(espeak, "version", lambda: "a stand-in")
    monkeypatch.setattr(espeak, "require_voices", lambda accents, voices: None)
    return asked


def test_spoken_words_hold_voices_out(said, tmp_path):
    task = tasks.get("audio/spoken-words", cache_dir=tmp_path, sizes=(60, 24, 36), workers=2)
    splits = task.splits()
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 60, "validation": 24, "test": 36}
    assert task.n_classes == 12
    for rows in splits.values():
        assert np.bincount([int(row["label"]) for row in rows]).tolist() == [len(rows) // 12] * 12
        assert {np.asarray(row["samples"]).shape for row in rows} == {(16_000,)}
    voices = [{call[2] for call in said[:60]}, {call[2] for call in said[60:84]}, {call[2] for call in said[84:]}]
    for used, split in zip(voices, splits, strict=True):
        assert used <= set(espeak.VOICES[split])
        assert len(used) > 4
    assert len(set.union(*voices)) == sum(map(len, voices))
    assert len({call[1] for call in said}) == len(espeak.ACCENTS)
    assert len({call[3] for call in said}) > 30
    assert {call[0] for call in said} == set(task.words)


def test_no_voice_is_in_two_splits():
    everyone = [voice for voices in espeak.VOICES.values() for voice in voices]
    assert len(everyone) == len(set(everyone))
    # Nor relatives, such as steph and steph2. Those called by a letter and a number are not related.
    families = {
        split: {voice.rstrip("0123456789") for voice in voices if len(voice) > 2}
        for split, voices in espeak.VOICES.items()
    }
    assert not families["train"] & families["validation"]
    assert not (families["train"] | families["validation"]) & families["test"]


def test_spoken_words_depend_on_the_seed_alone(said, tmp_path):
    def clips(**options):
        task = tasks.get("audio/spoken-words", cache_dir=tmp_path / "none", **options)
        return [task.clip("test", i) for i in (0, 7)]

    first = clips()
    assert all(np.array_equal(a, b) for a, b in zip(first, clips(sizes=(9, 9, 9), workers=1), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, clips(seed=1), strict=True))


def test_clips_of_training_are_stretched(said):
    """Of the tone that the stand-in says, the period changes, and how long it lasts; those to be tested on stay."""
    plain, fast = (tasks.get("audio/spoken-words", noise=(None,), stretch=(s, s)) for s in (1.0, 1.6))
    drawn = tasks.get("audio/spoken-words", noise=(None,))
    assert drawn.stretch == (0.85, 1.2)
    lengths = []
    for i in range(6):
        a, b, c = (np.flatnonzero(np.abs(task.clip("train", i)) > 30) for task in (plain, fast, drawn))
        assert np.ptp(a) / np.ptp(b) == pytest.approx(1.6, rel=0.02)
        lengths.append(np.ptp(a) / np.ptp(c))
        spectra = [np.abs(np.fft.rfft(task.clip("train", i).astype(float))).argmax() for task in (plain, fast)]
        assert spectra[1] / spectra[0] == pytest.approx(1.6, rel=0.02)
        assert np.array_equal(plain.clip("test", i), fast.clip("test", i))
        assert np.array_equal(plain.clip("validation", i), drawn.clip("validation", i))
    assert 0.83 < min(lengths) < max(lengths) < 1.22
    assert max(lengths) - min(lengths) > 0.05


def test_noise_is_as_loud_as_asked(said, tmp_path):
    clean = tasks.get("audio/spoken-words", noise=(None,))
    for ratio in (30.0, 10.0, 0.0):
        noisy = tasks.get("audio/spoken-words", noise=(ratio,))
        for i in range(4):
            a, b = (task.clip("train", i).astype(np.float64) for task in (clean, noisy))
            word = np.flatnonzero(a)
            scale = (a @ b) / (a @ a)  # clips with loud noise are softer
            power = np.square(a[word[0] : word[-1] + 1]).mean()
            found = 10 * np.log10(power / np.square(b / scale - a).mean())
            assert found == pytest.approx(ratio, abs=0.6)
            assert np.abs(b).max() <= 32767


def test_a_word_that_takes_long_is_said_faster(monkeypatch, said):
    original = espeak.speak

    def slow(text, **options):
        samples, rate = original(text, **options)
        return np.concatenate([samples[:-4000]] * (4 if options["words_per_minute"] < 200 else 1)), rate

    monkeypatch.setattr(espeak, "speak", slow)
    assert len(spoken_words._say("go", "en-us", "f1", 120, 50)) <= 16_000
    assert [call[3] for call in said] == [120, 150, 188, 234]
    monkeypatch.setattr(espeak, "speak", lambda text, **options: (np.ones(40_000, np.float32), 22_050))
    with pytest.raises(ValueError, match="'go' takes more than a second at 450 words per minute"):
        spoken_words._say("go", "en-us", "f1", 120, 50)


@pytest.fixture
def no_cache():
    for function in (espeak.program, espeak.version, espeak.installed):
        function.cache_clear()
    yield
    for function in (espeak.program, espeak.version, espeak.installed):
        function.cache_clear()


def test_without_the_synthesiser(monkeypatch, no_cache, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"espeak-ng is not installed, .*apt-get install espeak-ng"):
        tasks.get("audio/spoken-words", cache_dir=tmp_path).splits()


@pytest.mark.skipif(shutil.which(espeak.PROGRAM) is None, reason="espeak-ng is not installed")
def test_the_synthesiser_itself(tmp_path):
    for voices in espeak.VOICES.values():
        espeak.require_voices(espeak.ACCENTS, voices)
    with pytest.raises(ValueError, match="has no voices nobody"):
        espeak.require_voices(espeak.ACCENTS, ("f1", "nobody"))
    with pytest.raises(ValueError, match="has no accents en-moon"):
        espeak.require_voices(("en-moon",), ("f1",))
    slow, fast = (
        espeak.speak("backward", accent="en-us", voice="f2", words_per_minute=rate, pitch=50)[0] for rate in (100, 250)
    )
    assert len(slow) > 1.3 * len(fast)
    assert np.abs(slow).max() > 0.05
    with pytest.raises(ValueError, match="words_per_minute must be 80 … 450"):
        espeak.speak("go", accent="en-us", voice="f2", words_per_minute=10, pitch=50)
    task = tasks.get("audio/spoken-words", cache_dir=tmp_path, sizes=(12, 12, 12))
    batch = task.collate(list(task.splits()["test"]))
    assert torch.isfinite(batch["input_values"]).all()
    assert batch["input_values"].std(1).min() > 0
    assert task.describe().splitlines()[1].startswith("from eSpeak NG text-to-speech")
