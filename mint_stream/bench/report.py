"""README's figures, written from the committed results in `bench/results/` and from nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mint_stream.bench import report_system
from mint_stream.bench.markdown import machine_name, table

RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

DEMO_ROWS = {
    "requests_sent": "requests sent",
    "lost": "lost",
    "duplicates_visible": "doubled in the log",
    "adapters_in_largest_batch": "adapters in the largest step",
    "heldout_n": "held-out commands",
    "accuracy_before": "accuracy under revision 1 (untrained)",
    "accuracy_after": "accuracy under revision 2",
    "accuracy_after_rollback": "accuracy after the roll-back",
    "announce_to_first_token_ms": "announced to first token, ms",
    "rollback_to_effect_ms": "roll-back sent to its first answer, ms",
    "memory_mib": "memory of all processes after serving and training, MiB",
}


SIDES = {
    "ours": "ours, with the adapters",
    "base_only": "ours, base only",
    "peft": "PEFT, the same adapters",
    "transformers": "transformers' generate, base only",
    "linear_limit": "the base's linear layers alone",
    "vllm_adapters": "vLLM's CPU build, the same adapters",
    "vllm_base": "vLLM's CPU build, base only",
}


def measured(results: Path = RESULTS) -> str:
    """Every table, in Markdown. A result that was never committed is left out."""
    parts = [write(json.loads((results / name).read_text())) for name, write in SECTIONS.items() if (results / name).exists()]
    printed = results / "demo.txt"
    if printed.exists():
        parts.append("What that demo printed between its start and its summary, long lines cut:")
        parts.append(f"```\n{printed.read_text().strip()}\n```")
    return "\n\n".join(parts)


def with_figures(readme: str, figures: str) -> str:
    """The README with `figures` between its markers. Raises ValueError when it has none."""
    before, found, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the README has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{figures}\n{END}{after}"


def _demo(found: Mapping[str, Any]) -> str:
    stages = ((name, f"{seconds:.0f} s") for name, seconds in found["stage_seconds"].items())
    return "\n\n".join(
        [
            f"`mint-stream demo`, once, on {machine_name(found['machine'])}:",
            table(("what", "measured"), ((label, _number(name, found[name])) for name, label in DEMO_ROWS.items())),
            table(("where the time went", ""), stages),
        ]
    )


def _serving(found: Mapping[str, Any]) -> str:
    work = found["workload"]
    rows = ((SIDES[side], f"{v['median']:.0f}", f"{v['min']:.0f} to {v['max']:.0f}") for side, v in found["tokens_per_s"].items())
    ratios = ", ".join(f"{ratio:.2f}x {SIDES[name.removeprefix('vs_')]}" for name, ratio in found["ratios"].items())
    tokens = f"{work['prompt_tokens']} + {work['new_tokens']} tokens"
    load = f"{work['adapters']} adapters of rank {work['rank']}, {work['requests']} requests, {tokens}"
    return "\n\n".join(
        [
            f"`mint-stream bench serving`: {load}, {work['dtype']}, n = {work['repeats']}, on {machine_name(found['machine'])}:",
            table(("output tokens a second", "median", "min to max"), rows),
            f"Ours with adapters is {ratios}.",
        ]
    )


def _batcher(found: Mapping[str, Any]) -> str:
    rows = ((known, f"{v['median']:.0f}", f"{v['min']:.0f} to {v['max']:.0f}") for known, v in found["step_us"].items())
    return "\n\n".join(
        [
            f"`mint-stream bench batcher`: a full step's plan, n = {found['workload']['repeats']}, on {machine_name(found['machine'])}:",
            table(("adapters that wait", "µs a step, median", "min to max"), rows),
        ]
    )


def _catalog(found: Mapping[str, Any]) -> str:
    sizes = found["sizes"]
    columns = ("adapters", "replay, records/s", "restart, s", "resolve p50 / p99, µs", "private memory, MB", "registrar, commands/s")
    labels = ", ".join(f'"{one["adapters"]:,}"' for one in sizes)
    replay = [1e6 / one["replay_records_per_s"] for one in sizes]
    resolve = [one["resolve_us"]["p50"] for one in sizes]
    lines = (f"    line [{', '.join(f'{value:.1f}' for value in values)}]" for values in (replay, resolve))
    chart = ["```mermaid", "xychart-beta", '    title "µs a record replayed, and µs a name resolved (median), by catalog size"']
    chart += [f"    x-axis [{labels}]", f'    y-axis "µs" 0 --> {max(*replay, *resolve) * 1.2:.0f}', *lines, "```"]
    return "\n\n".join(
        [
            f"`mint-stream bench catalog --curve`: two records an adapter in the log, names resolved while "
            f"{sizes[-1]['workload']['updates_per_s']} revisions a second are applied, n = {sizes[-1]['n']}, medians, "
            f"on {machine_name(found['machine'])}:",
            table(columns, map(_catalog_row, sizes)),
            "\n".join(chart),
        ]
    )


def _catalog_row(one: Mapping[str, Any]) -> Sequence[str]:
    resolve, memory = one["resolve_us"], f"{one['extra_private_bytes'] / 1e6:.0f}"
    rates = f"{one['replay_records_per_s']:,.0f}", f"{one['warm_restart_s']:.2f}", f"{resolve['p50']:.1f} / {resolve['p99']:.1f}"
    return (f"{one['adapters']:,}", *rates, memory, f"{one['registrar_commands_per_s']:,.0f}")


SECTIONS = {
    "demo.json": _demo,
    "catalog.json": _catalog,
    "serving-float32.json": _serving,
    "serving-bfloat16.json": _serving,
    "batcher.json": _batcher,
    **report_system.SECTIONS,
}


def _number(name: str, value: float) -> str:
    return f"{value:.1%}" if name.startswith("accuracy") else f"{value:g}"
