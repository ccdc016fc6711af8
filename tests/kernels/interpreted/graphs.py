"""Decode graphs over the Triton kernels by triton's interpreter. Run by tests/kernels/test_interpreted.py, in a process of their own.

A graph that is replayed here is the same Python again, which reads the tables as kernels do, and of the pass itself what was there when
it was captured. So a number that a graph would not see is not seen here either.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mint_stream.adapter import AdapterBlock
from mint_stream.engine.batcher import Budgets
from mint_stream.engine.graphs import EagerGraphs
from mint_stream.engine.runner import Runner
from mint_stream.model.base import load_base
from tests.engine.test_parity import _forced, _sequence
from tests.factories import random_weights, tiny_base

BUDGETS = Budgets(max_num_seqs=3, max_num_batched_tokens=12, max_adapters=3)


@pytest.mark.long
@pytest.mark.timeout(170)
@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_whole_engine_with_graphs_gives_the_logits_that_it_gives_without(kind: str, tmp_path: Path) -> None:
    base = load_base(tiny_base(tmp_path / "base", kind), dtype=torch.float32)
    linears = {path: shape for path, shape in base.linears.items() if path != base.output_head}
    blocks = [AdapterBlock.build(random_weights(linears, rank=rank, seed=rank)) for rank in (2, 20)] + [None]
    tokens = [[(13 * key + 7 * at) % 256 for at in range(9 + 2 * key)] for key in range(4)]

    def logits(warm: Callable[[Runner], None]) -> tuple[dict[tuple[int, int], Tensor], int]:
        runner = Runner(base, 3, 48, 1 << 24, EagerGraphs())
        warm(runner)
        sequences = [(_sequence(key, ids, 5, blocks[key % 3]), ids) for key, ids in enumerate(tokens)]
        found = {(key, at): row.clone() for key, at, row in _forced(runner, BUDGETS, sequences)}
        return found, 0 if runner.decode_graphs is None else runner.decode_graphs.replayed

    asked, none = logits(lambda _: None)
    replayed, some = logits(Runner.warm_up)
    assert none == 0 and some >= 5 and asked.keys() == replayed.keys()
    for place, row in asked.items():
        torch.testing.assert_close(replayed[place], row, atol=1e-4, rtol=1e-4)


@pytest.mark.long
@pytest.mark.timeout(170)
@pytest.mark.parametrize(
    ("changes", "named"),
    [({"head_dim": 18}, "attention over heads of 18 numbers in float32"), ({"intermediate_size": 70}, "mlp.gate_proj (48 to 70) first")],
)
def test_a_base_that_the_kernels_cannot_read_whole_says_so_at_its_start_and_answers_without_graphs(
    changes: dict[str, int], named: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = load_base(tiny_base(tmp_path / "base", **changes), dtype=torch.float32)
    linears = {path: shape for path, shape in base.linears.items() if path != base.output_head}
    block, tokens = AdapterBlock.build(random_weights(linears, rank=3, seed=1)), [(7 * at) % 256 for at in range(12)]

    def logits(runner: Runner) -> Tensor:
        runner.warm_up()
        sequences = [(_sequence(key, tokens, 5, [None, block][key]), tokens) for key in range(2)]
        return torch.stack([row.clone() for _, _, row in sorted(_forced(runner, BUDGETS, sequences), key=lambda found: found[:2])])

    slots = logits(Runner(base, 3, 48))
    device = Runner(base, 3, 48, 1 << 24, EagerGraphs())
    torch.testing.assert_close(logits(device), slots, atol=1e-4, rtol=1e-4)
    assert device.decode_graphs is None and named in caplog.text and "LlamaForCausalLM: decode steps have no graphs" in caplog.text
