"""States of recurrent filters: without padding, in less precision, in models and in little memory."""

import importlib
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from numerics import assert_close

from longconv.filters import ModalFilter, PackedModes, S4DFilter, set_state_dtype
from longconv.kernels.recurrence import modal_scan_reference
from longconv.layers import GlobalConv, Hyena, MultiHyena, build_layer

D, N = 12, 10


def pad(filter, counts=None):
    """Leave channel d of a modal filter with so many modes, anywhere in its table."""
    counts = torch.randint(1, filter.order // 2, (filter.channels,)) if counts is None else torch.tensor(counts)
    unused = torch.rand(filter.channels, filter.order).argsort(-1) >= counts[:, None]
    with torch.no_grad():
        filter.residue[unused] = 0
    return filter


def ragged(channels=D, order=N, **options):
    return pad(ModalFilter(channels, order, **options))


def test_without_padding_all_methods_agree():
    f, u = ragged(), torch.randn(3, D, 70)
    y_ref, state_ref = modal_scan_reference(u, *f.prepare_step())
    keep = f.residues != 0
    with torch.no_grad():
        modes = f.prepare_stream()
        assert isinstance(modes, PackedModes)
        for given in (modes, None):
            y, last = f.scan(u, modes=given)
            assert_close(y, y_ref, torch.float32)
            first, half = f.scan(u[..., :33], None, given)
            second, end = f.scan(u[..., 33:], half, given)
            assert_close(torch.cat([first, second], -1), y_ref, torch.float32)
            state, inplace, outputs = f.init_state(3, modes=given), f.init_state(3), []
            for u_t in u.unbind(-1):
                y_t, state = f.step(u_t, state, given)
                assert torch.equal(f.step_(u_t, inplace, given), y_t)
                outputs.append(y_t)
            assert_close(torch.stack(outputs, -1), y_ref, torch.float32)
            prefill = f.final_state(u[..., 20:], f.final_state(u[..., :20], None, given), given)
            for x in (last, end, state, inplace, prefill, f.final_state(u)):
                assert x.shape == (3, modes.layout.size)
                assert_close(modes.layout.unpack(x) * keep, state_ref * keep, torch.float64, "state")
    assert f.stored_state_size() == 2 * modes.layout.size < 0.75 * 2 * D * N
    assert 2 * int(keep.sum()) <= f.stored_state_size() <= 2 * int(keep.sum()) / 0.9


def test_what_is_hardly_ragged_keeps_its_shape():
    for f in (ModalFilter(D, N), pad(ModalFilter(D, N), [N] * (D - 1) + [1]), S4DFilter(D, 2 * N)):
        with torch.no_grad():
            assert f.init_state(2).shape == (2, D, N)
        assert f.stored_state_size() == 2 * D * N == D * f.state_size
    nothing = pad(ModalFilter(3, 4), [0, 0, 0])
    with torch.no_grad():
        assert nothing.init_state(2).shape == (2, 0)
        y, _ = nothing.step(torch.ones(2, 3), nothing.init_state(2))
    assert_close(y, nothing.passthrough.detach().expand(2, 3).double(), torch.float32)


def test_gradients_see_the_padding():
    """With gradients a state has the whole table, and a packed one is taken all the same."""
    f, u = ragged(dtype=torch.float64), torch.randn(2, D, 9, dtype=torch.float64)
    assert f.init_state(2).shape == (2, D, N)
    y, state = f.scan(u)
    assert state.shape == (2, D, N)
    with torch.no_grad():
        packed = f.final_state(u[..., :6])
    y_t, after = f.step(u[..., 6], packed)
    assert after.shape == packed.shape
    assert_close(y_t, y[..., 6])
    expected = torch.autograd.grad(f.step(u[..., 6], f.final_state(u[..., :6]).detach())[0].sum(), f.residue)[0]
    used = f.residue.detach() != 0
    assert_close(torch.autograd.grad(y_t.sum(), f.residue)[0] * used, expected * used)
    y_rest, _ = f.scan(u[..., 6:], packed)
    assert_close(y_rest, y[..., 6:])


def test_a_state_of_another_filter_is_refused():
    f, g = ragged(), ragged()
    with torch.no_grad():
        for call in (f.step, f.step_, f.scan, f.final_state):
            u = torch.randn(2, D, 3) if call in (f.scan, f.final_state) else torch.randn(2, D)
            with pytest.raises(ValueError, match="modes and states come from the same prepare_stream"):
                call(u, torch.zeros(2, 7, dtype=torch.complex128))
            with pytest.raises(ValueError, match="modes and states come from the same prepare_stream"):
                call(u, torch.zeros(2, D, N, dtype=torch.complex128), g.prepare_stream())


@pytest.mark.parametrize("packed", [False, True])
def test_states_in_single_precision(packed):
    f, u = ragged() if packed else ModalFilter(D, N), torch.randn(2, D, 300)
    y_ref, _ = modal_scan_reference(u, *f.prepare_step())
    with torch.no_grad():
        assert f.init_state(2).dtype == f.final_state(u).dtype == torch.complex128
        assert f.init_state(2, dtype=torch.complex64).dtype == torch.complex64
        f.state_dtype = torch.complex64
        y, last = f.scan(u)
        assert_close(y, y_ref, torch.float32)
        state, copy, outputs = f.init_state(2), f.init_state(2), []
        for u_t in u.unbind(-1):
            y_t, state = f.step(u_t, state)
            assert_close(f.step_(u_t, copy), y_t.double())
            outputs.append(y_t)
        assert_close(torch.stack(outputs, -1), y_ref, torch.float32)
        for x in (state, copy, last, f.final_state(u), f.final_state(u, f.init_state(2, dtype=torch.complex64))):
            assert x.dtype == torch.complex64
        assert f.final_state(u, f.init_state(2, dtype=torch.complex128)).dtype == torch.complex128
    for dtype in (torch.float32, torch.float16, torch.complex32):
        with pytest.raises(ValueError, match=f"dtype of a state must be complex64 or complex128, got {dtype}"):
            f.init_state(2, dtype=dtype)


def variants():
    yield "hyena", lambda: Hyena(D, 40, filter={"name": "modal", "order": N})
    yield "hyena-order3", lambda: Hyena(D, 40, order=3, filter={"name": "modal", "order": N})
    yield "multi_hyena", lambda: build_layer("multi_hyena", D, 40, num_heads=6, filter={"name": "modal", "order": N})
    yield "global_conv", lambda: build_layer("global_conv", D, 40, filter={"name": "modal", "order": N})


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in variants()])
def test_layers_with_states_without_padding(make):
    """Whole, chunks and steps, in place or not, with gradients switched in between; reordered and moved."""
    layer = make().eval()
    for f in layer.long_filters:
        pad(f)
    x, rows = torch.randn(3, 40, D), torch.tensor([2, 0, 2])
    expected = layer(x).detach().double()
    with torch.no_grad():
        _, state = layer(x[:, :7], return_state=True)
        long = state.long[0] if isinstance(state.long, tuple) else state.long
        assert long.state.dim() == 2
        y, state = layer(x[:, 7:12], state=state, return_state=True)
        assert_close(y, expected[:, 7:12], torch.float32)
        for t in range(12, 16):
            y, state = layer.step(x[:, t], state)
            assert_close(y, expected[:, t], torch.float32)
        state = state.index_select(rows).to("cpu")
        for t in range(16, 20):
            assert_close(layer.step_(x[rows, t], state), expected[rows, t], torch.float32)
        state = state.batch_repeat_interleave(2)
        rows = rows.repeat_interleave(2)
        assert_close(layer.step_(x[rows, 20], state), expected[rows, 20], torch.float32)
    y, state = layer.step(x[rows, 21], state)
    long = state.long[0] if isinstance(state.long, tuple) else state.long
    assert long.state.dim() == 3
    assert_close(y, expected[rows, 21], torch.float32)
    y, state = layer(x[rows, 22:30], state=state, return_state=True)
    assert_close(y, expected[rows, 22:30], torch.float32)
    state = state.detach()
    with torch.no_grad():
        fixed = state.clone()
        assert_close(layer.step_(x[rows, 30], fixed), expected[rows, 30], torch.float32)
        y, _ = layer.step(x[rows, 31], fixed)
        assert_close(y, expected[rows, 31], torch.float32)
        y, state = layer.step(x[rows, 30], state)
        assert_close(y, expected[rows, 30], torch.float32)
        y, state = layer.step(x[rows, 31], state)
        assert_close(y, expected[rows, 31], torch.float32)
        long = state.long[0] if isinstance(state.long, tuple) else state.long
        assert long.state.dim() == 2
        y, state = layer(x[rows, 32:], state=state, return_state=True)
        assert_close(y, expected[rows, 32:], torch.float32)


