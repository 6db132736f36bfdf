"""Graphs for every length: ONNX files in onnxruntime, torch.export, torch.compile, all against the module itself."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from numerics import assert_close
from torch import nn

from longconv.export import to_onnx
from longconv.filters import Filter
from longconv.functional import fft_conv
from longconv.layers import Attention, Hyena
from longconv.models import LongConvConfig, LongConvForCausalLM

onnxruntime = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

D, M = 8, 1024
MODAL = {"name": "modal", "order": 4}


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Every(nn.Module):
    """Several modules on one input: an export takes seconds, however small it is."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(parts)

    def forward(self, x):
        return tuple(part(x) for part in self.parts.values())


class Convolutions(nn.Module):
    """fft_conv with options: name -> (K, K' or None, circular, gates and skip)."""

    def __init__(self, cases) -> None:
        super().__init__()
        self.cases = cases
        self.taps = nn.ParameterDict()
        for name, (K, K_reverse, _, _) in cases.items():
            self.taps[name] = nn.Parameter(torch.randn(D, K))
            if K_reverse is not None:
                self.taps[name + "_reverse"] = nn.Parameter(torch.randn(D, K_reverse))
        self.skip = nn.Parameter(torch.randn(D))

    def forward(self, u, gate):
        outputs = []
        for name, (_, K_reverse, circular, gated) in self.cases.items():
            reverse = None if K_reverse is None else self.taps[name + "_reverse"]
            options = {"skip": self.skip, "pre_gate": gate, "post_gate": gate.flip(0)} if gated else {}
            outputs.append(fft_conv(u, self.taps[name], k_reverse=reverse, circular=circular, **options))
        return tuple(outputs)


