"""The benchmark of decoding: contestants, their states and memory, the gate, a run. Nothing here asserts a speed."""

import copy
import csv
import math

import pytest
import torch
from numerics import assert_close

from longconv.experiments import decoding
from longconv.experiments.benchmarks import BENCHMARKS, decode, decode_measure, decode_report, harness
from longconv.experiments.benchmarks.decode_contestants import (
    ATTENTION,
    CACHED,
    CONTESTANTS,
    DISTILLED,
    GPT2,
    GPT2_STATIC,
    ONLINE,
    SIZES,
    build,
)
from longconv.experiments.benchmarks.decode_states import bytes_of, rare_steps, shapes_of, synthetic_taps
from longconv.experiments.benchmarks.report import read_rows
from longconv.functional import OnlineConv

CPU = torch.device("cpu")
TINY = SIZES["tiny"]
MODES, SPARE = 5, 3


@pytest.fixture(scope="module")
def decoders():
    torch.manual_seed(0)
    limit = decode_measure.GATE_LIMIT
    return {d.name: d for d in build(TINY, CONTESTANTS, MODES, limit, limit, CPU)}


# --- Contestants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTESTANTS)
def test_the_gate_lets_everyone_through(decoders, name):
    decode_measure.check(decoders[name], TINY.vocabulary, CPU)


def wrong_readout(decoder):  # the state is left as it was
    decoder.step = lambda ids, state, step=decoder.step: step(ids, copy.deepcopy(state))


def wrong_position(decoder):  # a token of the cache is lost
    decoder.prefill = lambda ids, spare, prefill=decoder.prefill: prefill(ids[:, 1:], spare)


def wrong_shape(decoder):
    decoder.fill = lambda batch, context, spare, fill=decoder.fill: fill(batch, context - 1, spare)


@pytest.mark.parametrize("harm", [wrong_readout, wrong_position, wrong_shape])
@pytest.mark.parametrize("name", CONTESTANTS)
def test_the_gate_refuses_what_is_wrong(decoders, name, harm):
    if harm is wrong_shape and name in (DISTILLED, GPT2_STATIC):
        pytest.skip("its state has one size at all contexts")
    decoder = copy.copy(decoders[name])
    harm(decoder)
    with pytest.raises(harness.DisagreementError, match=name):
        decode_measure.check(decoder, TINY.vocabulary, CPU)


@torch.inference_mode()
def test_undistilled_ones_compute_the_same(decoders):
    """They share their weights; with the same filters, a history and an online convolution agree token by token."""
    online, cached = copy.deepcopy(decoders[ONLINE]), copy.deepcopy(decoders[CACHED])
    for one, other in zip(online.model.model.layers, cached.model.model.layers, strict=True):
        other.mixer.long_filters[0].filter = one.mixer.long_filters[0]
    ids = torch.randint(0, TINY.vocabulary, (2, 90))
    states = [decoder.prefill(ids[:, :20], 70) for decoder in (online, cached)]
    for t in range(20, 90):
        a, b = (d.step(ids[:, t], state) for d, state in zip((online, cached), states, strict=True))
        assert_close(b, a.double())


def test_weights_are_shared_and_as_many(decoders):
    hyena = [decoders[name].model.state_dict(keep_vars=True) for name in (DISTILLED, ONLINE, CACHED)]
    common = [key for key in hyena[0] if "long_filters" not in key]
    assert len(common) > 10
    assert all(hyena[0][key] is other[key] for other in hyena[1:] for key in common)
    # Blocks of 12 D^2 weights, and an embedding tied to the head: what is left are biases, norms, filters, positions.
    for name, decoder in decoders.items():
        D = TINY.width
        large = [p for p in decoder.model.parameters() if p.dim() == 2 and min(p.shape) >= D]
        positions = decode_measure.GATE_LIMIT * D if name in (GPT2, GPT2_STATIC) else 0
        filters = sum(p.numel() for p in large if p.shape in ((D, 64), (64, 64)) and name in (ONLINE, CACHED))
        expected = TINY.layers * 12 * D * D + TINY.vocabulary * D + positions
        assert sum(p.numel() for p in large) - filters == expected, name


