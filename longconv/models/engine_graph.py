"""Steps of a `DecodeEngine` as CUDA graphs: one launch for a token of all slots, instead of some hundred."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Runs before a capture: kernels are compiled and chosen, and libraries take their workspaces.
WARM_UPS = 2


class Graphs:
    """Graphs of `advance(rows, width)`, captured when they are first needed.

    Args:
        advance: tensor operations that read and write static memory only, and never look at a value.
        tensors: all that it changes.
    """

    def __init__(self, advance: Callable[[int, int], None], tensors: Sequence[Tensor]) -> None:
        self._advance, self._tensors = advance, tensors
        self._graphs: dict[tuple[int, int], torch.cuda.CUDAGraph] = {}
        # No graph leaves anything in the pool for another one, so all can use the same memory.
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, rows: int, width: int) -> None:
        """Do what `advance(rows, width)` does."""
        if (rows, width) not in self._graphs:
            self._graphs[rows, width] = self._capture(rows, width)
        self._graphs[rows, width].replay()

    def _capture(self, rows: int, width: int) -> torch.cuda.CUDAGraph:
        device = self._tensors[0].device
        before = [t.cpu() for t in self._tensors]  # not on the GPU, which may be full of states
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._advance(rows, width)
        torch.cuda.current_stream(device).wait_stream(side)
        for tensor, value in zip(self._tensors, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            self._advance(rows, width)
        return graph
