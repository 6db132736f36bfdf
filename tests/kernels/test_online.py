"""`OnlineConv` against `fft_conv` over the whole sequence: steps, chunks, prefills, branches, batches, dtypes."""

import copy
from random import Random

import pytest
import torch
from numerics import assert_close

from longconv.functional import OnlineConv, fft_conv
from longconv.kernels.fftconv import online

D = 3


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def start(k, v, prefill=0):
    return OnlineConv(k, v[..., :prefill])


def run_steps(state, v):
    outputs = []
    for v_t in v.unbind(-1):
        y_t, state = state.step(v_t)
        outputs.append(y_t)
    return torch.stack(outputs, -1), state


def whole(v, k):
    return fft_conv(v.double(), k.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 1000, 1021, 4096])
def test_steps_equal_the_whole(T, dtype):
    v, k = torch.randn(2, D, T, dtype=dtype), torch.randn(D, T, dtype=dtype)
    y, state = run_steps(start(k, v), v)
    assert y.dtype == dtype
    assert state.length == T
    assert_close(y, whole(v, k), dtype)


@pytest.mark.parametrize("prefill", [1, 2, 63, 64, 65, 127, 500, 1021])
def test_steps_continue_a_prefill_past_its_horizon(prefill):
    T = max(2 * prefill, 300) + 150
    v, k = torch.randn(2, D, T), torch.randn(D, T)
    expected = whole(v, k)
    for first in (OnlineConv(k, v[..., :prefill]), start(k, v).append(v[..., :prefill])):
        y, _ = run_steps(first, v[..., prefill:])
        assert_close(y, expected[..., prefill:], torch.float32)
    y, _ = start(k, v).extend(v[..., :prefill])
    assert_close(y, expected[..., :prefill], torch.float32)


@pytest.mark.parametrize("K", [1, 2, 5, 63, 64, 65, 66, 129, 300])
def test_short_filters(K):
    v, k, T = torch.randn(2, D, 1000), torch.randn(D, K), 1000
    expected = whole(v, k)
    y, state = run_steps(start(k, v), v)
    assert_close(y, expected, torch.float32)
    assert torch.equal(state.inputs, v[..., T - (K - 1) :])
    y, state = run_steps(start(k, v, 411), v[..., 411:])
    assert_close(y, expected[..., 411:], torch.float32)
    # However long the stream, no more than the taps reach is kept.
    assert state._storage.inputs.shape[-1] <= max(3 * K, 4 * online.LOOK_AHEAD)
    y, state = start(k, v).extend(v[..., :700])
    y, _ = state.extend(v[..., 700:])
    assert_close(y, expected[..., 700:], torch.float32)


@pytest.mark.parametrize("K", [40, 900])
def test_chunks_of_any_size_between_steps(K):
    sizes = [1, 1, 5, 64, 1, 63, 130, 2, 65, 1, 1, 400, 3, 1, 100, 7, 1]
    v, k = torch.randn(2, D, sum(sizes)), torch.randn(D, K)
    state, outputs, at = start(k, v), [], 0
    for size in sizes:
        piece = v[..., at : at + size]
        y, after = state.step(piece[..., 0]) if size == 1 else state.extend(piece)
        again, _ = state.extend(piece)  # the same once more, from a state that is not the furthest any longer
        y = y[..., None] if size == 1 else y
        assert_close(again, y.double(), torch.float32)
        outputs.append(y)
        state, at = after, at + size
    assert_close(torch.cat(outputs, -1), whole(v, k), torch.float32)


@pytest.mark.parametrize("at", [0, 3, 64, 100, 128, 190, 256])
def test_an_older_state_can_be_continued_again(at):
    v, other, k = torch.randn(2, D, 400), torch.randn(2, D, 400), torch.randn(D, 400)
    _, state = run_steps(start(k, v, 0), v[..., :at]) if at else (None, start(k, v))
    expected = [whole(torch.cat([v[..., :at], tail[..., at:]], -1), k)[..., at:] for tail in (v, other)]
    # Both branches in turns, sample by sample, then the first once more.
    branches, outputs = [state, state], [[], []]
    for t in range(at, 400):
        for b, tail in enumerate((v, other)):
            y, branches[b] = branches[b].step(tail[..., t])
            outputs[b].append(y)
    for b in range(2):
        assert_close(torch.stack(outputs[b], -1), expected[b], torch.float32)
    y, _ = run_steps(state, v[..., at:])
    assert_close(y, expected[0], torch.float32)


