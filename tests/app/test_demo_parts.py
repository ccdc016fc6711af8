"""The demo's adapters and its books; what settings become for the serving worker; topics as provisioned; logs."""

import json
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mint_stream import contracts
from mint_stream.adapter import AdapterWeights
from mint_stream.adapter.targets import check_targets
from mint_stream.app import logs
from mint_stream.app.demo_adapters import STRANGERS, TRAINED, linears_of, noisy, write_adapters
from mint_stream.app.demo_tally import Counts, Tally
from mint_stream.app.provisioned import topics
from mint_stream.app.serve_parts import admission_limits, budgets, intake_limits, loader, pool_base
from mint_stream.bus.connection import Connection
from mint_stream.bus.producer import Producer
from mint_stream.client import Client
from mint_stream.contracts import load_topics
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.inference import InferenceResult
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.settings import Settings
from tests.factories import tiny_base
from tests.provisioned import ensure_topics


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ResidentBase:
    return load_base(tiny_base(tmp_path_factory.mktemp("base") / "tiny"), dtype=torch.float32)


@pytest.fixture(scope="module")
def founded(base: ResidentBase) -> PoolBase:
    return pool_base(base, Settings.load(pool="p"))


def test_a_pool_is_founded_with_what_its_base_and_its_settings_allow(base: ResidentBase) -> None:
    wide = pool_base(base, Settings.load(pool="p", serving={"max_rank": 32}))
    assert (wide.pool, wide.base_digest, wide.max_rank) == ("p", base.digest, 32)
    assert (wide.architecture, wide.vocabulary_tokens) == ("LlamaForCausalLM", base.vocabulary_tokens)
    assert wide.context_tokens == base.context_tokens, "the default is more than this base has"
    narrow = pool_base(base, Settings.load(pool="p", serving={"context_tokens": 20}))
    assert narrow.context_tokens == admission_limits(narrow, Settings.load().serving).context_tokens == 20


def test_every_limit_that_is_set_reaches_its_part(founded: PoolBase) -> None:
    given = {
        "max_num_seqs": 5,
        "max_num_batched_tokens": 77,
        "max_adapters_per_step": 6,
        "default_deadline_s": 8.0,
        "max_deadline_s": 9.0,
        "intake_records": 10,
        "intake_bytes": 2**20,
    }
    serving = Settings.load(serving=given).serving
    steps, limits, intake = budgets(serving), admission_limits(founded, serving), intake_limits(serving)
    assert (steps.max_num_seqs, steps.max_num_batched_tokens, steps.max_adapters) == (5, 77, 6)
    assert (limits.default_deadline_s, limits.max_deadline_s) == (8.0, 9.0)
    assert (intake.max_records, intake.max_bytes) == (10, 2**20)


async def test_the_loader_has_the_tiers_the_store_and_the_rank_that_are_set(base: ResidentBase, tmp_path: Path) -> None:
    tiers = {"device_tier_bytes": 2**20, "host_tier_bytes": 2**21, "max_rank": 4}
    made = loader(base, pool_base(base, Settings.load(home=tmp_path)), Settings.load(home=tmp_path, serving=tiers))
    assert made.device.has_free_room(2**20) and not made.device.has_free_room(2**20 + 1)
    assert (made.host.used_bytes, made.loads_total) == (0, 0)
    await made.close()


def test_the_layers_of_a_pool_are_the_bases(base: ResidentBase, founded: PoolBase) -> None:
    assert linears_of(founded) == base.linears


def test_the_demos_adapters_are_peft_directories_that_fit_the_base(founded: PoolBase, tmp_path: Path) -> None:
    written = write_adapters(founded, tmp_path)
    assert list(written) == [TRAINED, *STRANGERS]
    for name, directory in written.items():
        read = AdapterWeights.from_files({file.name: file.read_bytes() for file in directory.iterdir()})
        check_targets(read.targets(), founded.targets, founded.max_rank)
        assert {target.rank for target in read.targets()} == {STRANGERS.get(name, 8)}


def test_the_adapter_to_be_trained_begins_as_the_base_and_the_strangers_do_not(founded: PoolBase, tmp_path: Path) -> None:
    for name, directory in write_adapters(founded, tmp_path).items():
        read = AdapterWeights.from_files({file.name: file.read_bytes() for file in directory.iterdir()})
        changes = any(layer.B.abs().max() > 0 for layer in read.layers.values())
        assert changes == (name != TRAINED)


