"""Every layer in a graph: ONNX files in onnxruntime, and torch.compile without a break, against the layer itself."""

import pytest
import torch
from numerics import assert_close
from torch import nn

from longconv.export import to_onnx
from longconv.layers import LAYERS, MicroTCN, build_layer

onnxruntime = pytest.importorskip("onnxruntime")

D, M = 8, 300
EMA = {"name": "ema", "order": 3}
#: Exported for every length up to M.
DYNAMIC = {
    "tcn": ("tcn", {"num_blocks": 2, "kernel_size": 3, "hidden": [8, 6]}),
    "tcn-lookahead": ("tcn", {"num_blocks": 2, "kernel_size": 3, "lookahead": 5, "depthwise": True}),
    "micro_tcn": ("micro_tcn", {"num_blocks": 2, "kernel_size": 4, "dilation_growth": 7, "causal": False}),
    "micro_tcn-grouped": ("micro_tcn", {"num_blocks": 2, "kernel_size": 10, "dilation_growth": 3, "grouped": True}),
    "multires": ("multires", {"depth": 4, "output": "glu"}),
    "multires-uniform": (
        "multires",
        {"depth": 3, "kernel_size": 3, "tree_select": "uniform", "memory_size": 6},
    ),
    "multires-two-sided": ("multires", {"depth": 3, "kernel_size": 3, "bidirectional": True}),
    "tcn-two-sided": ("tcn", {"num_blocks": 3, "kernel_size": 2, "bidirectional": True}),
    "attention-two-sided": ("attention", {"num_heads": 2, "bidirectional": True}),
    "hyena-two-sided": ("hyena", {"filter": {"name": "hyena", "order": 8}, "bidirectional": True}),
    "lightconv": ("lightconv", {"kernel_size": 6, "num_heads": 2, "bidirectional": True}),
    "dynamicconv": ("dynamicconv", {"kernel_size": 5, "num_heads": 2, "conv_bias": True}),
    "sgconv": ("sgconv", {"filter": {"name": "sgconv", "kernel_dim": 4}, "bidirectional": True}),
    "smpconv": ("smpconv", {"filter": {"name": "smpconv", "points": 5, "radius": 0.3}}),
    "s4d": ("s4d", {"filter": {"name": "s4d", "state_size": 6}}),
    "multi_hyena": ("multi_hyena", {"num_heads": 4}),
    "global_conv": ("global_conv", {"filter": EMA, "short_kernel": 3}),
    "mega": ("mega", {"chunk_size": 16, "ndim": 3, "zdim": 4}),
    "mega-batchnorm": ("mega", {"chunk_size": 16, "ndim": 3, "zdim": 4, "norm": "batchnorm"}),
    "mega-two-sided": ("mega", {"ndim": 3, "zdim": 4, "rel_pos_bias": "simple", "bidirectional": True}),
    "tcnca": ("tcnca", {"num_layers": 2, "kernel_size": 4, "dilation_factor": 4, "chunk_size": 16, "zdim": 4}),
}
#: Exported for one length.
FIXED = {
    "dynamicconv-renorm": (
        "dynamicconv",
        {"kernel_size": 5, "num_heads": 2, "renorm_padding": True, "bidirectional": True},
    ),
    "global_conv-dcls": ("global_conv", {"filter": {"name": "dcls", "kernel_count": 3, "dilated_kernel_size": 7}}),
    "hyena_nd": ("hyena_nd", {"shape": (100,), "max_length": 100}),
}


class Every(nn.Module):
    """Several layers on one input: an export takes seconds, however small it is."""

    def __init__(self, cases):
        super().__init__()
        self.parts = nn.ModuleList(build(cases, case) for case in cases)

    def forward(self, x):
        return tuple(part(x) for part in self.parts)


def build(cases, case):
    name, options = cases[case]
    return build_layer(name, D, **{"max_length": M, **options})


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@torch.no_grad()
def check(program, module, names, *inputs):
    for node in program.model_proto.graph.node:
        assert node.domain == "", node
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
    for batch in inputs:
        outputs = session.run(None, {axis.name: x.numpy() for axis, x in zip(session.get_inputs(), batch, strict=True)})
        for name, y, expected in zip(names, outputs, module(*batch), strict=True):
            assert_close(torch.from_numpy(y), expected.double(), torch.float32, name=f"{name}, {expected.shape}")


