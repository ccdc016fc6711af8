"""`mint-stream jobs`: submit training jobs, watch them, pause and cancel them, look back on them."""

import getpass
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from mint_stream.cli.curve import curve
from mint_stream.cli.options import NEW_RULE, AsJson, Bootstrap, Pool, settings_from
from mint_stream.cli.output import print_json, print_table
from mint_stream.cli.running import ask
from mint_stream.cli.watching import eta, watch_job
from mint_stream.errors import InvalidJob
from mint_stream.messages.adapters import PromotionRule
from mint_stream.messages.training import Hyperparameters, LoraSettings, Method, PolicyLoss, RolloutTerms, TrainingEvent, TrainingJob
from mint_stream.settings import Settings

jobs = typer.Typer(no_args_is_help=True, help="Submit, watch, pause, resume, cancel, list, show and look back on training jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]
Why = Annotated[str, typer.Option("--reason", help="Why, for the job's history.")]
COLUMNS = ("job", "adapter", "state", "step", "loss", "eta", "revision", "why")
Schedule = Literal["constant", "linear", "cosine"]
METHODS = "sft: learn what the lines say; dpo: prefer `chosen` to `rejected`; grpo: learn from graded answers of its own."
PUBLISHING = "Steps between revisions; default: one at the end, with grpo one a step, for they draw its answers."
GRADERS = "Who scores answers; grpo has to have one: exact-match, contains, regex, reasoning-gym:TASK, or an installed one."


@jobs.command()
def submit(
    adapter_id: Annotated[str, typer.Argument(metavar="ADAPTER", help="The adapter to train.")],
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="JSON lines: a file, which is put into the store, or a uri.")],
    method: Annotated[Method, typer.Option(help=METHODS)] = "sft",
    dpo_beta: Annotated[float, typer.Option(help="How much a preference outweighs staying near the start; dpo only.")] = 0.1,
    grader: Annotated[str | None, typer.Option(help=GRADERS)] = None,
    loss: Annotated[PolicyLoss, typer.Option(help="What turns advantages into a gradient; grpo only.")] = "ppo",
    group_size: Annotated[int, typer.Option(min=2, help="Answers drawn to each question; grpo only.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer; grpo only.")] = 64,
    temperature: Annotated[float, typer.Option(help="Answers are drawn at; grpo only.")] = 1.0,
    max_staleness: Annotated[int, typer.Option(min=0, help="Revisions that answers may be behind; grpo only.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Optimizer steps.")] = 100,
    batch_size: Annotated[int, typer.Option(min=1, help="Lines of a step: examples, pairs, or questions.")] = 8,
    learning_rate: Annotated[float, typer.Option("--learning-rate", "--lr")] = 2e-4,
    warmup_steps: Annotated[int, typer.Option(min=0)] = 0,
    schedule: Annotated[Schedule, typer.Option()] = "linear",
    rank: Annotated[int, typer.Option(min=1)] = 8,
    alpha: Annotated[float, typer.Option()] = 16.0,
    dropout: Annotated[float, typer.Option(min=0.0)] = 0.0,
    rslora: Annotated[bool, typer.Option("--rslora", help="Scale by alpha / sqrt(rank).")] = False,
    target: Annotated[list[str] | None, typer.Option(help="A module to adapt, repeatable; default: every linear layer.")] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Longest example, in tokens.")] = 1024,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    parent: Annotated[int | None, typer.Option(min=1, help="Go on from this revision; default: start fresh.")] = None,
    publish_every: Annotated[int | None, typer.Option(min=1, help=PUBLISHING)] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 50,
    tenant: Annotated[str, typer.Option(help="Whose job it is: turns and quotas are by tenant.")] = "default",
    priority: Annotated[int, typer.Option(min=-10, max=10, help="Higher is trained first where seats are short.")] = 0,
    rule: Annotated[PromotionRule | None, typer.Option(help=NEW_RULE)] = None,
    job_id: Annotated[str | None, typer.Option(help="Your own id: submitting it again starts nothing new.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay until the job ends.")] = False,
    bootstrap: Bootstrap = None,
    pool: Pool = None,
    as_json: AsJson = False,
) -> None:
    """Write a training job. It runs when a training worker of the pool takes it."""
    from mint_stream.client.requests import made, new_id, now_ms

    settings = settings_from(bootstrap, pool)
    lora = made(
        LoraSettings,
        InvalidJob,
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        use_rslora=rslora,
        target_modules=tuple(target) if target else "all-linear",
    )
    hyperparameters = made(
        Hyperparameters,
        InvalidJob,
        steps=steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=warmup_steps,
        schedule=schedule,
        max_length_tokens=max_length,
        dpo_beta=dpo_beta,
    )
    drawn = {"loss": loss, "group_size": group_size, "max_tokens": max_tokens, "temperature": temperature, "max_staleness": max_staleness}
    rollouts = None if grader is None else made(RolloutTerms, InvalidJob, grader=grader, **drawn)
    job = made(
        TrainingJob,
        InvalidJob,
        job_id=job_id or new_id(),
        adapter_id=adapter_id,
        method=method,
        dataset_uri=dataset,
        lora=lora,
        hyperparameters=hyperparameters,
        rollouts=rollouts,
        seed=seed,
        parent=parent,
        publish_every_steps=publish_every or (1 if method == "grpo" else None),
        checkpoint_every_steps=checkpoint_every,
        tenant=tenant,
        priority=priority,
        promotion=rule,
        submitted_at_ms=now_ms(),
    )
    job = job.model_copy(update={"dataset_uri": uri_of(dataset, settings)})  # only now: a job that is refused stores nothing
    ask(settings, lambda client: client.train(job))
    if not as_json or not watch:
        typer.echo(job.encode().decode() if as_json else f"job {job.job_id} submitted to pool {settings.pool_name}")
    if watch:
        watch_job(settings, job.job_id, as_json)