def test_half_precision_keeps_its_filters_and_states(decoders):
    torch.manual_seed(0)
    for decoder in build(TINY, (DISTILLED, CACHED), MODES, 64, 64, CPU):
        decoder.to(torch.bfloat16, torch.complex64)
        (mixer, *_) = (block.mixer for block in decoder.model.model.layers)
        assert mixer.in_proj.weight.dtype == torch.bfloat16
        assert next(mixer.long_filters.parameters()).dtype == torch.float32
        with torch.inference_mode():
            state = decoder.prefill(torch.zeros(1, 8, dtype=torch.long), 4)
            logits = decoder.step(torch.zeros(1, dtype=torch.long), state)
        kept = torch.complex64 if decoder.name == DISTILLED else torch.bfloat16
        assert {dtype for dtype, _ in shapes_of(state)} == {torch.bfloat16, kept}
        assert logits.dtype == torch.bfloat16


# --- States -----------------------------------------------------------------------------------------------------------

T = 128
SHORT = 4 * 3 * TINY.width * 2  # two past inputs of three projections, float32


@pytest.mark.parametrize(
    ("name", "state", "shared"),
    [
        (DISTILLED, SHORT + 16 * TINY.width * MODES, TINY.width * (2 * 16 * MODES + 8)),
        # 2 T inputs, of which T are yet to come; filters of 2 T taps, and the first 64 of them once more.
        (ONLINE, SHORT + 4 * TINY.width * 2 * T, 4 * TINY.width * (2 * T + 64)),
        (CACHED, SHORT + 4 * TINY.width * (T + SPARE), 4 * TINY.width * (T + SPARE)),
        (ATTENTION, 2 * 4 * TINY.width * (T + SPARE), 0),
        (GPT2, 2 * 4 * TINY.width * T, 0),
        (GPT2_STATIC, 2 * 4 * TINY.width * (T + SPARE), 8),
    ],
)
@torch.inference_mode()
def test_memory_is_what_the_formula_says(decoders, name, state, shared):
    for batch in (1, 3):
        filled = decoders[name].fill(batch, T, SPARE)
        assert bytes_of(filled, batch) == (batch * TINY.layers * state, TINY.layers * shared)


@torch.inference_mode()
def test_filled_states_decode_and_are_finite(decoders):
    for decoder in decoders.values():
        state = decoder.fill(2, T, SPARE)
        token = decode_measure.Token(decoder, state, torch.tensor([1, 2]))
        for _ in range(SPARE):
            token()
        assert token.logits.isfinite().all()
        assert token.logits.shape == (2, TINY.vocabulary)
        assert token.launches == "eager"
        assert torch.equal(token.ids, token.logits.argmax(-1))


@pytest.mark.parametrize(
    ("name", "history"), [(CACHED, lambda state: state.long[0].state), (ATTENTION, lambda state: state.keys)]
)
@torch.inference_mode()
def test_appending_within_the_spare_room_copies_nothing(decoders, name, history):
    state = decoders[name].fill(2, T, SPARE)
    where = [history(layer).view.data_ptr() for layer in state]
    for _ in range(SPARE):
        decoders[name].step(torch.tensor([1, 2]), state)
    assert [history(layer).view.data_ptr() for layer in state] == where
    assert history(state[0]).length == T + SPARE


@torch.inference_mode()
def test_rare_steps_are_those_of_a_stream(monkeypatch):
    """The shares count what an OnlineConv really does while T tokens are made after T others."""
    storage = type(OnlineConv(torch.ones(1, 1), torch.ones(1, 1, 1))._storage)
    done = []
    monkeypatch.setattr(storage, "_pass", lambda self, f=storage._pass: (done.append("pass"), f(self))[1])
    monkeypatch.setattr(
        storage, "_tile", lambda self, i, room, f=storage._tile: (done.append(i & -i), f(self, i, room))[1]
    )
    context = 512
    decoder = build(TINY, (ONLINE,), MODES, 64, 64, CPU)[0]
    decoder.allow_any_length()
    states = decoder.fill(1, context, SPARE)
    stream = states[0].long[0].past
    for _ in range(context):
        _, stream = stream.step(torch.ones(1, TINY.width))
    counted = {kind: done.count(kind) for kind in dict.fromkeys(done)}
    assert counted == {"pass": 1, 64: 4, 128: 2, 256: 1}
    states = decoder.fill(1, context, SPARE)
    shares = {}
    for share in rare_steps(states, context):
        done.clear()
        decoder.step(torch.tensor([1]), states)
        assert len(done) == TINY.layers
        assert len(set(done)) == 1
        shares[done[0]] = share * context
    assert shares == counted


