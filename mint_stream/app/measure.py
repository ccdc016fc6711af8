"""What every measurement states beside its numbers: spread, machine, versions."""

import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

_NAMED = 6
"""Words in the first line of a mapping that has a name."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median and the 99th percentile by nearest rank (of fewer than 100 values the largest), with the extremes."""
    ordered = sorted(values)
    return {
        "p50": statistics.median(ordered),
        "p99": ordered[math.ceil(0.99 * len(ordered)) - 1],
        "min": ordered[0],
        "max": ordered[-1],
    }


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of these distributions, and Python's."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def machine() -> dict[str, str | int]:
    """The processor's name, the cores this process may use, and the matrix units it has."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {key.strip(): value.strip() for key, value in named.items()}
    flags = set(fields.get("flags", "").split())
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if unit in flags]
    return {"processor": fields.get("model name", platform.processor()), "cores": len(os.sched_getaffinity(0)), "units": " ".join(units)}


def memory_mib(roots: Iterable[int]) -> float:
    """MiB that these processes and all they started hold, shared pages counted once (Linux's PSS). 0 elsewhere."""
    children: dict[int, list[int]] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            children.setdefault(int(status.read_text().rpartition(")")[2].split()[1]), []).append(int(status.parent.name))
    return sum(_pss_kib(number) for root in set(roots) for number in _with_descendants(root, children)) / 1024


def private_bytes(without: Path) -> int:
    """Bytes that this process holds and shares with none (Linux's USS), pages of files under `without` not counted. 0 elsewhere."""
    total, counted = 0, True
    with suppress(OSError):
        for line in Path("/proc/self/smaps").read_text().splitlines():
            words = line.split()
            if not words[0].endswith(":"):
                counted = len(words) < _NAMED or not words[-1].startswith(str(without))
            elif counted and words[0] in ("Private_Clean:", "Private_Dirty:"):
                total += int(words[1]) * 1024
    return total


def _with_descendants(root: int, children: Mapping[int, Sequence[int]]) -> list[int]:
    return [root, *(number for child in children.get(root, ()) for number in _with_descendants(child, children))]


def _pss_kib(number: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{number}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0
