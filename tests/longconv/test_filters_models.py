"""Every filter inside a model: saved and loaded to the bit, its norm or window included, and decoded as a stream."""

import pytest
import torch
import transformers
from numerics import assert_close

from longconv.filters import FILTERS
from longconv.models import LongConvConfig, LongConvForCausalLM

transformers.utils.logging.disable_progress_bar()

SPECS = {
    "dcls": {"kernel_count": 3, "dilated_kernel_size": 9},
    "ema": {"order": 4},
    "freeform": {"modulate": True},
    "hyena": {"order": 8},
    "modal": {"order": 3},
    "rtf": {"order": 4, "init": "montel", "constraint": "l1_montel"},
    "s4d": {"state_size": 4},
    "sgconv": {"kernel_dim": 8},
    "smpconv": {"points": 5, "radius": 0.2},
}


def build(name):
    config = LongConvConfig(
        vocab_size=23,
        hidden_size=8,
        num_hidden_layers=2,
        mixers="hyena",
        mixer_options={"hyena": {"filter": {"name": name, **SPECS[name]}}},
        max_position_embeddings=40,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return LongConvForCausalLM(config).eval()


def marks(model):
    return {name: p._optim for name, p in model.named_parameters() if hasattr(p, "_optim")}


@pytest.mark.parametrize("name", FILTERS)
def test_saved_loaded_and_streamed(name, tmp_path):
    model, ids = build(name), torch.randint(2, 23, (2, 37))
    model.save_pretrained(tmp_path / "fresh")  # before any forward pass
    logits = model(ids).logits
    fresh = LongConvForCausalLM.from_pretrained(tmp_path / "fresh").eval()
    assert torch.equal(fresh(ids).logits, logits)
    assert marks(fresh) == marks(model)
    with torch.no_grad():
        for filter in (block.mixer.long_filters[0] for block in model.base_model.layers):
            for p in filter.parameters():
                p.mul_(1.1)
    logits = model(ids).logits
    model.save_pretrained(tmp_path / "trained")
    trained = LongConvForCausalLM.from_pretrained(tmp_path / "trained").eval()
    assert torch.equal(trained(ids).logits, logits)
    half = LongConvForCausalLM.from_pretrained(tmp_path / "trained", dtype=torch.bfloat16)
    for block, ours in zip(half.base_model.layers, model.base_model.layers, strict=True):
        for key, tensor in block.mixer.long_filters.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, ours.mixer.long_filters.state_dict()[key])
    with torch.no_grad():
        out = model(ids[:, :20], use_cache=True)
        pieces, cache = [out.logits], out.past_key_values
        for t in range(20, 37):
            out = model(ids[:, t : t + 1], past_key_values=cache)
            pieces.append(out.logits)
    assert_close(torch.cat(pieces, dim=1), logits.detach().double(), torch.float32)
