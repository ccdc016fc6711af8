"""What planning a step costs, by how many adapters are known: the batcher alone, in microseconds a step."""

import time
from typing import Any

from mint_stream.app.measure import machine, spread, versions
from mint_stream.engine.batcher import Batcher, Budgets, Waiting

KNOWN_ADAPTERS = (100, 1_000, 10_000, 100_000)
STEPS = 300
PROMPT_TOKENS, NEW_TOKENS = 64, 16


def run(repeats: int = 5) -> dict[str, Any]:
    """Steps of a full batch while sequences of `known` adapters, each with one of its own, wait for a place."""
    budgets = Budgets()
    found = {known: [_step_us(budgets, known) for _ in range(repeats + 1)][1:] for known in KNOWN_ADAPTERS}
    fewest = spread(found[KNOWN_ADAPTERS[0]])["median"]
    return {
        "workload": {"steps": STEPS, "repeats": repeats, "max_num_seqs": budgets.max_num_seqs, "max_adapters": budgets.max_adapters},
        "step_us": {str(known): spread(values) for known, values in found.items()},
        "ratios": {f"{known}_to_{KNOWN_ADAPTERS[0]}": spread(found[known])["median"] / fewest for known in KNOWN_ADAPTERS[1:]},
        "machine": machine(),
        "versions": versions("mint-stream"),
    }


def _step_us(budgets: Budgets, known: int) -> float:
    batcher = Batcher(budgets)
    for key in range(known):
        batcher.add(Waiting(key, PROMPT_TOKENS, f"adapter-{key}", "online", arrived_at_s=0.0))
    drawn: dict[int, int] = {}
    arrivals = known
    begun = time.perf_counter()
    for _ in range(STEPS):
        for rows in batcher.step(now_s=0.0).rows:
            drawn[rows.key] = drawn.get(rows.key, 0) + rows.samples
            if drawn[rows.key] == NEW_TOKENS:
                batcher.remove(rows.key)
                batcher.add(Waiting(arrivals, PROMPT_TOKENS, f"adapter-{arrivals % known}", "online", arrived_at_s=0.0))
                arrivals += 1
    return (time.perf_counter() - begun) / STEPS * 1e6