def test_a_stranger_is_the_same_each_time_and_not_like_another(base: ResidentBase) -> None:
    assert noisy(4, base.linears).digest == noisy(4, base.linears).digest
    assert len({noisy(rank, base.linears).digest for rank in STRANGERS.values()}) == len(STRANGERS)


@pytest.fixture
async def client(connection: Connection, topic_prefix: str) -> AsyncIterator[Client]:
    await ensure_topics(connection, topic_prefix)
    async with Client(connection, topic_prefix) as client:
        yield client


def answer(request_id: str) -> InferenceResult:
    error = {"code": "cancelled", "message": "x"}
    return InferenceResult(request_id=request_id, tenant="t", request_digest="a" * 64, status="error", error=error, completed_at_ms=1)


@pytest.mark.kafka
async def test_the_books_tell_answered_lost_and_doubled_requests_apart(connection: Connection, client: Client) -> None:
    tally = Tally(client)
    once, twice, _never, thrice = (tally.next_id() for _ in range(4))
    producer = Producer(connection, source="test")
    await producer.start()
    for request_id in (once, twice, twice, thrice, thrice, thrice, "demo-of-somebody-else"):
        await producer.publish(contracts.INFERENCE_REPLIES, answer(request_id), request_id)
    await producer.stop()
    assert await tally.count() == Counts(sent=4, visible=3, lost=1, duplicates=3)


@pytest.mark.kafka
async def test_counting_twice_counts_nothing_twice(connection: Connection, client: Client) -> None:
    tally = Tally(client)
    request_id = tally.next_id()
    producer = Producer(connection, source="test")
    await producer.start()
    await producer.publish(contracts.INFERENCE_REPLIES, answer(request_id), request_id)
    await producer.stop()
    assert await tally.count() == await tally.count() == Counts(sent=1, visible=1, lost=0, duplicates=0)


@pytest.mark.kafka
async def test_two_runs_of_the_demo_share_no_request_id(client: Client) -> None:
    one, other = Tally(client), Tally(client)
    assert not {one.next_id() for _ in range(20)} & {other.next_id() for _ in range(20)}


def test_topics_are_as_declared_unless_a_partition_count_is_set() -> None:
    assert topics(Settings.load()) == load_topics()
    assert topics(Settings.load(partitions=3))["adapter-commands"].partitions == 3
    assert topics(Settings.load(partitions=3))["base-models"].partitions == 1


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Logging is the process's: leave it as it was found."""
    root, ours = logging.getLogger(), logging.getLogger("mint_stream")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def logged(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.usefixtures("restored_logging")
def test_a_log_for_machines_is_one_json_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=True)
    logging.getLogger("mint_stream.workers").info("refused request_id=%s\nof é", "r-1")
    try:
        raise ValueError("the reason")
    except ValueError:
        logging.getLogger("mint_stream.app").exception("failed")
    first, second = logged(capsys)
    assert (first["level"], first["logger"], first["message"]) == ("info", "mint_stream.workers", "refused request_id=r-1\nof é")
    assert second["message"] == "failed" and "ValueError: the reason" in second["traceback"]
    assert "traceback" not in first


@pytest.mark.usefixtures("restored_logging")
def test_ours_is_told_from_info_up_and_everybody_elses_from_warning_up(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=True)
    for name in ("mint_stream.engine", "aiokafka"):
        logging.getLogger(name).debug("debug")
        logging.getLogger(name).info("info")
        logging.getLogger(name).warning("warning")
    assert [(line["logger"], line["message"]) for line in logged(capsys)] == [
        ("mint_stream.engine", "info"),
        ("mint_stream.engine", "warning"),
        ("aiokafka", "warning"),
    ]


@pytest.mark.usefixtures("restored_logging")
def test_a_log_for_people_is_a_line_with_its_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(as_json=False)
    logging.getLogger("mint_stream.app").info("ready")
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO    mint_stream.app  ready")


def test_a_line_has_its_time_in_utc_to_the_millisecond() -> None:
    record = logging.makeLogRecord({"msg": "x", "created": 1_700_000_000.0625})
    assert json.loads(logs.JsonLines().format(record))["at"] == "2023-11-14T22:13:20.062Z"
