"""Processes that tests start, talk with, stop and kill."""

import asyncio
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@asynccontextmanager
async def module(name: str, *arguments: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Process]:
    """`python -m name arguments` from the project's root, its standard output piped; killed at the end if it still runs."""
    command = (sys.executable, "-m", name, *arguments)
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def said(process: Process, line: str) -> None:
    """Wait until the process says this line; fails when it ends without."""
    assert process.stdout is not None
    while (read := await process.stdout.readline()) != f"{line}\n".encode():
        assert read, f"it ended without saying {line}"
