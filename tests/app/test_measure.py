"""Spread, machine and memory, as measurements state them."""

import os
import subprocess
import sys

import pytest

from mint_stream.app.measure import machine, memory_mib, percentiles, spread

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's smaps_rollup")


def test_the_spread_is_median_smallest_and_largest() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0}


def test_the_machine_has_cores_that_this_process_may_use() -> None:
    assert machine()["cores"] == len(os.sched_getaffinity(0))


@LINUX
def test_memory_counts_what_a_process_started_too() -> None:
    hold = "import sys; held = bytearray(64 * 2**20); print('held', flush=True); sys.stdin.read()"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with subprocess.Popen([sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "held\n"
        assert memory_mib([parent.pid]) > 64
        parent.communicate()


@LINUX
def test_a_process_that_is_gone_holds_nothing() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert memory_mib([done.pid]) == 0


def test_percentiles_are_values_that_were_measured_and_the_99th_of_few_is_the_largest() -> None:
    assert percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p99": 3.0, "min": 1.0, "max": 3.0}
    assert percentiles([float(number) for number in range(1, 201)])["p99"] == 198.0
