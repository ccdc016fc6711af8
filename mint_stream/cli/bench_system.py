"""`mint-stream bench handoff | rollback | routing | bus`: measurements of the whole system, on a broker and processes of its own."""

import asyncio
from typing import Annotated

import typer

from mint_stream.cli.options import AsJson, BaseName, Home, settings_from
from mint_stream.cli.output import print_json, print_table

system = typer.Typer()


@system.command()
def handoff(
    revisions: Annotated[int, typer.Option(min=1, help="Revisions trained and handed over.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps for each revision.")] = 2,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Repetitions of the full-checkpoint baselines.")] = 5,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """From the last optimizer step to a client's first token of the new revision, beside merging and reloading a full checkpoint."""
    from mint_stream.bench.handoff import Size, run

    found = asyncio.run(run(settings_from(base=base, home=home), Size(revisions, steps, rank, prompt_tokens, repeats)))
    if as_json:
        return print_json(found)
    figures = ("handoff_ms", "prefill_ms", "baseline_cold_ms", "baseline_warm_ms")
    print_table(("ms", "p50", "p99"), [(name.removesuffix("_ms"), *(f"{found[name][p]:.1f}" for p in ("p50", "p99"))) for name in figures])
    print_table((), [(f"stage, ms: {name}", f"{ms:.1f}") for name, ms in found["stages_ms"].items()])
    return print_table((), [(name, f"{ratio:.1f}x") for name, ratio in found["ratios"].items()])
