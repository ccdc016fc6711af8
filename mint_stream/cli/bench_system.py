"""`mint-stream bench handoff | rollback | routing | rl | bus`: measurements of the whole system, on a broker and processes of its own."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from mint_stream.cli.options import AsJson, BaseName, Bootstrap, Home, settings_from
from mint_stream.cli.output import print_json, print_table
from mint_stream.messages.training import PolicyLoss

system = typer.Typer()


def _print_percentiles(found: Mapping[str, Any], figures: Sequence[str]) -> None:
    print_table(
        ("ms", "p50", "p99"), [(name.removesuffix("_ms"), *(f"{found[name][part]:.1f}" for part in ("p50", "p99"))) for name in figures]
    )


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
    _print_percentiles(found, ("handoff_ms", "prefill_ms", "baseline_cold_ms", "baseline_warm_ms"))
    print_table((), [(f"stage, ms: {name}", f"{ms:.1f}") for name, ms in found["stages_ms"].items()])
    return print_table((), [(name, f"{ratio:.1f}x") for name, ratio in found["ratios"].items()])


@system.command()
def rollback(
    rollbacks: Annotated[int, typer.Option(min=1, help="Roll-backs that are timed.")] = 30,
    every_ms: Annotated[float, typer.Option(min=1, help="A request of the stream every so many milliseconds.")] = 50.0,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 16,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """From a roll-back's command to the first result of the previous revision, under a steady stream of requests."""
    from mint_stream.bench.rollback import Size, run

    found = asyncio.run(run(settings_from(base=base, home=home), Size(rollbacks, every_ms, rank, prompt_tokens)))
    if as_json:
        return print_json(found)
    return _print_percentiles(found, ("effect_ms", "in_force_ms", "event_ms", "request_ms", "request_alone_ms"))


@system.command()
def routing(
    adapters: Annotated[int, typer.Option(min=1, help="Adapters that the requests ask for in turn.")] = 4,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a round.")] = 12,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(min=1)] = 16,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 5,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """What of a request's latency is not the engine's, and how a server of full checkpoints does with the same requests."""
    from mint_stream.bench.routing import Size, run

    found = asyncio.run(run(settings_from(base=base, home=home), Size(adapters, requests, prompt_tokens, new_tokens, rank, rounds)))
    if as_json:
        return print_json(found)
    print_table(
        (),
        [
            ("share of latency", f"{found['share_of_latency']:.1%}"),
            ("full checkpoint server takes", f"{found['ratio_vs_full_checkpoint_server']:.1f}x"),
        ],
    )
    _print_percentiles(found, ("served_ms", "direct_ms"))
    return print_table((), [(f"stage, ms: {name}", f"{ms:.1f}") for name, ms in found["stages_ms"].items()])


@system.command()
def rl(
    heldout: Annotated[int, typer.Option(min=2, help="Items the policy is judged by before and after; 128 to say it improved.")] = 160,
    warmup_steps: Annotated[int, typer.Option(min=1, help="Steps of supervised warm-up.")] = 12,
    steps: Annotated[int, typer.Option(min=1, help="Steps that learn from graded answers.")] = 20,
    questions: Annotated[int, typer.Option(min=1, help="Questions of a step.")] = 8,
    group_size: Annotated[int, typer.Option(min=2, help="Answers to each.")] = 8,
    rate: Annotated[float, typer.Option(help="Learning rate of those steps.")] = 2e-4,
    loss: Annotated[PolicyLoss, typer.Option()] = "ppo",
    max_staleness: Annotated[int, typer.Option(min=0, help="Revisions that answers may be behind.")] = 1,
    data_only: Annotated[Path | None, typer.Option(help="Only write the data here, for `jobs submit`.")] = None,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """What a policy scores on held-out questions before and after it learned from graded answers of its own, all over Kafka."""
    from mint_stream.bench.rl import Size, run
    from mint_stream.bench.rl_data import write_data

    if data_only is not None:
        data = write_data(data_only, heldout)
        return typer.echo(f"{data.warm_up_uri} for sft, {data.questions_uri} for grpo with grader exact-match")
    size = Size(heldout=heldout, warmup_steps=warmup_steps, steps=steps, questions=questions, group_size=group_size, rate=rate)
    found = asyncio.run(run(settings_from(base=base, home=home), replace(size, loss=loss, max_staleness=max_staleness)))
    if as_json:
        return print_json(found)
    low, high = found["gain_interval_95"]
    print_table(
        (),
        [
            ("held-out items", found["n"]),
            ("score before", f"{found['score_before']:.1%}"),
            ("score after", f"{found['score_after']:.1%}"),
            ("gain, 95 % of its mean over pairs", f"{low:+.1%} to {high:+.1%}"),
        ],
    )
    return print_table((), [(f"seconds: {part}", f"{seconds:.0f}") for part, seconds in found["seconds"].items()])


@system.command()
def bus(
    requests: Annotated[int, typer.Option(min=1, help="Requests of a round, one at a time.")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds of each side.")] = 5,
    backlog: Annotated[int, typer.Option(min=100, help="Requests that wait in the log when the worker starts.")] = 100_000,
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """The serving worker around an engine that only echoes, beside raw aiokafka: round trips, and how fast a backlog is drained."""
    from mint_stream.bench.bus import Size, run

    found = asyncio.run(run(settings_from(bootstrap), Size(requests, rounds, backlog)))
    if as_json:
        return print_json(found)
    print_table(
        ("round trip, ms", "p50", "p99"),
        [(side, f"{trip['p50']:.1f}", f"{trip['p99']:.1f}") for side, trip in found["round_trip_ms"].items()],
    )
    print_table(
        ("requests/s", "median", "min", "max"),
        [(side, *(f"{rate[name]:.0f}" for name in ("median", "min", "max"))) for side, rate in found["sustained_per_s"].items()],
    )
    return print_table(
        (), [("round trip, ratio", f"{found['latency_ratio']['median']:.2f}"), ("sustained, share", f"{found['sustained_share']:.0%}")]
    )
