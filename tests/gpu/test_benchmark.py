"""The benchmark of `fft_conv`, where it belongs."""

import pytest
import torch

from longconv.experiments.benchmarks import fftconv, gpu_report, gpu_run, harness
from longconv.experiments.benchmarks.gpu_contestants import FFT, OURS, RFFT


@pytest.mark.gpu
def test_two_points(tmp_path):
    path = tmp_path / "rows.csv"
    names = ("circular-gated-bfloat16-2048", "causal-plain-float32-512")
    rows = fftconv.run(device="cuda", points=names, minutes=5, output=path)
    assert gpu_report.read_rows(path) == rows
    assert [(r.form, r.status) for r in rows if r.implementation == OURS] == [
        (form, "ok") for form in ("circular", "causal") for _ in range(2)
    ]
    assert {OURS, FFT, RFFT, "longconv torch"} <= {r.implementation for r in rows if r.status == "ok"}
    assert all(r.floor_share > 0 and r.ms_wall > 0 for r in rows if r.status == "ok")
    ours = next(r for r in rows if r.implementation == OURS)
    result_GB = 2 * ours.B * ours.D * ours.L / 1e9
    assert ours.peak_extra_GB >= result_GB
    assert ours.copy_TBps > 0.1
    assert ours.matmul_TFLOPs > 10


@pytest.mark.gpu
def test_the_clock_leaves_launches_out():
    """Of a call of many short kernels the GPU's time is less than that of launching them."""
    device = torch.device("cuda")
    x = torch.ones(16, device=device)

    def call():
        for _ in range(100):
            x.add_(1)

    call()
    on_gpu = min(harness.time_call(call, device) for _ in range(5))
    assert 0 < on_gpu < gpu_run.wall_ms(call, on_gpu, device) * 1.5
