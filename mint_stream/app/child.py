"""A child process that dies with its parent and whose output goes to a file of its own."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from mint_stream.bus.kafka_process import die_with

_CHUNK_BYTES = 65_536
_LAST_LINE_BYTES = 4096

Echo = Callable[[str, str], None]
"""Receives (child name, one line of its output)."""


@dataclass(frozen=True)
class ChildCommand:
    """What to run under which name, and what its environment has besides ours."""

    name: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """One run of a command. `ended()` returns its exit code; a negative one is the signal that killed it."""

    def __init__(self, command: ChildCommand, process: asyncio.subprocess.Process, log: BinaryIO, echo: Echo | None) -> None:
        self.command = command
        self.pid = process.pid
        self.last_line = ""
        self._process = process
        self._log = log
        self._echo = echo

    @classmethod
    async def start(cls, command: ChildCommand, log_path: Path, echo: Echo | None = None) -> "Child":
        """Start it in a session of its own, so that Ctrl-C reaches only us; its output is appended to `log_path`."""
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log = log_path.open("ab", buffering=0)
        process = await asyncio.create_subprocess_exec(
            *command.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **command.environment},
            start_new_session=True,
            preexec_fn=die_with(os.getpid()),
        )
        return cls(command, process, log, echo)

    async def ended(self) -> int:
        """Copy the output until it closes, then the exit code. Await it once."""
        try:
            await self._copy_output()
            return await self._process.wait()
        finally:
            self._log.close()

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and whatever it started, now."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def _copy_output(self) -> None:
        output = self._process.stdout
        rest = b""
        while output is not None and (chunk := await output.read(_CHUNK_BYTES)):
            self._log.write(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_CHUNK_BYTES:]
            self._saw(lines)
        self._saw([rest])

    def _saw(self, lines: list[bytes]) -> None:
        for line in lines:
            text = line[-_LAST_LINE_BYTES:].decode(errors="replace").rstrip()
            if text:
                self.last_line = text
                if self._echo:
                    self._echo(self.command.name, text)
