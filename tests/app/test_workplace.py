"""A worker's place: no two processes share one, and who comes back after a crash finds its own."""

import asyncio
import os
import signal
import sys
from pathlib import Path

from mint_stream.app.workplace import Workplace

HOLD = "import sys; from mint_stream.app.workplace import Workplace; w = Workplace(__import__('pathlib').Path(sys.argv[1]), 'serve')\n"
HOLD += "print(w.path.name, w.worker_id, flush=True); sys.stdin.read()"


async def holder(home: Path) -> tuple[asyncio.subprocess.Process, str, str]:
    """A process that has a place until its input ends: the process, its directory, its name."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLD, str(home), stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    number, worker_id = (await process.stdout.readline()).decode().split()
    return process, number, worker_id


async def test_a_process_that_was_killed_gives_its_place_to_the_next(tmp_path: Path) -> None:
    first, number, name = await holder(tmp_path)
    second, other, other_name = await holder(tmp_path)
    assert (number, other) == ("0", "1")
    assert name != other_name
    first.send_signal(signal.SIGKILL)
    await first.wait()
    again, number_again, name_again = await holder(tmp_path)
    assert (number_again, name_again) == (number, name)
    for process in (second, again):
        await process.communicate(b"")


def test_places_are_held_one_by_one_and_given_back(tmp_path: Path) -> None:
    with Workplace(tmp_path, "serve") as one, Workplace(tmp_path, "serve") as two:
        assert [one.path, two.path] == [tmp_path / "serve" / number for number in "01"]
        assert one.worker_id != two.worker_id
        assert one.path.is_dir()
    with Workplace(tmp_path, "serve") as again:
        assert (again.path, again.worker_id) == (one.path, one.worker_id)


def test_what_a_worker_left_in_its_place_is_there_when_it_returns(tmp_path: Path) -> None:
    with Workplace(tmp_path, "serve") as place:
        (place.path / "catalog").write_text("a copy")
    with Workplace(tmp_path, "serve") as place:
        assert (place.path / "catalog").read_text() == "a copy"


def test_roles_have_places_of_their_own(tmp_path: Path) -> None:
    with Workplace(tmp_path, "serve") as one, Workplace(tmp_path, "train") as two:
        assert (one.path.name, two.path.name) == ("0", "0")
        assert one.worker_id.startswith("serve-") and two.worker_id.startswith("train-")


def test_a_name_that_is_given_is_the_workers(tmp_path: Path) -> None:
    with Workplace(tmp_path, "serve", "pod-7") as place:
        assert place.worker_id == "pod-7"


def test_the_next_process_of_a_place_has_the_same_seat_in_the_group_and_knows_what_it_had(tmp_path: Path) -> None:
    with Workplace(tmp_path, "serve") as place:
        first = place.seat()
        first.take({"inference-requests-p": [3, 5]})
    with Workplace(tmp_path, "serve") as place:
        again = place.seat()
    assert (again.instance_id, again.given) == (first.instance_id, {"inference-requests-p": [3, 5]})
    assert again.name == place.worker_id


def test_children_of_a_worker_do_not_keep_its_place(tmp_path: Path) -> None:
    with Workplace(tmp_path, "serve") as place:
        held = [link.name for link in Path("/proc/self/fd").iterdir() if _leads_to(link, place.path / "lock")]
        assert len(held) == 1
        assert not os.get_inheritable(int(held[0]))


def _leads_to(link: Path, path: Path) -> bool:
    try:
        return link.readlink() == path
    except FileNotFoundError:
        return False
