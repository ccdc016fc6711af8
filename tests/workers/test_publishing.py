"""A publish: checkpoint and files are made durable side by side, and nothing is announced before both are."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from mint_stream.errors import Cancelled, EngineFailed, StoreUnavailable
from mint_stream.messages.adapters import Announce, RevisionAnnounced
from mint_stream.messages.lineage import Lineage
from mint_stream.workers.publishing import Publishing
from mint_stream.workers.torch_thread import TorchThread
from mint_stream.workers.training_parts import TrainingRoom
from tests.adapter_commands import announce

WORK = SimpleNamespace(run=SimpleNamespace(job=SimpleNamespace(job_id="j", adapter_id="a", parent=None, promotion=None), step=2))
LINEAGE = Lineage(job_uri="memory://job", dataset_digest="d" * 64, seed=1, code_version="1", numeric_fingerprint="f" * 64)


class Report:
    """What a publish needs of a job's report."""

    attempt = 1

    async def say(self, state: str, **fields: Any) -> None:
        pass


class Registrar:
    """Announces whatever it is sent; its answers are checked by nobody."""

    def __init__(self) -> None:
        self.sent: list[Announce] = []

    async def send(self, command: Announce) -> "Registrar":
        self.sent.append(command)
        return self

    async def answer(self) -> RevisionAnnounced:
        return RevisionAnnounced(command_id="c", adapter_id="a", at_ms=1, number=7, digest="a" * 64, pool="p")

    def check_answer(self, *_: object) -> None:
        pass


class Workshop:
    """Saves and uploads only while the other is at it, too; then each does what it was told."""

    def __init__(self, save: Exception | None = None, upload: Exception | None = None) -> None:
        self._together = threading.Barrier(2, timeout=20)
        self._save, self._upload = save, upload

    def save(self, work: Any, attempt: int) -> None:
        self._together.wait()
        if self._save:
            raise self._save

    def upload(self, work: Any) -> Any:
        self._together.wait()
        if self._upload:
            raise self._upload
        return announce(adapter_id="a").manifest

    def lineage(self, work: Any) -> Lineage:
        return LINEAGE


@pytest.fixture
def shop() -> Iterator[TorchThread]:
    with ThreadPoolExecutor(2) as executor:
        yield TorchThread(executor)


async def cancelled(_: float) -> None:
    """What a job's pause does when the job was cancelled."""
    raise Cancelled("enough")


async def published(shop: TorchThread, workshop: Workshop, effects: list[str]) -> tuple[Any, Registrar]:
    registrar = Registrar()
    publishing = Publishing(registrar, registrar, TrainingRoom(workshop, shop, None, None), "p", effects.append)  # type: ignore[arg-type]
    try:
        return await publishing.publish(WORK, Report(), cancelled, saved=False), registrar  # type: ignore[arg-type]
    except Exception as error:
        return error, registrar


async def test_the_checkpoint_and_the_files_are_made_durable_side_by_side_and_then_announced(shop: TorchThread) -> None:
    effects: list[str] = []
    number, registrar = await published(shop, Workshop(), effects)
    assert number == 7 and [sent.lineage for sent in registrar.sent] == [LINEAGE]
    assert set(effects[:2]) == {"checkpoint-durable", "files-durable"} and effects[2:4] == ["announced", "answered"]


@pytest.mark.parametrize(
    ("failing", "error", "kind"),
    [
        ("save", StoreUnavailable("away"), Cancelled),
        ("upload", StoreUnavailable("away"), Cancelled),
        ("save", RuntimeError("x"), EngineFailed),
    ],
    ids=["no store for the checkpoint", "no store for the files", "a checkpoint that cannot be made"],
)
async def test_nothing_is_announced_unless_both_are_durable(
    shop: TorchThread, failing: str, error: Exception, kind: type[Exception]
) -> None:
    effects: list[str] = []
    raised, registrar = await published(shop, Workshop(**{failing: error}), effects)
    assert isinstance(raised, kind) and registrar.sent == []
    assert effects == ["files-durable" if failing == "save" else "checkpoint-durable"], "the other one was finished, and waited for"
    assert not [task for task in asyncio.all_tasks() if "_upload" in repr(task.get_coro())]
