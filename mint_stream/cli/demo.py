"""`mint-stream demo`: the main job, end to end, on this machine or on your cluster, with everything it measured at the end."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mint_stream.cli.options import BaseName, Bootstrap, Home, Pool, settings_from
from mint_stream.cli.output import print_table

if TYPE_CHECKING:
    from mint_stream.app.demo import DemoReport, DemoSize
    from mint_stream.app.supervisor import ChildChange
    from mint_stream.messages.training import TrainingEvent
    from mint_stream.settings import Settings


class Screen:
    """Prints the demo as it goes: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("  training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
        )
        self._task: Any = None
        self._shown = 0

    def step(self, title: str) -> None:
        """A new part of the demo begins."""
        typer.secho(f"\n── {title}", bold=True)

    def say(self, line: str) -> None:
        """One line."""
        typer.echo(f"  {line}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table."""
        print_table(columns, rows)

    def training(self, event: "TrainingEvent") -> None:
        """The bar moves while the job runs; other states are a line each."""
        if event.state == "running":
            return self._advance(event, _progress(event))
        if self._task is not None:
            self._bar.stop()
        return self.say(f"job {event.job_id}: {event.state}" + (f", revision {event.number}" if event.number else ""))

    def _advance(self, event: "TrainingEvent", text: str) -> None:
        if not self._bar.console.is_terminal:
            if event.step >= self._shown + event.steps // 8:
                self._shown = event.step
                self.say(f"step {event.step}/{event.steps}  {text}")
            return
        if self._task is None:
            self._bar.start()
            self._task = self._bar.add_task("", total=event.steps)
        self._bar.update(self._task, completed=event.step, description=text)

    def change(self, change: "ChildChange") -> None:
        """A process of the local system started, became ready, or ended."""
        typer.echo(f"  {change.name:>9}  {change.sentence}")


def _progress(event: "TrainingEvent") -> str:
    loss = f"loss {event.loss:.3f}" if event.loss is not None else ""
    speed = f"{event.tokens_per_s:.0f} tokens/s" if event.tokens_per_s else ""
    left = f"{event.eta_s:.0f} s left" if event.eta_s else ""
    return "  ".join(part for part in (loss, speed, left) if part)


def demo(
    report: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write what was measured to this file.")] = None,
    heldout: Annotated[int, typer.Option(min=8, help="Held-out commands to ask before, after, and after the roll-back.")] = 96,
    steps: Annotated[int, typer.Option(min=5, help="Optimizer steps of the training job.")] = 40,
    bootstrap: Bootstrap = None,
    pool: Pool = None,
    base: BaseName = None,
    home: Home = None,
) -> None:
    """Import adapters, answer a mixed stream, train one, promote it, roll it back. Everything goes through Kafka; nothing is staged."""
    from mint_stream.app.demo import DemoSize

    settings = settings_from(bootstrap, pool, base, home)
    found = asyncio.run(_run(settings, DemoSize(heldout=heldout, steps=steps)))
    if report is not None:
        report.write_text(json.dumps(found.as_json(), indent=2) + "\n")
    _summarise(found, report)
    if found.lost or found.duplicates_visible:
        raise typer.Exit(1)


async def _run(settings: "Settings", size: "DemoSize") -> "DemoReport":
    from mint_stream.app.demo_fleet import run

    return await run(settings, size, Screen())


def _summarise(found: "DemoReport", report: Path | None) -> None:
    typer.secho("\n── what was measured", bold=True)
    values = found.as_json()
    print_table((), [(name, value) for name, value in values.items() if not isinstance(value, dict)])
    print_table(("where the time went", "seconds"), list(values["stage_seconds"].items()))
    if report is not None:
        typer.echo(f"written to {report}")