def test_every_state_on_the_way_stays_right():
    v, k = torch.randn(1, D, 300), torch.randn(D, 300)
    expected, state, states = whole(v, k), start(k, v), []
    for t in range(300):
        states.append(state)
        _, state = state.step(v[..., t])
    for t in range(0, 300, 7):
        assert_close(states[t].step(v[..., t])[0], expected[..., t], torch.float32)
        assert torch.equal(states[t].inputs, v[..., :t])


@pytest.mark.parametrize("at", [40, 64, 150, 256])
@pytest.mark.parametrize("behind", [False, True], ids=["furthest", "overtaken"])
def test_states_follow_the_batch(at, behind):
    v, k, rows = torch.randn(3, D, 330), torch.randn(D, 330), torch.tensor([2, 0, 0, 1])
    expected = whole(v, k)[..., at:]
    _, state = run_steps(start(k, v), v[..., :at])
    if behind:
        run_steps(state, torch.randn(3, D, 70))
    for fn in (lambda t: t[rows], lambda t: t.repeat_interleave(2, 0), torch.detach, torch.clone, lambda t: t[:2]):
        moved = state.map(fn)
        y, _ = run_steps(moved, fn(v)[..., at:])
        assert_close(y, fn(expected), torch.float32)
        y, _ = run_steps(moved, fn(v)[..., at:])
        assert_close(y, fn(expected), torch.float32)
    copied = copy.deepcopy(state)
    run_steps(state, torch.randn(3, D, 70))
    y, _ = run_steps(copied.map(torch.clone, constants=True), v[..., at:])
    assert_close(y, expected, torch.float32)


@pytest.mark.parametrize("seed", range(12))
def test_random_programs(seed, monkeypatch):
    """States in any order, of blocks so small that a short stream has tiles of every size: each is right on its own."""
    monkeypatch.setattr(online, "BLOCK", 4)
    monkeypatch.setattr(online, "LOOK_AHEAD", 8)
    random = Random(seed)
    K = random.choice([1, 3, 4, 5, 9, 30, 200])
    k = torch.randn(D, K)
    empty = torch.zeros(2, D, 0)
    states = [(OnlineConv(k, empty), empty)]  # with all inputs so far
    for _ in range(400):
        at = random.choice([-1, -1, -1, -1, -1, random.randrange(len(states))])
        state, past = states[at]
        new = torch.randn(2, D, random.choice([1, 1, 1, 1, 2, 5, 17]))
        whole_past = torch.cat([past, new], -1)
        action = random.choice(["step", "step", "step", "extend", "append", "map", "clone"])
        if action in ("map", "clone"):
            fn = torch.clone if action == "clone" else lambda t: t.flip(0)
            states.append((state.map(fn), fn(past)))
            continue
        if action == "append":
            states.append((state.append(new), whole_past))
            continue
        if action == "step":
            new, whole_past = new[..., :1], torch.cat([past, new[..., :1]], -1)
            y, after = state.step(new[..., 0])
            y = y[..., None]
        else:
            y, after = state.extend(new)
        assert_close(y, whole(whole_past, k)[..., past.shape[-1] :], torch.float32, name=action)
        assert torch.equal(after.inputs, whole_past[..., max(0, whole_past.shape[-1] - (K - 1)) :])
        states.append((after, whole_past))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_summed_in_float32(dtype, autocast):
    v, k = torch.randn(2, D, 500).to(dtype), torch.randn(D, 500)
    with torch.autocast("cpu", dtype, enabled=autocast):
        state = start(k, v, 100)
        assert state.dtype == torch.float32
        y, state = run_steps(state, v[..., 100:200])
        assert y.dtype == dtype
        tail, _ = state.extend(v[..., 200:])
    got = torch.cat([y, tail], -1)
    # Only the output is rounded.
    expected = whole(v, k)[..., 100:]
    assert_close(got, expected.to(dtype).double(), dtype)
    y, _ = run_steps(start(k, v.float()), v.float())
    assert_close(y[..., 100:], expected, torch.float32)


def test_wide_taps_make_a_wide_state():
    v, k = torch.randn(2, D, 300), torch.randn(D, 300, dtype=torch.float64)
    state = start(k, v)
    assert state.dtype == torch.float64
    y, _ = run_steps(state, v.double())
    assert_close(y, whole(v, k), torch.float64)


