"""`mint-stream adapters import`: what real peft saved becomes a revision announced by a real registrar, or one line says why not."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from typer.testing import Result

from mint_stream import contracts
from mint_stream.adapter import CONFIG_FILE, TENSORS_FILE, AdapterWeights
from mint_stream.bus.connection import Connection
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.bus.producer import Producer
from mint_stream.client import Client
from mint_stream.messages.adapters import AdapterEvent
from mint_stream.messages.fleet import PoolBase
from mint_stream.model.base import load_base
from mint_stream.store import Store
from mint_stream.workers.catalog_writer import RegistrarTopics
from tests.factories import peft_files, tiny_base
from tests.provisioned import ensure_topics
from tests.registrar_ground import Ground

pytestmark = pytest.mark.kafka

POOL = "imports"
PARTITIONS = 4
Command = Callable[..., Awaitable[Result]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def pool_base(base: Path) -> PoolBase:
    """What a serving worker of the pool would have said of its base."""
    loaded = load_base(base)
    return PoolBase(
        pool=POOL,
        base_digest=loaded.digest,
        architecture=loaded.architecture,
        context_tokens=loaded.context_tokens,
        vocabulary_tokens=loaded.vocabulary_tokens,
        targets=loaded.targets(),
        max_rank=16,
    )


@pytest.fixture(scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory, pool_base: PoolBase) -> AsyncIterator[Connection]:
    """A broker of its own, so that nobody else's registrar answers here: topics, the pool's base, one registrar."""
    with LocalKafka(tmp_path_factory.mktemp("kafka"), heap_mib=256) as broker:
        connection = Connection(broker.bootstrap_servers)
        await ensure_topics(connection, POOL)
        producer = Producer(connection, source="test")
        await producer.start()
        await producer.publish(contracts.BASE_MODELS, pool_base, POOL)
        await producer.stop()
        async with Ground(connection, "imports", RegistrarTopics(PARTITIONS)).registrar():
            yield connection


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store((tmp_path / "store").as_uri())


@pytest.fixture
def command(run, fleet: Connection, store: Store, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`await command("show", ...)` is `mint-stream adapters show ...` of this pool, with a store of the test's own."""
    monkeypatch.setenv("MINT_POOL", POOL)
    monkeypatch.setenv("MINT_STORE__URI", store.uri)
    return lambda *arguments: asyncio.to_thread(run, "adapters", *arguments, "--bootstrap", fleet.bootstrap_servers)


@pytest.fixture
async def client(fleet: Connection) -> AsyncIterator[Client]:
    async with Client(fleet, POOL) as client:
        yield client


def saved(directory: Path, files: dict[str, bytes]) -> Path:
    """The files in a directory, as `save_pretrained` leaves them."""
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def uploads(store: Store) -> list[str]:
    return store.list_objects("adapters")


async def test_an_imported_adapter_is_announced_and_its_files_are_those_peft_saved(
    command: Command, client: Client, store: Store, base: Path, pool_base: PoolBase, topic_prefix: str, tmp_path: Path
):
    files = peft_files(base, seed=3)
    shown = await command("import", topic_prefix, saved(tmp_path / "poet", files), "--rule", "auto", "--json")
    assert shown.exit_code == 0, shown.output
    event = json.loads(shown.stdout)
    assert (event["type"], event["adapter_id"], event["number"]) == ("revision-announced", topic_prefix, 1)
    view = await client.adapter(topic_prefix)
    assert (view.production, view.head.rule) == (1, "auto")
    revision = view.revisions[0]
    assert revision.uri is not None and revision.digest == AdapterWeights.from_files(files).digest
    manifest = store.read_manifest(revision.uri)
    assert manifest.base_digest == pool_base.base_digest
    held, given = AdapterWeights.from_files(store.read_revision(manifest)), AdapterWeights.from_files(files)
    assert all(
        torch.equal(held.layers[path].A, layer.A) and torch.equal(held.layers[path].B, layer.B) for path, layer in given.layers.items()
    )


async def test_each_import_is_the_next_number_and_the_rule_given_first_stays(
    command: Command, client: Client, base: Path, topic_prefix: str, tmp_path: Path
):
    for seed in range(3):
        source = saved(tmp_path / str(seed), peft_files(base, seed=seed))
        rule = ("--rule", "manual") if seed == 0 else ()
        assert (await command("import", topic_prefix, source, *rule)).exit_code == 0
    view = await client.adapter(topic_prefix)
    assert [revision.number for revision in view.revisions] == [1, 2, 3]
    assert len({revision.digest for revision in view.revisions}) == 3
    assert (view.production, view.head.rule) == (None, "manual")