def test_taps_have_unit_norm_and_no_denormal_numbers():
    k = synthetic_taps(50, 1000, CPU)
    assert 0.9 < k.square().sum(1).sqrt().mean() < 1.1
    assert (k.abs() > torch.finfo(torch.float32).tiny).all()


# --- Memory and batches -----------------------------------------------------------------------------------------------


def test_most_sequences():
    memory = decode_measure.Memory(state=1e6, shared=5e6, each=2e6)
    assert memory.most(5e6) == 0
    assert memory.most(11.9e6) == 3
    assert memory.most(1e15) == decode_measure.MOST_SEQUENCES


def test_measured_memory_is_at_least_the_state(decoders):
    for name in (DISTILLED, ATTENTION):
        memory = decode_measure.measure_memory(decoders[name], T, TINY.vocabulary, 20e6, CPU)
        with torch.inference_mode():
            assert (memory.state, memory.shared) == bytes_of(decoders[name].fill(1, T, decode_measure.SPARE), 1)
        assert memory.each >= memory.state


def test_a_batch_that_does_not_fit_is_made_smaller(decoders, monkeypatch):
    tried = []

    def two_tokens(decoder, ids, context):
        tried.append(len(ids))
        if len(ids) > 95:
            raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(decode_measure, "_two_tokens", two_tokens)
    monkeypatch.setattr(decode_measure, "peak_of", lambda call, device: (call(), tried[-1] / 80)[1])  # 12.5 kB each
    point, memory = decode_measure.Point(decoders[ATTENTION], T), decode_measure.Memory(1, 0, 1)
    rest = (memory, TINY.vocabulary, CPU, print)
    outcome = decode_measure.admit(point, 100, decode_measure.ATTEMPTS, 1e6, *rest)
    assert tried == [100, 90, 81, 72]  # the first raises, the next two take more than a megabyte
    assert (outcome.status, outcome.batch, outcome.peak_MB) == ("ok", 72, 0.9)
    outcome = decode_measure.admit(point, 100, 1, 1e6, *rest)
    assert (outcome.status, outcome.batch) == ("out of memory", 0)


# --- Time -------------------------------------------------------------------------------------------------------------


def test_turns_are_interleaved_and_their_first_token_is_not_timed():
    made = {"a": 0, "b": 0}
    order, started = [], []

    def begin(key):
        started.append(key)

        def step():
            made[key] += 1
            order.append(key)

        return step

    times = decoding.time_in_turns({key: lambda key=key: begin(key) for key in made}, 3, 4, CPU)
    assert {key: len(ms) for key, ms in times.items()} == {"a": 12, "b": 12}
    assert made == {"a": 15, "b": 15}
    assert sorted(started[:2]) == sorted(started[2:4]) == ["a", "b"]
    assert order[:5] == [order[0]] * 5
    assert order[5] != order[0]
    assert len(decoding.token_times(lambda: None, 100, CPU, seconds=0.0)) == 1


# --- A run ------------------------------------------------------------------------------------------------------------

OPTIONS = {
    "smoke": True,
    "device": "cpu",
    "contexts": (32, 16),
    "batches": ("1", "max"),
    "memory_gb": 0.0015,
    "modes": 4,
    "threads": 1,
}