def test_inputs_are_copied():
    v, k = torch.randn(2, D, 200), torch.randn(D, 200)
    expected, state = whole(v, k), start(k, v, 100)
    v_t, tail, kernel = v[..., 100].clone(), v[..., 101:].clone(), k.clone()
    v.zero_(), k.zero_()
    y, state = state.step(v_t)
    assert_close(y, expected[..., 100], torch.float32)
    y.fill_(7.0)
    v_t.zero_()
    y, _ = run_steps(state, tail)
    assert_close(y, expected[..., 101:], torch.float32)
    state = OnlineConv(kernel, tail[..., :0])
    assert state.taps.data_ptr() != kernel.data_ptr()


def test_inference_mode_states_go_on_outside_of_it():
    v, k = torch.randn(2, D, 200), torch.randn(D, 200)
    with torch.inference_mode():
        _, state = run_steps(start(k, v), v[..., :70])
    y, state = run_steps(state, v[..., 70:140])
    with torch.inference_mode():
        rest, _ = run_steps(state, v[..., 140:])
    assert_close(torch.cat([y, rest], -1), whole(v, k)[..., 70:], torch.float32)
    state = start(k, v, 70)
    with torch.inference_mode():  # makes the pass
        y, state = state.step(v[..., 70])
    rest, _ = run_steps(state, v[..., 71:])
    assert_close(torch.cat([y[..., None], rest], -1), whole(v, k)[..., 70:], torch.float32)


def test_a_failure_leaves_the_state_usable(monkeypatch):
    v, k = torch.randn(2, D, 200), torch.randn(D, 200)
    _, state = run_steps(start(k, v), v[..., :128])
    _, state = run_steps(state, v[..., 128:192])
    with monkeypatch.context() as patch:
        patch.setattr(online._Storage, "advance", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            state.step(v[..., 192])
    y, _ = run_steps(state, v[..., 192:])
    assert_close(y, whole(v, k)[..., 192:], torch.float32)


def test_strided_inputs_and_an_empty_batch():
    v, k = torch.randn(200, 2, D).permute(1, 2, 0), torch.randn(200, D).T
    y, _ = run_steps(start(k, v, 30), v[..., 30:])
    assert_close(y, whole(v, k)[..., 30:], torch.float32)
    state = OnlineConv(k, v[:0, :, :30])
    y, state = run_steps(state, v[:0, :, 30:])
    assert y.shape == (0, D, 170)
    assert state.extend(v[:0])[0].shape == v[:0].shape


def test_errors_name_the_argument():
    v, k = torch.randn(2, D, 10), torch.randn(D, 10)
    state = start(k, v, 5)
    for bad, message in [
        ((k, v[0]), "past must have shape"),
        ((k[:2], v), "k must have shape"),
        ((k[:, :0], v), "k must have shape"),
        ((k.to("meta"), v), "k must be on the device"),
    ]:
        with pytest.raises(ValueError, match=message):
            OnlineConv(*bad)
    with pytest.raises(TypeError, match="past must be floating point"):
        OnlineConv(k, v.long())
    with pytest.raises(ValueError, match=r"v_t must have shape \(B, D\) = \(2, 3\); got \(2, 2\)"):
        state.step(v[:, :2, 0])
    with pytest.raises(ValueError, match="v_t must be on the device"):
        state.step(v[..., 0].to("meta"))
    with pytest.raises(TypeError, match="v_t must be floating point"):
        state.step(v[..., 0].long())
    with pytest.raises(ValueError, match=r"v_t is torch.float64, but the state was made for at most torch.float32"):
        state.step(v[..., 0].double())
    for method in (state.extend, state.append):
        with pytest.raises(ValueError, match="v must have shape"):
            method(v[..., :0])
        with pytest.raises(ValueError, match="v must have shape"):
            method(v[:1])


def test_gradients_are_refused_not_dropped():
    v, k = torch.randn(2, D, 10), torch.randn(D, 10, requires_grad=True)
    state = start(k, v)  # under no_grad
    with torch.enable_grad():
        with pytest.raises(ValueError, match="k requires a gradient"):
            start(k, v)
        with pytest.raises(ValueError, match="v_t requires a gradient"):
            state.step(torch.randn(2, D, requires_grad=True))
        y, _ = run_steps(state, v)
    assert not y.requires_grad
    assert_close(y, whole(v, k), torch.float32)
