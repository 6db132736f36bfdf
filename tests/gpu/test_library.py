"""What the CPU suite shows, once more on a GPU: the operator in every dtype, a layer as a stream, generation."""

import numerics
import pytest
import torch

from longconv.distill import distill
from longconv.functional import OnlineConv, fft_conv, fft_conv_chunk
from longconv.layers import Hyena
from longconv.models import LongConvConfig, LongConvForCausalLM

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("L", [1, 65, 1021, 20_011])
def test_fft_conv(L, circular, dtype):
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    u, pre_gate, post_gate = (torch.randn(3, 2, L, device="cuda").to(dtype).requires_grad_() for _ in range(3))
    k, k_reverse = ((torch.randn(2, L, device="cuda") / L**0.5).to(wide).requires_grad_() for _ in range(2))
    skip = torch.randn(2, device="cuda").to(wide).requires_grad_()
    inputs = (u, k, skip, k_reverse, pre_gate, post_gate)
    dy = torch.randn(3, 2, L, device="cuda").to(dtype)

    def run(tensors, impl):
        u, k, skip, k_reverse, pre_gate, post_gate = tensors
        y = fft_conv(
            u, k, skip=skip, k_reverse=k_reverse, circular=circular, pre_gate=pre_gate, post_gate=post_gate, impl=impl
        )
        return y, torch.autograd.grad(y, tensors, dy.to(y.dtype))

    y, grads = run(inputs, "torch")
    expected, expected_grads = run(tuple(x.detach().double().requires_grad_() for x in inputs), "reference")
    assert y.dtype == dtype
    numerics.assert_close(y, expected)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        if L > 1 or circular:  # at L = 1 no anti-causal tap reaches a sample
            numerics.assert_close(grad, wanted)


def test_autocast():
    u, k = torch.randn(2, 3, 500, device="cuda"), torch.randn(3, 500, device="cuda") / 20
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = fft_conv(u, k)
    assert y.dtype == torch.bfloat16
    numerics.assert_close(y, fft_conv(u, k))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_online_conv_and_chunks(dtype):
    v, k = torch.randn(2, 3, 900, device="cuda").to(dtype), torch.randn(3, 900, device="cuda") / 30
    k = k.double() if dtype == torch.float64 else k
    expected = fft_conv(v, k)
    y, state = fft_conv_chunk(v[..., :100], k)
    outputs, state = [y], OnlineConv(k, v[..., :100]).map(lambda t: t.cpu(), constants=True)
    state = state.map(lambda t: t.cuda(), constants=True)
    for v_t in v[..., 100:600].unbind(-1):
        y_t, state = state.step(v_t)
        outputs.append(y_t[..., None])
    for piece in (v[..., 600:650], v[..., 650:]):
        y, state = state.extend(piece)
        outputs.append(y)
    numerics.assert_close(torch.cat(outputs, -1), expected)


def test_a_layer_on_another_stream_and_step_by_step():
    torch.manual_seed(0)
    layer = Hyena(16, max_length=300).cuda()
    x = torch.randn(2, 200, 16, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        whole = layer(x)
        y, state = layer(x[:, :150], return_state=True)
        out = [y]
        for t in range(150, 200):
            y_t, state = layer.step(x[:, t], state)
            out.append(y_t[:, None])
    stream.synchronize()
    numerics.assert_close(torch.cat(out, 1), whole)


def test_a_model_distils_and_generates():
    config = LongConvConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, max_position_embeddings=200)
    model = LongConvForCausalLM(config).eval().cuda()
    student, _ = distill(model, tol=1e-6)
    assert student.device.type == "cuda"
    prompt = torch.randint(0, 50, (2, 30), device="cuda")
    out = [m.generate(prompt, max_new_tokens=20, do_sample=False) for m in (model, student)]
    assert torch.equal(*out)
