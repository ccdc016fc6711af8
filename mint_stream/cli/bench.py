"""`mint-stream bench NAME`: measurements that say on which machine and with which versions they were made."""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from mint_stream.cli.options import AsJson, BaseName, Bootstrap, Home, settings_from
from mint_stream.cli.output import print_json, print_table

bench = typer.Typer(no_args_is_help=True, help="Measure this machine, the baseline beside it.")

Precision = Literal["float32", "bfloat16", "float16"]


@bench.command()
def serving(
    adapters: Annotated[int, typer.Option(min=1, help="Distinct adapters among the requests.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 32,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 64,
    new_tokens: Annotated[int, typer.Option(min=1)] = 64,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds of each side.")] = 5,
    dtype: Annotated[Precision, typer.Option()] = "float32",
    vllm_python: Annotated[Path | None, typer.Option(help="The python of an environment with vLLM's CPU build, to measure it too.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where the time of a decode step goes.")] = False,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Tokens per second: many adapters in the batch, none, and what PEFT, transformers and the linear layers alone do beside it."""
    from mint_stream.bench.serving import Load, run
    from mint_stream.model.pull import resolve_base

    settings = settings_from(base=base, home=home)
    path = resolve_base(settings.base, settings.home)
    found = run(path, Load(adapters, requests, prompt_tokens, new_tokens, rank, dtype, repeats), vllm_python, profile)
    if as_json:
        return print_json(found)
    sides = found["tokens_per_s"]
    columns = ("tokens/s", *next(iter(sides.values())))
    print_table(columns, [(side, *(f"{value:.4g}" for value in values.values())) for side, values in sides.items()])
    ratios = [(name, f"{value:.2f}x") for name, value in found["ratios"].items()]
    step = [(f"decode step, ms: {part}", f"{ms:.1f}") for part, ms in found.get("decode_step", {}).items()]
    facts = [(name, value) for part in ("workload", "machine", "versions") for name, value in found[part].items()]
    return print_table((), [*ratios, *step, *facts])


@bench.command()
def training(
    jobs: Annotated[int, typer.Option(min=1, help="Adapters trained at once.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps of each.")] = 40,
    tokens: Annotated[int, typer.Option(min=4, help="Tokens of a step.")] = 64,
    rank: Annotated[int, typer.Option(min=1)] = 8,
    dtype: Annotated[Precision, typer.Option()] = "float32",
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds of each of our sides; PEFT runs once a job.")] = 5,
    curve: Annotated[str, typer.Option(help="Tokens a step at which to compare as well, with commas between.")] = "16,64,256,1024",
    curve_steps: Annotated[int, typer.Option(min=1, help="Steps at each of them.")] = 3,
    base: BaseName = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Seconds: jobs together on one base, the same jobs one after another, and a PEFT process for each."""
    from mint_stream.bench.training import run
    from mint_stream.bench.training_jobs import Load
    from mint_stream.model.pull import resolve_base

    settings = settings_from(base=base, home=home)
    widths = tuple(int(one) for one in curve.split(",") if one.strip())
    path = resolve_base(settings.base, settings.home)
    found = run(path, Load(jobs, steps, tokens, rank, dtype, repeats, widths, curve_steps))
    if as_json:
        return print_json(found)
    ratios = [(name, f"{value:.2f}x") for name, value in found["ratios"].items()]
    at = [
        (f"vs_own_sequential at {tokens} tokens a step", f"{one['median']:.2f}x")
        for tokens, one in found["curve_vs_own_sequential"].items()
    ]
    facts = [(name, found[name]) for name in ("jobs", "isolation_bitwise", "resident_bytes", "seconds", "peft_process_s")]
    about = [(name, value) for part in ("workload", "machine", "versions") for name, value in found[part].items()]
    return print_table((), [*ratios, *at, *facts, *about])


@bench.command()
def kernels(
    repeats: Annotated[int, typer.Option(min=5, help="Measured replays of each graph.")] = 7,
    dtype: Annotated[Precision, typer.Option()] = "bfloat16",
    with_sweep: Annotated[bool, typer.Option("--sweep/--no-sweep", help="Also measure every shape of the sweep.")] = True,
    as_json: AsJson = False,
) -> None:
    """LoRA kernels on a GPU: microseconds, and the fraction of its copy bandwidth. Needs a CUDA device."""
    from mint_stream.bench.kernels import run

    found = run(dtype, repeats, with_sweep)
    if as_json:
        return print_json(found)
    columns = ("inputs", "outputs", "rank", "rows", "adapters", "popularity", "µs", "of copy bandwidth")
    print_table(columns, [_kernel_row(one) for one in (*found["layer"], *found["sweep"])])
    facts = [(name, value) for part in ("machine", "versions") for name, value in found[part].items()]
    return print_table((), [("copy bandwidth, GB/s", f"{found['copy_gb_per_s']:.0f}"), *facts])


def _kernel_row(one: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table; all sites of a layer are one line."""
    case, whole = one["cases"][0], len(one["cases"]) > 1
    shape = ("all of an 8B layer", "") if whole else (str(case["inputs"]), "+".join(str(width) for width in case["outputs"]))
    shared = (str(case[name]) for name in ("rank", "rows", "adapters", "popularity"))
    return (*shape, *shared, f"{one['us']['ours']['median']:.1f}", f"{one['fraction_of_copy']['ours']:.0%}")


@bench.command()
def batcher(
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds.")] = 5,
    as_json: AsJson = False,
) -> None:
    """What planning a step costs while sequences of 100 to 100,000 adapters wait."""
    from mint_stream.bench.batcher import run

    found = run(repeats)
    if as_json:
        return print_json(found)
    sizes = found["step_us"]
    columns = ("adapters", *(f"{name}, µs a step" for name in next(iter(sizes.values()))))
    print_table(columns, [(known, *(f"{value:.1f}" for value in values.values())) for known, values in sizes.items()])
    return print_table((), [(name, value) for part in ("workload", "machine", "versions") for name, value in found[part].items()])


@bench.command()
def consistency(
    publishes: Annotated[int, typer.Option(min=1, help="Revisions announced, over all adapters.")] = 1000,
    adapters: Annotated[int, typer.Option(min=1, help="Adapters, each with a publisher of its own.")] = 20,
    workers: Annotated[int, typer.Option(min=1, help="Serving workers of one pool.")] = 2,
    with_model: Annotated[bool, typer.Option("--with-model", help="The base computes and reuses prefixes; else a hash answers.")] = False,
    base: BaseName = None,
    home: Home = None,
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """Publish under load and check every answer: none older than asked for, none of two revisions, no error. Exit code 1 when one is."""
    from mint_stream.bench.consistency import Load, run

    found = asyncio.run(run(settings_from(bootstrap, base=base, home=home), Load(publishes, adapters, workers), with_model))
    if as_json:
        print_json(found)
    else:
        counted = [(name, found[name]) for name in ("publishes", "moves", "requests", "distinct_witnesses", "reused_prompt_tokens")]
        facts = [(name, value) for part in ("answers_by_worker", "machine", "versions") for name, value in found[part].items()]
        print_table((), [*counted, *found["findings"].items(), ("seconds", f"{found['seconds']:.1f}"), *facts])
    if any(found["findings"].values()):
        raise typer.Exit(1)


@bench.command()
def catalog(
    adapters: Annotated[int, typer.Option(min=1, help="Adapters in the log.")] = 100_000,
    whole_curve: Annotated[bool, typer.Option("--curve", help="10^3, 10^4, 10^5 and 10^6 adapters instead, one after another.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Measured rounds of each side.")] = 5,
    directory: Annotated[Path | None, typer.Option("--dir", help="Keep the broker with its log here, to be filled only once.")] = None,
    as_json: AsJson = False,
) -> None:
    """A catalog of many adapters: replay, restart, resolve under updates, memory, and commands a second of its registrar."""
    from mint_stream.bench.catalog import Load, curve, run

    found = curve(repeats=repeats, directory=directory) if whole_curve else run(Load(adapters, repeats), directory)
    if as_json:
        return print_json(found)
    columns = ("adapters", "replay, records/s", "restart, s", "resolve p50, µs", "p99, µs", "private, MB", "commands/s")
    print_table(columns, [_catalog_row(one) for one in found.get("sizes", [found])])
    return print_table((), [(name, value) for part in ("machine", "versions") for name, value in found[part].items()])


def _catalog_row(one: dict[str, Any]) -> tuple[str, ...]:
    resolve = one["resolve_us"]
    figures = (one["replay_records_per_s"], one["warm_restart_s"], resolve["p50"], resolve["p99"], one["extra_private_bytes"] / 1e6)
    return (str(one["adapters"]), *(f"{value:.4g}" for value in (*figures, one["registrar_commands_per_s"])))


@bench.command()
def report(
    readme: Annotated[Path, typer.Argument(help="The file with the measured-markers in it.")] = Path("README.md"),
    check: Annotated[bool, typer.Option("--check", help="Only say whether it is up to date; exit code 1 when not.")] = False,
) -> None:
    """Write the committed results of the benchmarks and of the demo into the README."""
    from mint_stream.bench.report import measured, with_figures

    found = readme.read_text()
    wanted = with_figures(found, measured())
    if check and wanted != found:
        typer.echo(f"{readme} does not show the committed results: run `mint-stream bench report`", err=True)
        raise typer.Exit(1)
    if not check:
        readme.write_text(wanted)
    typer.echo(f"{readme} shows the committed results")
