"""Batches by number: disjoint on several processes, and the same after a resume."""

import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from longconv.tasks import get
from longconv.tasks.lm.loader import Loader, RowBatches


def identity(rows):
    return {"rows": torch.tensor(rows)}


def loader(rows=103, batch_size=4, **options) -> Loader:
    return Loader(range(rows), identity, batch_size, **options)


def numbers(some) -> list[list[int]]:
    return [batch["rows"].tolist() for batch in some]


def test_an_epoch_has_every_row_at_most_once_and_its_own_order():
    batches = RowBatches(103, 4, seed=3)
    epochs = []
    for epoch in range(3):
        batches.set_epoch(epoch)
        epochs.append(list(batches))
        rows = [row for batch in epochs[-1] for row in batch]
        assert len(batches) == len(epochs[-1]) == 25
        assert len(set(rows)) == len(rows) == 100
        assert set(rows) <= set(range(103))
    assert epochs[0] != epochs[1] != epochs[2]
    left_out = [set(range(103)) - {row for batch in epoch for row in batch} for epoch in epochs]
    assert left_out[0] != left_out[1]
    assert list(RowBatches(103, 4, seed=4)) != epochs[0]
    assert list(RowBatches(103, 4, seed=3)) == epochs[0]
    assert list(RowBatches(5, 2, shuffle=False)) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_ranks_read_disjoint_rows_and_equally_many(world_size):
    ranks = [numbers(loader(rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {25 // world_size}
    rows = [row for batches in ranks for batch in batches for row in batch]
    assert len(set(rows)) == len(rows) == 25 // world_size * world_size * 4
    # Together they are the batches that one process has, in its order.
    merged = [batches[i] for i in range(25 // world_size) for batches in ranks]
    assert merged == numbers(loader())[: len(merged)]


def test_accelerate_deals_out_the_same_batches():
    accelerate = pytest.importorskip("accelerate")
    for world_size in (2, 3):
        for rank in range(world_size):
            plain = DataLoader(range(103), batch_sampler=RowBatches(103, 4), collate_fn=identity)
            theirs = accelerate.data_loader.prepare_data_loader(
                plain, num_processes=world_size, process_index=rank, put_on_device=False
            )
            assert numbers(theirs) == numbers(loader(rank=rank, world_size=world_size))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_from_its_state(workers):
    whole = loader(rank=1, world_size=2, seed=5)
    expected = [numbers(whole) for _ in range(3)]
    assert len(expected[0]) == 12
    assert whole.state_dict()["epoch"] == 3
    for stop in (0, 1, 7, 12):
        first = loader(rank=1, world_size=2, seed=5, workers=workers)
        numbers(first)  # one epoch
        seen = numbers(batch for _, batch in zip(range(stop), first, strict=False))
        state = first.state_dict()
        assert state["batch"] == stop
        second = loader(rank=1, world_size=2, seed=5, workers=workers)
        second.load_state_dict(state)
        assert seen + numbers(second) == expected[1]
        assert numbers(second) == expected[2]


def test_loading_uses_no_random_number_of_the_caller():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    numbers(loader())
    assert torch.equal(torch.get_rng_state(), before)


def test_ranks_from_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert numbers(loader()) == numbers(loader(rank=2, world_size=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, world_size = 2\), got 2"),
        ({"rows": 3}, "3 rows are fewer than a batch of 4"),
        ({"rows": 7, "world_size": 2}, "7 rows are not enough for a batch of 4 on each of 2 processes"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        loader(**({"rank": 0} | options))


@pytest.mark.parametrize(
    "change", [{"rows": 104}, {"batch_size": 5}, {"seed": 1}, {"world_size": 2}, {"shuffle": False}]
)
def test_a_state_of_another_loader_is_refused(change):
    with pytest.raises(ValueError, match=f"the state is of a loader with {next(iter(change))} = "):
        loader(**change).load_state_dict(loader().state_dict())


@pytest.mark.parametrize("packing", ["blocks", "documents"])
def test_the_loader_of_a_task(folder, packing):
    task = get("lm", data=folder, length=64, packing=packing, workers=1)
    loaders = [task.loader("train", 2, seed=1, rank=rank, world_size=2) for rank in range(2)]
    batches = [list(loader) for loader in loaders]
    assert len(batches[0]) == len(batches[1]) > 3
    again = task.loader("train", 2, seed=1, rank=1, world_size=2, workers=2)
    again.load_state_dict(loaders[1].state_dict() | {"epoch": 0, "batch": 2})
    for ours, expected in zip(again, batches[1][2:], strict=True):
        assert ours.keys() == expected.keys()
        assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_two_processes_with_torch_distributed(tmp_path):
    """What `torchrun` starts: ranks are those of the process group."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys, torch\n"
        "from longconv.tasks.lm.loader import Loader\n"
        "torch.distributed.init_process_group('gloo', init_method=f'file://{sys.argv[2]}', rank=int(sys.argv[1]),\n"
        "                                     world_size=2)\n"
        "print([b for b in Loader(range(20), list, 3)])\n"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "rendezvous"], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [run.communicate(timeout=100)[0].strip() for run in runs]
    assert said == [str(list(Loader(range(20), list, 3, rank=rank, world_size=2))) for rank in range(2)]
