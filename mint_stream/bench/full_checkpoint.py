"""The baseline that merges, writes and loads whole checkpoints: its processes, and how long each way to a first token takes."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from mint_stream.bench.wrong import WrongResult

MERGER, SERVER = (Path(__file__).with_name(f"checkpoint_{name}.py") for name in ("merger", "server"))


class Script(AbstractContextManager["Script"]):
    """One of the checkpoint scripts as a process: a line of JSON in, a line of JSON out. It ends with its `with` block."""

    def __init__(self, path: Path) -> None:
        # No mint_stream process stands beside it, so OpenMP may do as it likes; -P: its folder has modules named like others.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "PYTHON"))}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
        )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Raises RuntimeError with what the script said when it died of the request."""
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise RuntimeError("the baseline's process has no pipes")
        stdin.write(json.dumps({"do": do, **fields}) + "\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            raise RuntimeError(f"the baseline's process did not {do}: {stderr.read().strip()[-2000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


@dataclass(frozen=True)
class Baselines:
    """Milliseconds of each repetition."""

    cold: list[float]
    """Merge, write, start a process that loads it, first token."""
    warm: list[float]
    """The same files, loaded by a process that has served another checkpoint before, first token."""
    stages: dict[str, list[float]]


def measure(base: Path, adapters: Sequence[Path], prompt: Sequence[int], dtype: str) -> Baselines:
    """One repetition for each adapter directory, which PEFT wrote or could have. Raises WrongResult when a first token is missing."""
    found = Baselines([], [], {"merge_write": [], "start_load_first_token": []})
    with Script(MERGER) as merger, tempfile.TemporaryDirectory(prefix="mint-merged-") as room:
        for number, adapter in enumerate(adapters):
            merger.ask("adapt", base=str(base), adapter=str(adapter), dtype=dtype)
            _repeat(found, merger, Path(room) / str(number), prompt, dtype)
    return found


def _repeat(found: Baselines, merger: Script, into: Path, prompt: Sequence[int], dtype: str) -> None:
    begun = time.perf_counter()
    merger.ask("merge", into=str(into))
    written = time.perf_counter()
    with Script(SERVER) as server:
        first_token(server, into, prompt, dtype)
        ended = time.perf_counter()
        first_token(server, into, prompt, dtype)
        found.warm.append((time.perf_counter() - ended) * 1000)
    found.cold.append((ended - begun) * 1000)
    found.stages["merge_write"].append((written - begun) * 1000)
    found.stages["start_load_first_token"].append((ended - written) * 1000)


def first_token(server: Script, checkpoint: Path, prompt: Sequence[int], dtype: str) -> int:
    """Load a checkpoint and draw one token from it. Raises WrongResult."""
    server.ask("load", checkpoint=str(checkpoint), dtype=dtype)
    tokens: list[int] = server.ask("generate", prompt=list(prompt), new_tokens=1)["tokens"]
    if len(tokens) != 1:
        raise WrongResult(f"the baseline drew {len(tokens)} tokens where one was asked for")
    return tokens[0]