FUSED = {"hyena": "hyena_step_", "multi_hyena": "multi_hyena_step_", "global_conv": "modal_step_"}


def test_the_fused_step_is_taken_where_it_applies(monkeypatch):
    calls = []
    for module, name in FUSED.items():
        module = importlib.import_module(f"longconv.layers.{module}")
        fused = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, fused=fused, **k: calls.append(1) or fused(*a, **k))

    def runs(layer):
        """Calls of a step in place, and of one whose old state stays as it was; with gradients there are none."""
        calls.clear()
        x, state = torch.randn(2, D), layer.init_state(2)
        layer.step(x, state)
        assert not calls
        layer.step_(x, state.clone())
        in_place = len(calls)
        with torch.no_grad():
            kept = state.clone()
            first, _ = layer.step(x, state)
            again, _ = layer.step(x, kept)
            if not layer.training:
                assert torch.equal(first, again)
        assert len(calls) == 3 * in_place
        return in_place

    modal = {"name": "modal", "order": N}
    assert runs(Hyena(D, filter=modal, dropout=0.5).eval()) == 1
    assert runs(Hyena(D, filter={"name": "s4d", "state_size": 4})) == 1
    assert runs(Hyena(D, filter={"name": "rtf", "order": 4})) == 0
    assert runs(Hyena(D, order=3, filter=modal)) == 0
    assert runs(Hyena(D, filter=modal, dropout=0.5).train()) == 0
    assert runs(MultiHyena(D, num_heads=3, filter=modal)) == 1
    assert runs(MultiHyena(D, num_heads=3, filter={"name": "rtf", "order": 4})) == 0
    assert runs(GlobalConv(D, filter=modal, dropout=0.5).eval()) == 1
    assert runs(build_layer("s4d", D)) == 1
    assert runs(GlobalConv(D, filter=modal, dropout=0.5).train()) == 0
    assert runs(GlobalConv(D, filter=modal, short_kernel=3)) == 0
    assert runs(GlobalConv(D, filter={"name": "rtf", "order": 4})) == 0


