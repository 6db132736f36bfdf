"""The benchmark of decoding, where CUDA graphs replay its tokens."""

import pytest
import torch
from numerics import assert_close

from longconv.experiments.benchmarks import decode, decode_measure, decode_report
from longconv.experiments.benchmarks.decode_contestants import CONTESTANTS, GPT2, ONLINE, SIZES, build
from longconv.experiments.benchmarks.report import read_rows


@pytest.mark.gpu
def test_a_run(tmp_path):
    path = tmp_path / "rows.csv"
    rows = decode.run(smoke=True, device="cuda", contexts=(64, 128), memory_gb=0.05, output=path)
    assert read_rows(path, decode_report.DecodeRow) == rows
    assert [row.status for row in rows] == ["ok"] * 2 * 2 * len(CONTESTANTS)
    assert {r.launches for r in rows if r.contestant == ONLINE} == {"eager"}
    assert {r.launches for r in rows if r.contestant not in (ONLINE, GPT2)} == {"replayed"}
    assert all(r.dtype == "bfloat16" and r.state_dtype == "complex64" for r in rows)
    for row in rows:
        assert row.batch * row.state_MB <= row.peak_MB <= 1e3 * row.memory_GB


@pytest.mark.gpu
@torch.inference_mode()
def test_a_replayed_token_is_the_token():
    """From one state, an eager token and a replayed one; the gate compares the latter with the forward pass."""
    device, size = torch.device("cuda"), SIZES["tiny"]
    for decoder in build(size, CONTESTANTS, 5, decode_measure.GATE_LIMIT, decode_measure.GATE_LIMIT, device):
        decode_measure.check(decoder, size.vocabulary, device)
        ids = torch.randint(0, size.vocabulary, (3, 40), device=device)
        eager, replayed = (
            decode_measure.Token(decoder, decoder.prefill(ids, decode_measure.SPARE), ids[:, 0]) for _ in range(2)
        )
        if decoder.fixed_step and replayed.try_capture():
            assert replayed.launches == "replayed"
            eager()
            replayed()
            assert_close(replayed.logits, eager.logits.double())