def test_run_end_to_end(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    options = {**OPTIONS, "contestants": (DISTILLED, ATTENTION)}
    rows = BENCHMARKS["decode"](**options, output=path)
    assert [(r.batches, r.context, r.contestant) for r in rows] == [
        (batches, context, name) for batches in ("1", "max") for context in (16, 32) for name in (DISTILLED, ATTENTION)
    ]
    assert {row.status for row in rows} == {"ok"}
    for row in rows:
        assert row.batch == 1 if row.batches == "1" else row.batch > 1
        assert 0 < row.ms_min <= row.ms_median <= row.ms_max
        assert math.isclose(row.tokens_per_s, 1e3 * row.batch / row.ms_median, rel_tol=1e-3)
        assert row.batch * row.state_MB + row.shared_MB <= 1.5
    assert read_rows(path, decode_report.DecodeRow) == rows
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "tokens/s over attention, batch max, context 32" in out
    assert "batch 1: ms at 32 over 16" in out
    # Going on where a run was cut short: only what the file does not have.
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(lines[:-1])
    again = decode.run(**options, output=path, resume=True)
    assert [(r.batches, r.context, r.contestant) for r in again] == [("max", 32, ATTENTION)]


def test_what_does_not_fit_and_what_is_wrong_is_not_timed(tmp_path, monkeypatch):
    def harmed(*args):
        first, *others, last = build(*args)
        wrong_readout(first)
        last.forward = None
        return [first, *others, last]

    monkeypatch.setattr(decode, "build", harmed)
    options = {**OPTIONS, "batches": ("500",), "contestants": (DISTILLED, ATTENTION, GPT2), "contexts": (16,)}
    with pytest.raises(harness.DisagreementError, match="distilled"):
        decode.run(**options, output=tmp_path / "rows.csv")
    rows = read_rows(tmp_path / "rows.csv", decode_report.DecodeRow)
    assert {row.contestant: row.status for row in rows} == {
        DISTILLED: "wrong",
        ATTENTION: "does not fit",
        GPT2: "failed",
    }
    assert all(row.ms_median is None and row.tokens_per_s is None for row in rows)


def a_row(**changes):
    kinds = decode_report.DecodeRow.__annotations__
    blank = {name: 0.0 if "float" in str(kind) else 1 if kind in (int, "int") else "" for name, kind in kinds.items()}
    blank |= {"size": "small", "status": "ok", "kind": "cpu", "contestant": DISTILLED, "batches": "max"}
    return decode_report.DecodeRow(**(blank | changes))


def test_targets_are_those_of_the_issue():
    speeds = {DISTILLED: 1000.0, CACHED: 500.0, ATTENTION: 99.0, GPT2: 50.0, GPT2_STATIC: 80.0}
    rows = [a_row(context=16384, contestant=name, tokens_per_s=speed) for name, speed in speeds.items()]
    rows += [a_row(context=c, batches="1", ms_median=ms) for c, ms in ((256, 2.0), (65536, 2.3), (16384, 9.0))]
    found = {target.what: target for target in decode_report.targets(rows)}
    flat = found.pop("distilled, batch 1: ms at 65,536 over 256")
    assert (flat.value, flat.bound, flat.reached) == (pytest.approx(1.15), 1.1, False)
    over = {what: (target.value, target.bound, target.reached) for what, target in found.items()}
    assert over == {
        "tokens/s over attention, batch max, context 16,384": (pytest.approx(1000 / 99), 10.0, True),
        "tokens/s over cached history, batch max, context 16,384": (2.0, None, None),
        "tokens/s over the better GPT-2, batch max, context 16,384": (12.5, None, None),
    }
    on_gpu = [a_row(kind="cuda", context=2048, contestant=name, tokens_per_s=s) for name, s in speeds.items()]
    assert [t.bound for t in decode_report.targets(on_gpu)] == [10.0, 1.5, None]


def test_latest_takes_the_last_row_of_each_kind_from_one_place():
    old, new = (a_row(date=date, contestant=ATTENTION, context=16) for date in "12")
    others = [a_row(device="another"), a_row(torch="another"), a_row(contestant=DISTILLED, context=16)]
    assert decode_report.latest([old, *others, new], vars(new)) == [others[-1], new]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": ("huge",)}, "shapes must be some of tiny, small"),
        ({"contestants": ("hyena",)}, "contestants must be some of distilled"),
        ({"contestants": ()}, "contestants must be some of"),
        ({"contexts": (0,)}, "contexts must be at least 1, got 0"),
        ({"batches": ("many",)}, "batches must be numbers from 1 up, or max; got many"),
        ({"batches": ("0",)}, "batches must be numbers from 1 up"),
        ({"modes": 0}, "modes must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"memory_gb": 0.0}, "memory_gb must be positive, got 0.0"),
        *([] if torch.cuda.is_available() else [({"device": "cuda"}, "device 'cuda'")]),
    ],
)
def test_errors_name_the_argument(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        decode.run(**{"device": "cpu", "smoke": True, **options}, output=tmp_path / "rows.csv")


def test_a_file_with_other_columns_is_refused_first(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has columns a, b"):
        decode.run(device="cpu", output=tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_text() == "a,b\n1,2\n"