@jobs.command()
def watch(job_id: JobId, bootstrap: Bootstrap = None, as_json: AsJson = False) -> None:
    """Follow a job from its first event to its last. Exit code 1 unless it succeeds."""
    watch_job(settings_from(bootstrap), job_id, as_json)


@jobs.command()
def cancel(
    job_id: JobId,
    reason: Why = "",
    bootstrap: Bootstrap = None,
    as_json: AsJson = False,
) -> None:
    """Stop a job. What it published stays."""
    ask(settings_from(bootstrap), lambda client: client.cancel_job(job_id, reason))
    _requested(job_id, "cancel", as_json)


@jobs.command()
def pause(job_id: JobId, reason: Why = "", bootstrap: Bootstrap = None, pool: Pool = None, as_json: AsJson = False) -> None:
    """Have a job wait at its next step, its state kept and its seat free, until it is resumed."""
    ask(settings_from(bootstrap, pool), lambda client: client.pause_job(job_id, reason, user()))
    _requested(job_id, "pause", as_json)


@jobs.command()
def resume(job_id: JobId, reason: Why = "", bootstrap: Bootstrap = None, pool: Pool = None, as_json: AsJson = False) -> None:
    """Let a paused job go on where it was, behind what waits already."""
    ask(settings_from(bootstrap, pool), lambda client: client.resume_job(job_id, reason, user()))
    _requested(job_id, "resume", as_json)


@jobs.command()
def logs(job_id: JobId, bootstrap: Bootstrap = None, as_json: AsJson = False) -> None:
    """Everything said of a job up to now, and its learning curve. Exit code 1 when nothing was."""
    events = ask(settings_from(bootstrap), lambda client: client.job_history(job_id))
    if as_json:
        for event in events:
            print_json(event)
    else:
        print_table(("at", "attempt", "state", "step", "loss", "eta", "revision", "why"), [_line(event) for event in events])
        for line in curve(_learned(events)):
            typer.echo(line)
    if not events:
        typer.echo(f"no trainer has said anything of job {job_id}", err=True)
        raise typer.Exit(1)


@jobs.command()
def show(job_id: JobId, bootstrap: Bootstrap = None, as_json: AsJson = False) -> None:
    """How a job stands now, and why."""
    event = ask(settings_from(bootstrap), lambda client: client.job(job_id))
    if as_json:
        return print_json(event)
    said_s = round(time.time() - event.at_ms / 1000)
    about = (("tenant", event.tenant), ("attempt", event.attempt), ("trainer", event.worker_id), ("last sign of life", f"{said_s} s ago"))
    return print_table((), [*zip(COLUMNS, _row(event), strict=True), ("tokens/s", event.tokens_per_s), *about])


@jobs.command("list")
def list_jobs(bootstrap: Bootstrap = None, as_json: AsJson = False) -> None:
    """The latest event of every job. A job no trainer has taken yet has none."""
    events = ask(settings_from(bootstrap), lambda client: client.jobs())
    if as_json:
        return print_json(events)
    return print_table(COLUMNS, [_row(event) for event in events])


def uri_of(dataset: str, settings: Settings) -> str:
    """A uri as it is; a local file is put into the store, where trainers can read it."""
    from mint_stream.app.datasets import upload

    return dataset if "://" in dataset else upload(Path(dataset), settings)


def user() -> str | None:
    """Who sits at this terminal, where the system knows."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None


def _requested(job_id: str, action: str, as_json: bool) -> None:
    if as_json:
        print_json({"job_id": job_id, "action": action})
    else:
        typer.echo(f"job {job_id}: {action} requested")


def _learned(events: Sequence[TrainingEvent]) -> list[tuple[float, float]]:
    """The job's learning curve: its rewards, where it is graded, else its losses."""
    rewards = [(float(event.step), event.rollouts.reward) for event in events if event.rollouts is not None]
    return rewards or [(float(event.step), event.loss) for event in events if event.loss is not None]


def _line(event: TrainingEvent) -> tuple[object, ...]:
    _, _, *rest = _row(event)
    return (datetime.fromtimestamp(event.at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S"), event.attempt, *rest)


def _row(event: TrainingEvent) -> tuple[object, ...]:
    loss = None if event.loss is None else f"{event.loss:.4f}"
    why = event.reason if event.error is None else f"{event.error.code}: {event.error.message}"
    return (event.job_id, event.adapter_id, event.state, f"{event.step}/{event.steps}", loss, eta(event), event.number, why)
