"""A job's life on the terminal: a bar for people, a line of JSON an event for machines."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import typer

from mint_stream.cli.output import print_json
from mint_stream.messages.training import TrainingEvent
from mint_stream.settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress


def watch_job(settings: Settings, job_id: str, as_json: bool) -> None:
    """Follow the job until it ends. Raises typer.Exit(1) when it ended other than well."""
    last = asyncio.run(_follow(settings, job_id, print_json) if as_json else _follow_with_bar(settings, job_id))
    if last is None or last.state != "succeeded":
        raise typer.Exit(1)


async def _follow(settings: Settings, job_id: str, show: Any) -> TrainingEvent | None:
    from mint_stream.client import Client

    last = None
    async with Client(settings) as client, client.watch(job_id) as events:
        async for last in events:
            show(last)
    return last


async def _follow_with_bar(settings: Settings, job_id: str) -> TrainingEvent | None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(f"{job_id} waiting for a trainer", total=None, note="")
        last = await _follow(settings, job_id, lambda event: _advance(progress, task, event))
    if last is not None:
        typer.echo(ending(last))
    return last


def _advance(progress: "Progress", task: Any, event: TrainingEvent) -> None:
    progress.update(task, description=f"{event.job_id} {event.state}", completed=event.step, total=event.steps or None, note=note_of(event))


def note_of(event: TrainingEvent) -> str:
    """Why the job is in its state, loss, speed, remaining time and revision of an event, as far as it has them."""
    parts = [
        event.reason,
        None if event.loss is None else f"loss {event.loss:.4f}",
        None if event.rollouts is None else f"reward {event.rollouts.reward:.3f}",
        None if event.tokens_per_s is None else f"{event.tokens_per_s:.0f} tokens/s",
        None if (left := eta(event)) is None else f"{left} left",
        None if event.number is None else f"revision {event.number}",
    ]
    return " · ".join(part for part in parts if part)


def eta(event: TrainingEvent) -> str | None:
    """The remaining time of a job that is being trained, as h:mm:ss."""
    return None if event.eta_s is None or event.terminal else str(timedelta(seconds=round(event.eta_s)))


def ending(event: TrainingEvent) -> str:
    """How a job ended, in one line."""
    what = f"job {event.job_id} {event.state} at step {event.step}/{event.steps}"
    if event.error is not None:
        return f"{what}: {event.error.code}: {event.error.message}"
    return f"{what}: {note}" if (note := note_of(event)) else what
