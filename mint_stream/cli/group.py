"""How errors leave the command line: one line `error <code>: message`, exit code 1, or 2 when a person has to act."""

import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from mint_stream.errors import BrokerFailed, DeviceLost, EngineFailed, MintError, Stop

FAILED = 1
STOPPED = 2
INTERRUPTED = 130


RESTART_MAY_HELP = (EngineFailed, DeviceLost, BrokerFailed)
"""Stops of a process whose next life may fare better: a supervisor starts it again."""


def exit_code(error: MintError) -> int:
    """2 when a restart would change nothing until a person has acted, else 1."""
    return STOPPED if isinstance(error, Stop) and not isinstance(error, RESTART_MAY_HELP) else FAILED


class ErrorLine(TyperGroup):
    """A command group that turns our errors into their line; `--debug` before the command keeps the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Anything that is not ours passes through."""
        try:
            return super().invoke(ctx)
        except MintError as error:
            if ctx.params.get("debug"):
                traceback.print_exception(error)
            typer.echo(f"error {error.code}: {error}", err=True)
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt as interrupt:
            raise typer.Exit(INTERRUPTED) from interrupt