async def test_the_same_directory_twice_is_two_revisions_of_one_digest(
    command: Command, client: Client, store: Store, base: Path, topic_prefix: str, tmp_path: Path
):
    source = saved(tmp_path / "poet", peft_files(base))
    for _ in range(2):
        assert (await command("import", topic_prefix, source)).exit_code == 0
    first, second = (await client.adapter(topic_prefix)).revisions
    assert first.digest == second.digest and first.uri != second.uri
    assert len(uploads(store)) == 6


async def test_the_table_of_a_revision_shows_rank_state_and_digest(command: Command, base: Path, topic_prefix: str, tmp_path: Path):
    files = peft_files(base, r=2, lora_alpha=4)
    await command("import", topic_prefix, saved(tmp_path / "poet", files), "--rule", "auto")
    heading, columns, row = (await command("show", topic_prefix)).stdout.splitlines()
    assert heading == f"{topic_prefix} · pool {POOL} · rule auto · aliases: candidate = 1, production = 1"
    assert columns.split() == ["number", "state", "rank", "bytes", "parent", "job", "step", "announced", "digest"]
    cells = row.split()
    assert (cells[0], cells[1], cells[2], cells[-1]) == ("1", "announced", "2", AdapterWeights.from_files(files).digest[:12])


async def test_without_json_an_event_is_lines_of_field_and_value(command: Command, base: Path, topic_prefix: str, tmp_path: Path):
    shown = await command("import", topic_prefix, saved(tmp_path / "poet", peft_files(base)))
    fields = dict(line.split(maxsplit=1) for line in shown.stdout.splitlines())
    assert (fields["type"], fields["adapter_id"], fields["number"]) == ("revision-announced", topic_prefix, "1")


async def test_a_subscriber_hears_of_the_import(command: Command, client: Client, base: Path, topic_prefix: str, tmp_path: Path):
    source = saved(tmp_path / "poet", peft_files(base))
    async with client.revisions(topic_prefix) as events:
        await command("import", topic_prefix, source, "--rule", "auto")
        heard: list[AdapterEvent] = [await anext(events), await anext(events)]
    assert [event.type for event in heard] == ["revision-announced", "alias-moved"]


def pickled(files: dict[str, bytes]) -> dict[str, bytes]:
    return {CONFIG_FILE: files[CONFIG_FILE], "adapter_model.bin": b"\x80\x04 a pickle"}


def with_nan(files: dict[str, bytes]) -> dict[str, bytes]:
    tensors = safetensors.torch.load(files[TENSORS_FILE])
    first = sorted(tensors)[0]
    tensors[first][0, 0] = float("nan")
    return files | {TENSORS_FILE: safetensors.torch.save(tensors)}


def with_setting(files: dict[str, bytes], **settings: object) -> dict[str, bytes]:
    return files | {CONFIG_FILE: json.dumps(json.loads(files[CONFIG_FILE]) | settings).encode()}


def cut_short(files: dict[str, bytes]) -> dict[str, bytes]:
    return files | {TENSORS_FILE: files[TENSORS_FILE][:-1]}