@pytest.mark.parametrize("activation", ["gelu", "silu", "relu", "none"])
@pytest.mark.parametrize(
    "options", [{}, {"skip": False, "bias": True, "output": "linear"}, {"output": "none"}], ids=str
)
def test_the_fused_step_of_a_global_conv_is_its_forward_pass(activation, options):
    layer = GlobalConv(D, filter={"name": "modal", "order": N}, activation=activation, **options)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    x, state = torch.randn(2, 20, D), layer.init_state(2)
    with torch.no_grad():
        outputs = []
        for x_t in x.unbind(1):
            y_t, state = layer.step(x_t, state)
            outputs.append(y_t)
    assert_close(torch.stack(outputs, 1), layer(x).detach().double())


def test_models_keep_their_layout_and_choose_a_precision(tmp_path):
    from longconv.models import LongConvConfig, LongConvForCausalLM

    options = {"filter": {"name": "modal", "order": N}}
    config = LongConvConfig(
        vocab_size=11, hidden_size=D, num_hidden_layers=2, mixers="hyena", mixer_options={"hyena": options},
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model, ids = LongConvForCausalLM(config).eval(), torch.randint(11, (2, 9))
    for block in model.model.layers:
        pad(block.mixer.long_filters[0])
    model.save_pretrained(tmp_path)
    loaded = LongConvForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        caches = [m(ids, use_cache=True).past_key_values for m in (model, loaded)]
    for a, b in zip(*(cache.states for cache in caches), strict=True):
        assert a.long[0].state.dim() == 2
        assert torch.equal(a.long[0].state, b.long[0].state)
    assert all("long" not in name or "filters" in name for name in model.state_dict())
    out = loaded.generate(ids, max_new_tokens=20, do_sample=False)
    assert torch.equal(out, model.generate(ids, max_new_tokens=20, do_sample=False))
    with torch.no_grad():
        assert torch.equal(out[:, 9:], model(out[:, :-1]).logits[:, 8:].argmax(-1))
        set_state_dtype(loaded, torch.complex64)
        cache = loaded(ids, use_cache=True).past_key_values
        assert cache.states[0].long[0].state.dtype == torch.complex64
        assert torch.equal(loaded.generate(ids, max_new_tokens=20, do_sample=False), out)
        half = loaded.bfloat16()
        assert half(ids, use_cache=True).past_key_values.states[0].long[0].state.dtype == torch.complex64
        set_state_dtype(half, torch.complex128)
        state = half.model.layers[0].mixer.init_state(2)
        assert state.long[0].state.dtype == torch.complex128
        assert state.short.dtype == torch.bfloat16  # inputs, as they came
    with pytest.raises(ValueError, match="must be complex64 or complex128"):
        set_state_dtype(loaded, torch.bfloat16)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of the memory in use in KB")
def test_the_memory_of_prefill_does_not_depend_on_the_order():
    """Of 16 channels and 65,536 samples: 8 or 64 modes; their product with the length would be 0.1 or 1.1 GB."""
    program = """
        import re
        import sys
        from pathlib import Path
        import torch
        from longconv.layers import build_layer

        def peak():
            return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

        torch.set_num_threads(1)
        torch.set_grad_enabled(False)
        D, L, N = 16, 65_536, int(sys.argv[1])
        layer = build_layer("hyena", D, L, filter={"name": "modal", "order": N})
        filter, u = layer.long_filters[0], torch.randn(1, D, L)
        before = peak()
        for method in (filter.final_state, lambda u: filter(L), lambda u: layer(u.mT, return_state=True)):
            method(u)
            print(peak() - before)
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    # Every large block is given back at once, so that what is measured has no holes.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    runs = [
        subprocess.Popen([*command, order], stdout=subprocess.PIPE, text=True, env=environment) for order in ("8", "64")
    ]
    few, many = ([float(line) for line in run.communicate()[0].split()] for run in runs)
    print(few, many)
    assert len(few) == len(many) == 3
    assert many[0] < 100
    for a, b in zip(few, many, strict=True):
        assert b - a < 50