def test_every_layer_is_tested():
    tested = {name for name, _ in [*DYNAMIC.values(), *FIXED.values()]}
    assert tested | {"hyena", "attention"} == set(LAYERS)  # those are in test_export.py


@pytest.mark.parametrize("part", range(4))
def test_onnx_for_every_length(part):
    cases = dict(list(DYNAMIC.items())[part::4])
    module = Every(cases).eval()
    program = to_onnx(module, torch.randn(2, 40, D), max_length=M)
    check(program, module, cases, *([torch.randn(B, L, D)] for B, L in ((1, 1), (3, 2), (2, 197), (1, M))))


def test_onnx_for_one_length():
    module = Every(FIXED).eval()
    program = to_onnx(module, torch.randn(2, 100, D))
    check(program, module, FIXED, *([torch.randn(B, 100, D)] for B in (1, 3)))


def test_onnx_model_of_a_device_with_its_controls():
    model = MicroTCN(num_blocks=3, kernel_size=3, dilation_growth=4, width=8).eval()
    for block in model.stack.blocks:
        nn.init.normal_(block.norm.running_mean)
        nn.init.uniform_(block.norm.running_var, 0.5, 2.0)
    example = {"x": torch.randn(2, 30, 1), "controls": torch.rand(2, 2)}
    axes = {"x": {0: "batch", 1: "length"}, "controls": {0: "batch"}}
    program = to_onnx(model, example, max_length=400, axes=axes)
    inputs = [(torch.randn(B, L, 1), torch.rand(B, 2)) for B, L in ((1, 1), (3, 400))]
    check(program, lambda *batch: (model(*batch),), ["y"], *inputs)


def test_what_has_no_graph_for_every_length_or_no_standard_form_says_so():
    with pytest.raises(ValueError, match=r"^DynamicConv: what it computes depends on the size of a dynamic axis"):
        to_onnx(build(FIXED, "dynamicconv-renorm").eval(), torch.randn(2, 40, D), max_length=M)
    with pytest.raises(ValueError, match="is an operator of longconv, for which ONNX has no standard form"):
        to_onnx(build_layer("hyena_nd", D, shape=(4, 6)).eval(), torch.randn(2, 24, D))


COMPILED = {**FIXED, **DYNAMIC}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["mega", "tcnca", "dynamicconv", "micro_tcn"])
def test_compiled_for_every_length(case):
    torch._dynamo.reset()
    layer = build(DYNAMIC, case).eval()
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    for i, L in enumerate((37, 64, 101, 15)):
        x = torch.randn(2, L, D)
        with torch.compiler.set_stance("fail_on_recompile" if i else "default"):
            assert_close(compiled(x), layer(x).detach().double(), torch.float32, name=f"L = {L}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["mega", "tcnca"])
def test_compiled_with_a_state(case):
    torch._dynamo.reset()
    layer, x = build(DYNAMIC, case).eval(), torch.randn(2, 60, D)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    y, state = compiled(x[:, :40], return_state=True)
    y = torch.cat([y, layer(x[:, 40:], state=state, return_state=True)[0]], 1)
    assert_close(y, layer(x).detach().double(), torch.float32)


@pytest.mark.parametrize("case", COMPILED)
@pytest.mark.filterwarnings("ignore")
def test_compiled_forward_and_backward_are_one_graph_each(case):
    torch._dynamo.reset()
    layer = build(COMPILED, case).eval()
    x = torch.randn(2, 100, D, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    weights = [x, *layer.parameters()]
    y, expected = compiled(x), layer(x)
    assert_close(y, expected.detach().double(), torch.float32)
    grads = (torch.autograd.grad(out.square().sum(), weights) for out in (y, expected))
    for (name, _), one, other in zip([("x", x), *layer.named_parameters()], *grads, strict=True):
        assert_close(one, other.double(), torch.float32, name=name)
