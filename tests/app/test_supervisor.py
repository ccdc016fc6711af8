"""The supervisor restarts what crashes, gives up what cannot start, and leaves nothing behind."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from mint_stream.app.child import ChildCommand
from mint_stream.app.restarts import RestartPolicy
from mint_stream.app.supervisor import ChildChange, Supervisor

QUICK = RestartPolicy(first_delay_s=0.01, longest_delay_s=0.02, crashes_allowed=3)
SERVE = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("ready", flush=True)
signal.sigwait({signal.SIGTERM})
print("drained", flush=True)
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"


class Watched:
    """A supervisor whose reports and output lines can be awaited."""

    def __init__(self, programs: dict[str, str], log_dir: Path, policy: RestartPolicy = QUICK) -> None:
        self.changes: asyncio.Queue[ChildChange] = asyncio.Queue()
        self.lines: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.names = list(programs)
        commands = [ChildCommand(name, (sys.executable, "-c", program)) for name, program in programs.items()]
        self.supervisor = Supervisor(commands, log_dir, self.changes.put_nowait, policy, self._line)

    def _line(self, name: str, line: str) -> None:
        self.lines.put_nowait((name, line))

    async def start(self) -> dict[str, int]:
        """Start, wait until every program said a first line, and give the process ids."""
        await self.supervisor.start()
        for _ in self.names:
            await self.lines.get()
        return self.supervisor.pids

    async def next(self, what: str) -> ChildChange:
        while (change := await self.changes.get()).what != what:
            pass
        return change


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_that_is_killed_is_restarted_and_its_neighbour_never_notices(tmp_path):
    watched = Watched({"a": SERVE, "b": SERVE}, tmp_path)
    before = await watched.start()
    os.kill(before["a"], signal.SIGKILL)
    crash = await watched.next("crashed")
    assert crash.name == "a" and "killed by signal 9" in crash.sentence
    restarted = await watched.next("started")
    assert restarted.pid != before["a"]
    assert watched.supervisor.pids == {"a": restarted.pid, "b": before["b"]}
    await watched.supervisor.stop()


async def test_sigterm_reaches_every_child_and_each_may_drain(tmp_path):
    watched = Watched({"a": SERVE, "b": SERVE}, tmp_path)
    pids = await watched.start()
    await watched.supervisor.stop(grace_s=20.0)
    assert watched.supervisor.pids == {}
    assert not any(alive(pid) for pid in pids.values())
    assert (tmp_path / "a.log").read_text().splitlines() == ["ready", "drained"]
    assert {(await watched.next("stopped")).name for _ in pids} == {"a", "b"}


async def test_a_child_deaf_to_sigterm_is_killed_after_the_grace(tmp_path):
    watched = Watched({"deaf": DEAF}, tmp_path)
    pid = (await watched.start())["deaf"]
    await watched.supervisor.stop(grace_s=0.05)
    assert (await watched.next("killed")).pid == pid
    assert not alive(pid)


async def test_a_crash_loop_is_reported_and_given_up_after_the_bound(tmp_path):
    watched = Watched({"loop": "import sys; print('no such base'); sys.exit(7)"}, tmp_path)
    await watched.supervisor.start()
    await watched.supervisor.wait()
    assert watched.supervisor.given_up == {"loop": "no such base"}
    change = await watched.next("given-up")
    assert "4 crashes in a row" in change.sentence and "no such base" in change.sentence and "loop.log" in change.sentence
    assert (tmp_path / "loop.log").read_text() == "no such base\n" * 4


async def test_a_stop_error_is_not_tried_again(tmp_path):
    watched = Watched({"stop": "import sys; print('error missing-java: install one'); sys.exit(2)"}, tmp_path)
    await watched.supervisor.start()
    await watched.supervisor.wait()
    assert (tmp_path / "stop.log").read_text().count("missing-java") == 1
    assert "a person has to act" in (await watched.next("given-up")).sentence


async def test_a_child_that_ends_by_itself_is_left_alone(tmp_path):
    watched = Watched({"done": "pass"}, tmp_path)
    await watched.supervisor.start()
    await watched.supervisor.wait()
    assert watched.supervisor.given_up == {} and (await watched.next("ended")).name == "done"


async def test_stopping_during_the_delay_starts_nothing_any_more(tmp_path):
    watched = Watched({"loop": "raise SystemExit(7)"}, tmp_path, RestartPolicy(first_delay_s=3600.0, longest_delay_s=3600.0))
    await watched.supervisor.start()
    await watched.next("crashed")
    await watched.supervisor.stop()
    await watched.supervisor.wait()
    assert watched.supervisor.pids == {}


async def test_who_stops_waiting_for_the_children_does_not_end_them(tmp_path):
    watched = Watched({"a": SERVE}, tmp_path)
    pids = await watched.start()
    waiting = asyncio.create_task(watched.supervisor.wait())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert watched.supervisor.pids == pids
    await watched.supervisor.stop()
    assert (tmp_path / "a.log").read_text().splitlines() == ["ready", "drained"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="PDEATHSIG is Linux's")
def test_children_die_with_a_parent_that_is_killed(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    ended, _, _ = select.select([child], [], [], 20.0)
    os.close(child)
    assert ended == [child]


_PARENT = textwrap.dedent("""
    import asyncio, sys
    from pathlib import Path
    from mint_stream.app.child import ChildCommand
    from mint_stream.app.supervisor import Supervisor

    async def main():
        deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.pause()"
        supervisor = Supervisor([ChildCommand("c", (sys.executable, "-c", deaf))], Path(sys.argv[1]), lambda change: None)
        await supervisor.start()
        print(supervisor.pids["c"], flush=True)
        await supervisor.wait()

    asyncio.run(main())
""")
