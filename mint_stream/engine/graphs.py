"""Work that is recorded once and then done again over the same memory, with what was put there meanwhile."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

Work = Callable[[], None]


class Graphs(Protocol):
    """Records work. What it reads and writes has to stay where it is; numbers that Python reads while it is recorded are for ever."""

    def captured(self, work: Work) -> Work:
        """Do the work once, then give something that does it again."""


class EagerGraphs:
    """For machines without CUDA, and for tests: the same Python runs again, over the same memory."""

    def captured(self, work: Work) -> Work:
        """The work itself."""
        work()
        return work


class CudaGraphs:
    """CUDA graphs that share one pool of memory: they are replayed one after the other, never at once."""

    def __init__(self) -> None:
        self._pool: Any = None

    def captured(self, work: Work) -> Work:
        """Compile and place what the work needs by doing it, then record it."""
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            work()
        self._pool = graph.pool() if self._pool is None else self._pool
        return graph.replay