REFUSED = {
    "a pickle": (pickled, "invalid-adapter", "adapter_model.bin is a pickle"),
    "a number that is not finite": (with_nan, "invalid-adapter", "finite"),
    "DoRA": (lambda files: with_setting(files, use_dora=True), "invalid-adapter", "DoRA"),
    "another kind of adapter": (lambda files: with_setting(files, peft_type="IA3"), "invalid-adapter", "IA3"),
    "a truncated file": (cut_short, "invalid-adapter", TENSORS_FILE),
    "a config that is no JSON": (lambda files: files | {CONFIG_FILE: b"{"}, "invalid-adapter", CONFIG_FILE),
    "nothing": (lambda _: {}, "invalid-adapter", f"{CONFIG_FILE} is missing"),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_cannot_be_served_is_refused_in_one_line_and_leaves_nothing_behind(
    command: Command, client: Client, store: Store, base: Path, topic_prefix: str, tmp_path: Path, what: str
):
    damage, code, says = REFUSED[what]
    refused = await command("import", topic_prefix, saved(tmp_path / "poet", damage(peft_files(base))))
    assert refused.exit_code == 1 and refused.stdout == ""
    assert refused.stderr.startswith(f"error {code}: ") and says in refused.stderr and refused.stderr.count("\n") == 1
    assert uploads(store) == []
    assert topic_prefix not in {view.adapter_id for view in await client.adapters()}


async def test_an_adapter_of_another_base_is_a_mismatch_and_nothing_is_uploaded(
    command: Command, store: Store, topic_prefix: str, tmp_path: Path
):
    other = tiny_base(tmp_path / "wide", hidden_size=32)
    refused = await command("import", topic_prefix, saved(tmp_path / "poet", peft_files(other)))
    assert refused.exit_code == 1 and refused.stderr.startswith("error base-mismatch: ")
    assert uploads(store) == []


async def test_a_rank_over_what_the_pool_takes_is_refused(command: Command, base: Path, topic_prefix: str, tmp_path: Path):
    refused = await command("import", topic_prefix, saved(tmp_path / "poet", peft_files(base, r=32)))
    assert refused.exit_code == 1 and "32" in refused.stderr and "16" in refused.stderr


async def test_a_path_that_is_no_directory_is_named(command: Command, topic_prefix: str, tmp_path: Path):
    refused = await command("import", topic_prefix, tmp_path / "nowhere")
    assert refused.exit_code == 1 and refused.stderr.startswith(f"error invalid-adapter: {tmp_path / 'nowhere'} is not a directory")


async def test_a_uri_is_imported_only_from_below_an_allowed_root(
    command: Command, client: Client, base: Path, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = saved(tmp_path / "shared" / "poet", peft_files(base)).as_uri()
    refused = await command("import", topic_prefix, source)
    assert refused.exit_code == 1 and refused.stderr.startswith("error uri-not-allowed: ") and "MINT_STORE__ALLOWED_ROOTS" in refused.stderr
    monkeypatch.setenv("MINT_STORE__ALLOWED_ROOTS", json.dumps([(tmp_path / "shared").as_uri()]))
    assert (await command("import", topic_prefix, source)).exit_code == 0
    assert len((await client.adapter(topic_prefix)).revisions) == 1


async def test_a_pool_without_a_base_says_what_to_start(command: Command, base: Path, topic_prefix: str, tmp_path: Path):
    refused = await command("import", topic_prefix, saved(tmp_path / "poet", peft_files(base)), "--pool", topic_prefix)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("error base-unusable: ") and f"mint-stream serve --pool {topic_prefix}" in refused.stderr


async def test_a_store_that_cannot_create_atomically_stops_the_import(
    command: Command, base: Path, topic_prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MINT_STORE__URI", "gs://bucket/store")
    refused = await command("import", topic_prefix, saved(tmp_path / "poet", peft_files(base)))
    assert refused.exit_code == 2 and refused.stderr.startswith("error store-unsuitable: ")


async def test_commands_to_what_was_imported_answer_one_after_the_other(
    command: Command, client: Client, base: Path, topic_prefix: str, tmp_path: Path
):
    """Promote, roll back, choose a rule, retire: what the catalog shows afterwards is what the events said."""
    for seed in range(2):
        await command("import", topic_prefix, saved(tmp_path / str(seed), peft_files(base, seed=seed)), "--rule", "manual")
    for number in (1, 2):
        moved = json.loads((await command("promote", topic_prefix, number, "--json")).stdout)
        assert (moved["type"], moved["alias"], moved["number"]) == ("alias-moved", "production", number)
    candidate = json.loads((await command("promote", topic_prefix, 1, "--alias", "candidate", "--json")).stdout)
    assert (candidate["alias"], candidate["number"]) == ("candidate", 1)
    back = json.loads((await command("rollback", topic_prefix, "--json")).stdout)
    assert (back["number"], back["cause"]) == (1, "roll-back")
    served = await command("retire", topic_prefix, 1)
    assert served.exit_code == 1 and served.stderr.startswith("error command-rejected: retire of adapter")
    assert json.loads((await command("retire", topic_prefix, 2, "--json")).stdout)["type"] == "revision-retired"
    again = await command("promote", topic_prefix, 2)
    assert again.exit_code == 1 and again.stderr.startswith("error command-rejected: promote of adapter")
    view = await client.adapter(topic_prefix)
    assert view.production == 1 and [revision.state for revision in view.revisions] == ["announced", "retired"]


async def test_a_timeout_too_short_to_mean_anything_is_refused(command: Command, topic_prefix: str):
    refused = await command("promote", topic_prefix, 1, "--timeout", 0)
    assert refused.exit_code == 2 and "--timeout" in refused.stderr


@pytest.mark.parametrize("arguments", [("promote", "a", 0), ("promote", "a", "x"), ("rules", "a", "sometimes"), ("retire", "a"), ("show",)])
async def test_arguments_that_mean_nothing_are_refused_with_usage(command: Command, arguments: tuple[object, ...]):
    refused = await command(*arguments)
    assert refused.exit_code == 2 and "Usage" in refused.stderr


async def test_what_is_not_in_the_catalog_is_said_in_one_line(command: Command, topic_prefix: str):
    for arguments in (("show", topic_prefix), ("rollback", topic_prefix), ("rules", topic_prefix, "auto"), ("retire", topic_prefix, 1)):
        refused = await command(*arguments)
        assert refused.exit_code == 1 and refused.stderr.startswith("error ") and topic_prefix in refused.stderr
        assert refused.stderr.count("\n") == 1
