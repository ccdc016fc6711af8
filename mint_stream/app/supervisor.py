"""Keeps child processes running: restarts what crashes, gives up what cannot start, ends all of them in order."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mint_stream.app.child import Child, ChildCommand, Echo
from mint_stream.app.restarts import RestartPolicy

STOP_EXIT_CODE = 2
"""A process ends with this code on a Stop error: a person has to act, so a restart would change nothing."""


@dataclass(frozen=True)
class ChildChange:
    """What happened to a child, in one sentence; or what all of them hold."""

    name: str
    what: Literal["started", "ready", "crashed", "ended", "given-up", "stopped", "killed", "memory"]
    sentence: str
    pid: int | None = None


class Supervisor:
    """Runs `commands` until `stop`. A crashed child starts again after the policy's delay; the others never notice."""

    def __init__(
        self,
        commands: Sequence[ChildCommand],
        log_dir: Path,
        report: Callable[[ChildChange], None],
        policy: RestartPolicy | None = None,
        echo: Echo | None = None,
    ) -> None:
        self._commands = tuple(commands)
        self._log_dir = log_dir
        self._report = report
        self._policy = policy or RestartPolicy()
        self._echo = echo
        self._stopping = asyncio.Event()
        self._running: dict[str, Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._given_up: dict[str, str] = {}

    @property
    def pids(self) -> dict[str, int]:
        """The process id of every child that runs now."""
        return {name: child.pid for name, child in self._running.items()}

    @property
    def given_up(self) -> dict[str, str]:
        """Children that will not be started again, each with the last line it said."""
        return dict(self._given_up)

    def log_path(self, name: str) -> Path:
        """Where the output of a child goes."""
        return self._log_dir / f"{name}.log"

    async def start(self) -> None:
        """Start every child; returns when all are running (which is not yet ready)."""
        for command in self._commands:
            self._keepers.append(asyncio.create_task(self._keep(await self._start(command))))

    async def wait(self) -> None:
        """Until no child is left to keep: all were stopped, ended by themselves, or were given up. Cancelling this leaves them running."""
        if self._keepers:
            done, _ = await asyncio.wait(self._keepers)
            for keeper in done:
                keeper.result()

    async def stop(self, grace_s: float = 30.0) -> None:
        """SIGTERM to every child, and SIGKILL to the process group of any that is still there after `grace_s`."""
        self._stopping.set()
        for child in self._running.values():
            child.terminate()
        _, late = await asyncio.wait(self._keepers, timeout=grace_s) if self._keepers else (set(), set())
        for child in list(self._running.values()):
            self._report(ChildChange(child.command.name, "killed", f"did not end within {grace_s:g} s of SIGTERM", child.pid))
            child.kill()
        if late:
            await asyncio.wait(late)

    async def _start(self, command: ChildCommand) -> Child:
        child = await Child.start(command, self.log_path(command.name), self._echo)
        self._running[command.name] = child
        self._report(ChildChange(command.name, "started", f"started as process {child.pid}", child.pid))
        if self._stopping.is_set():
            child.terminate()
        return child

    async def _keep(self, child: Child) -> None:
        crashes = 0
        while True:
            started_at_s = time.monotonic()
            code = await child.ended()
            del self._running[child.command.name]
            if self._stopping.is_set() or code == 0:
                what: Literal["stopped", "ended"] = "stopped" if self._stopping.is_set() else "ended"
                return self._report(ChildChange(child.command.name, what, _how(code), child.pid))
            crashes = self._policy.crashes_after(crashes, time.monotonic() - started_at_s)
            delay_s = None if code == STOP_EXIT_CODE else self._policy.delay_s(crashes)
            if delay_s is None:
                return self._give_up(child, code, crashes)
            sentence = f"{_how(code)}; starts again in {delay_s:g} s{_last_words(child)}"
            self._report(ChildChange(child.command.name, "crashed", sentence, child.pid))
            if await self._stopped_within(delay_s):
                return None
            child = await self._start(child.command)

    def _give_up(self, child: Child, code: int, crashes: int) -> None:
        name = child.command.name
        self._given_up[name] = child.last_line
        why = "a person has to act" if code == STOP_EXIT_CODE else f"{crashes} crashes in a row"
        self._report(ChildChange(name, "given-up", f"{_how(code)}; given up: {why}{_last_words(child)}; see {self.log_path(name)}"))

    async def _stopped_within(self, delay_s: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), delay_s)
        return self._stopping.is_set()


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"ended with code {code}"


def _last_words(child: Child) -> str:
    return f": {child.last_line}" if child.last_line else ""