def session(program):
    """An onnxruntime session of the program, whose graph must be real and standard."""
    model = program.model_proto
    onnx.checker.check_model(model)
    assert not model.functions
    inferred = onnx.shape_inference.infer_shapes(model).graph
    tensors = [*inferred.input, *inferred.output, *inferred.value_info]
    types = {value.type.tensor_type.elem_type for value in tensors} | {t.data_type for t in model.graph.initializer}
    assert not types & {onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
    for node in model.graph.node:
        assert node.domain == "", node
        assert not any(attribute.graphs or attribute.HasField("g") for attribute in node.attribute)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(session, **inputs):
    return [torch.from_numpy(y) for y in session.run(None, {name: x.numpy() for name, x in inputs.items()})]


@torch.no_grad()
def check(session, module, **inputs):
    outputs = module(**inputs)
    for i, (y, expected) in enumerate(zip(run(session, **inputs), outputs, strict=True)):
        assert_close(y, expected.double(), torch.float32, name=f"output {i} of {tuple(expected.shape)}")


def test_onnx_fft_conv_with_every_option():
    L = 509
    module = Convolutions(
        {
            "short": (20, 7, False, True),
            "longer": (L + 90, L, False, True),
            "circular": (2 * L + 5, 3, True, True),
        }
    ).eval()
    u = torch.randn(2, D, L)
    program = to_onnx(module, (u, u))  # one example for two inputs
    onnx_session = session(program)
    for B in (1, 3):
        check(onnx_session, module, u=torch.randn(B, D, L), gate=torch.randn(B, D, L))


def test_onnx_fft_conv_of_dynamic_length():
    module = Convolutions({"short": (5, 4, False, True), "long": (300, 200, False, True)}).eval()
    axes = {name: {0: "batch", 2: "length"} for name in ("u", "gate")}
    program = to_onnx(module, (torch.randn(1, D, 50), torch.randn(1, D, 50)), axes=axes, max_length=400)
    onnx_session = session(program)
    for B, L in ((1, 1), (3, 131), (2, 400)):
        check(onnx_session, module, u=torch.randn(B, D, L), gate=torch.randn(B, D, L))


def test_onnx_layers_of_one_length(tmp_path):
    module = Every(order3=Hyena(D, M, order=3, short_kernel=5), attention=Attention(D, M, num_heads=2)).eval()
    path, before = tmp_path / "layers.onnx", list(module.modules())
    program = to_onnx(module, torch.randn(1, 1021, D), path)
    assert list(module.modules()) == before, "the module was changed"
    assert onnx.load(path) == program.model_proto
    onnx_session = session(program)
    assert [axis.shape for axis in onnx_session.get_inputs()] == [["batch", 1021, D]]
    for B in (1, 3):
        check(onnx_session, module, x=torch.randn(B, 1021, D))


def test_onnx_layers_of_dynamic_length():
    module = Every(modal=Hyena(D, M, filter=MODAL), attention=Attention(D, M, num_heads=2)).eval()
    onnx_session = session(to_onnx(module, torch.randn(1, 40, D), max_length=M))
    assert [axis.shape for axis in onnx_session.get_inputs()] == [["batch", "length", D]]
    for B, L in ((1, 1), (3, 2), (2, 1021), (1, M)):
        check(onnx_session, module, x=torch.randn(B, L, D))


def test_onnx_with_the_filter_in_the_graph():
    module = Every(hyena=Hyena(D, M)).eval()
    program = to_onnx(module, torch.randn(2, 40, D), max_length=M, fold_filters=False)
    onnx_session = session(program)
    for B, L in ((1, 1), (2, 1021)):
        check(onnx_session, module, x=torch.randn(B, L, D))


def test_onnx_language_model():
    config = LongConvConfig(
        vocab_size=40, hidden_size=D, num_hidden_layers=2, mixers="hyena attention",
        mixer_options={"attention": {"num_heads": 2}}, max_position_embeddings=200,
    )  # fmt: skip
    model = LongConvForCausalLM(config).eval()
    ids = torch.randint(0, 40, (2, 30))
    program = to_onnx(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, max_length=200)
    onnx_session = session(program)
    assert [output.name for output in onnx_session.get_outputs()] == ["logits"]
    for B, L in ((1, 1), (3, 191)):
        ids = torch.randint(0, 40, (B, L))
        mask = (torch.arange(L) >= L // 3 * torch.arange(B)[:, None]).long()
        (logits,) = run(onnx_session, input_ids=ids, attention_mask=mask)
        expected = model(ids, mask).logits.detach()
        assert_close(logits[mask.bool()], expected[mask.bool()].double(), torch.float32)


class OfItsLength(Filter):
    """A filter whose taps depend on how many there are."""

    def __init__(self):
        super().__init__()
        self.channels = D
        self.taps = nn.Parameter(torch.randn(D, M))

    def forward(self, L):
        return self.taps[:, :L] / L


def test_onnx_errors_say_what_does_not_fit():
    layer, x = Hyena(D, M), torch.randn(2, 30, D)
    with pytest.raises(ValueError, match="training mode"):
        to_onnx(layer, x)
    layer.eval()
    with pytest.raises(ValueError, match="inputs do not fit Hyena"):
        to_onnx(layer, (x, x))
    with pytest.raises(ValueError, match=r"axes names y, .* x"):
        to_onnx(layer, x, axes={"y": {0: "batch"}})
    with pytest.raises(ValueError, match="no axis 3"):
        to_onnx(layer, x, axes={"x": {3: "batch"}})
    with pytest.raises(ValueError, match="both or neither"):
        to_onnx(layer, x, axes={"x": {0: "batch", 1: "length"}})
    with pytest.raises(ValueError, match="both or neither"):
        to_onnx(layer, x, axes={"x": {0: "batch"}}, max_length=M)
    with pytest.raises(ValueError, match="more than max_length = 20"):
        to_onnx(layer, x, max_length=20)
    with pytest.raises(ValueError, match="max_length"):  # the layer's own limit
        to_onnx(layer, x, max_length=2 * M)
    with pytest.raises(ValueError, match="fold_filters=True"):
        to_onnx(Hyena(D, M, filter=MODAL).eval(), x, fold_filters=False)
    circular = Convolutions({"circular": (200, None, True, False)}).eval()
    axes = {name: {0: "batch", 2: "length"} for name in ("u", "gate")}
    with pytest.raises(ValueError, match="circular"):
        to_onnx(circular, (torch.randn(2, D, 30), torch.randn(2, D, 30)), axes=axes, max_length=M)
    layer.long_filters[0] = OfItsLength().eval()
    with pytest.raises(ValueError, match="OfItsLength: its first 30 taps"):
        to_onnx(layer, x, max_length=M)


BATCH, LENGTH = torch.export.Dim("batch"), torch.export.Dim("length", max=M)


def test_torch_export_for_every_batch_and_length():
    layers = Every(
        order3=Hyena(D, M, order=3), modal=Hyena(D, M, filter=MODAL), attention=Attention(D, M, num_heads=2)
    ).eval()
    program = torch.export.export(layers, (torch.randn(2, 37, D),), dynamic_shapes={"x": {0: BATCH, 1: LENGTH}})
    convolutions = Convolutions({"long": (300, 200, False, True), "circular": (20, 9, True, False)})
    u, gate = torch.randn(2, D, 37), torch.randn(2, D, 37)
    dims = {0: BATCH, 2: LENGTH}
    conv_program = torch.export.export(convolutions, (u, gate), dynamic_shapes={"u": dims, "gate": dims})
    for B, L in ((1, 1), (3, 64), (2, 1021)):
        x, u, gate = torch.randn(B, L, D), torch.randn(B, D, L), torch.randn(B, D, L)
        for y, expected in zip(program.module()(x), layers(x), strict=True):
            assert_close(y, expected.double(), torch.float32)
        for y, expected in zip(conv_program.module()(u, gate), convolutions(u, gate), strict=True):
            assert_close(y, expected.double(), torch.float32)


def test_a_saved_program_needs_only_the_import(tmp_path):
    layer, x = Hyena(D, M, filter=MODAL).eval(), torch.randn(3, 101, D)
    program = torch.export.export(layer, (torch.randn(2, 37, D),), dynamic_shapes={"x": {0: BATCH, 1: LENGTH}})
    torch.export.save(program, tmp_path / "layer.pt2")
    np.save(tmp_path / "x.npy", x.numpy())
    code = """
import sys, numpy, torch, longconv
folder = sys.argv[1]
y = torch.export.load(folder + "/layer.pt2").module()(torch.from_numpy(numpy.load(folder + "/x.npy")))
numpy.save(folder + "/y.npy", y.detach().numpy())
"""
    command = [sys.executable, "-P", "-c", code, str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert_close(torch.from_numpy(np.load(tmp_path / "y.npy")), layer(x).detach().double(), torch.float32)


def check_compiled(module, shape, backend, grad=True):
    """Compile once, at the first length; forward (and backward) at others without compiling again."""
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for i, L in enumerate((37, 64, 101)):
        x = torch.randn(shape(L), requires_grad=grad)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"), torch.set_grad_enabled(grad):
            y, expected = compiled(x), module(x)
        assert_close(y, expected.detach().double(), torch.float32, name=f"L = {L}")
        if grad:
            weights = [x, *(p for p in getattr(module, "parameters", tuple)() if p.requires_grad)]
            grads = (torch.autograd.grad(out.square().sum(), weights, allow_unused=True) for out in (y, expected))
            for one, other in zip(*grads, strict=True):
                if other is not None:
                    assert_close(one, other.double(), torch.float32, name=f"gradient, L = {L}")


def test_compiled_fft_conv_does_not_recompile_for_a_length():
    k, k_reverse, skip = torch.randn(D, 50), torch.randn(D, 9), torch.randn(D)
    check_compiled(lambda u: fft_conv(u, k, k_reverse=k_reverse, skip=skip), lambda L: (2, D, L), "inductor")
    check_compiled(lambda u: fft_conv(u, k, pre_gate=u, post_gate=u.square()), lambda L: (2, D, L), "aot_eager")


@pytest.mark.parametrize("options", [{}, {"filter": MODAL}], ids=["hyena", "modal"])
@pytest.mark.filterwarnings("ignore")  # inductor says that it does not fuse complex numbers
def test_a_compiled_layer_does_not_recompile_for_a_length(options):
    check_compiled(Hyena(D, M, **options), lambda L: (2, L, D), "inductor")
