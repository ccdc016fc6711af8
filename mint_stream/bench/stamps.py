"""When a trainer did what: a line an effect, with the machine's monotonic clock, which all processes of one machine share."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


def stamping(path: Path) -> Callable[[str], None]:
    """What a training worker calls after each effect: it appends the effect's name and nanoseconds to the file."""

    def stamp(effect: str) -> None:
        at_ns = time.monotonic_ns()
        with path.open("a") as file:
            file.write(f"{effect} {at_ns}\n")

    return stamp


@dataclass(frozen=True)
class Published:
    """When a publish had come how far, in nanoseconds of the machine's monotonic clock."""

    stepped: int
    checkpointed: int
    written: int
    announced: int

    @property
    def durable(self) -> int:
        """When the checkpoint and the files were, in whatever order."""
        return max(self.checkpointed, self.written)


def published(lines: str) -> Iterator[Published]:
    """The publishes of one job at a time, in their order. Law: each counts from the last optimizer step before it."""
    last: dict[str, int] = {}
    for line in lines.splitlines():
        effect, _, at_ns = line.partition(" ")
        last[effect] = int(at_ns)
        if effect == "announced":
            yield Published(last["stepped"], last["checkpoint-durable"], last["files-durable"], last["announced"])
