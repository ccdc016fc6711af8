"""Streams of the real engine over the real broker: pieces join to the text, and a cancelled stream ends as cancelled."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import uuid4

import pytest

from mint_stream import contracts
from mint_stream.app.importing import import_adapter
from mint_stream.app.register import RegisterRole
from mint_stream.app.serve import ServeRole
from mint_stream.app.workplace import Workplace
from mint_stream.bus.connection import Connection
from mint_stream.bus.table import LogReader, LogRecord
from mint_stream.client import Client
from mint_stream.messages.inference import InferenceChunk, InferenceResult, Sampling
from mint_stream.metrics import Metrics
from mint_stream.settings import Settings
from tests.factories import peft_files, tiny_base
from tests.provisioned import PARTITIONS, ensure_topics

pytestmark = pytest.mark.kafka

CONTEXT_TOKENS = 8192
LONG = Sampling(max_tokens=400, ignore_eos=True, temperature=1.0)
ENDLESS = LONG.model_copy(update={"max_tokens": CONTEXT_TOKENS - 200})
"""Takes many times as long as a cancellation does, on a machine that is busy with other things too."""


@pytest.fixture(scope="module")
async def settings(connection: Connection, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    room = tmp_path_factory.mktemp("streaming")
    pool = f"streaming-{uuid4().hex[:8]}"
    await ensure_topics(connection, pool)
    return Settings.load(
        base=str(tiny_base(room / "base", max_position_embeddings=CONTEXT_TOKENS)),
        pool=pool,
        home=room / "home",
        partitions=PARTITIONS,
        kafka={"bootstrap_servers": connection.bootstrap_servers},
        serving={"context_tokens": CONTEXT_TOKENS},
    )


@pytest.fixture(scope="module")
async def role(settings: Settings, connection: Connection) -> AsyncIterator[ServeRole]:
    """The serve role as the shell runs it, in this process."""
    with Workplace(settings.home, "serve") as workplace:
        role = ServeRole(settings, connection, Metrics(), workplace)
        await role.start()
        running = asyncio.create_task(role.run())
        yield role
        await role.drain()
        await running


@pytest.fixture(scope="module")
async def client(settings: Settings, role: ServeRole) -> AsyncIterator[Client]:
    async with Client(settings) as client:
        yield client


async def streamed(
    client: Client, prompt: str, adapter: str | None = None, **options: object
) -> tuple[list[InferenceChunk], InferenceResult]:
    """The chunks and the result of one stream."""
    chunks: list[InferenceChunk] = []
    async for part in client.stream(prompt, adapter, **options):
        if isinstance(part, InferenceResult):
            return chunks, part
        assert isinstance(part, InferenceChunk), part
        chunks.append(part)
    raise AssertionError("a stream ends with its result")


async def test_the_chunks_of_a_stream_join_to_its_result(client: Client) -> None:
    chunks, result = await streamed(client, "once upon a time", sampling=LONG)
    assert result.status == "ok" and result.usage is not None
    assert "".join(chunk.text for chunk in chunks) == result.text
    assert [chunk.sequence for chunk in chunks] == list(range(len(chunks)))
    assert {(chunk.request_id, chunk.attempt) for chunk in chunks} == {(result.request_id, result.attempt)}
    assert result.usage.completion_tokens == LONG.max_tokens
    assert len(chunks) > 1


async def test_the_whole_text_is_in_the_log_before_the_result_is(client: Client) -> None:
    """A client fills up what it missed, so this looks into the logs."""
    logs = [Log(client, topic) for topic in (contracts.INFERENCE_CHUNKS, contracts.INFERENCE_REPLIES)]
    for log in logs:
        await log.reader.start()
    _, result = await streamed(client, "once upon a time", sampling=LONG)
    chunks, results = [await log.of(result.request_id) for log in logs]
    assert "".join(InferenceChunk.decode(chunk.value).text for chunk in chunks) == result.text
    assert max(chunk.timestamp_ms for chunk in chunks) <= results[0].timestamp_ms


class Log:
    """What comes to a topic from now on."""

    def __init__(self, client: Client, topic: contracts.Topic) -> None:
        self.reader = LogReader(client.connection, topic.name(), self._take, "latest")
        self._records: list[LogRecord] = []

    def _take(self, _partition: int, records: Sequence[LogRecord], _next: int) -> None:
        self._records.extend(records)

    async def of(self, request_id: str) -> list[LogRecord]:
        """All under this key so far; ends the reading."""
        await self.reader.caught_up()
        await self.reader.stop()
        return [record for record in self._records if record.key == request_id.encode()]


async def test_a_stream_says_what_a_whole_answer_says(client: Client) -> None:
    sampling = LONG.model_copy(update={"max_tokens": 60, "seed": 3})
    _, result = await streamed(client, "the same", sampling=sampling)
    whole = await client.generate("the same", sampling=sampling)
    assert (result.text, result.tokens, result.finish_reason) == (whole.text, whole.tokens, whole.finish_reason)


async def test_a_stop_string_never_shows_in_a_stream(client: Client) -> None:
    sampling = LONG.model_copy(update={"max_tokens": 120, "seed": 5})
    whole = (await client.generate("stop here", sampling=sampling)).text or ""
    stop = whole[len(whole) // 2 :][:2]
    chunks, result = await streamed(client, "stop here", sampling=sampling.model_copy(update={"stop": (stop,)}))
    text = "".join(chunk.text for chunk in chunks)
    assert text == result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"


async def test_streams_at_once_do_not_mix(client: Client) -> None:
    sampling = LONG.model_copy(update={"max_tokens": 80})
    ids = [f"{uuid4().hex}-{number}" for number in range(8)]
    together = await asyncio.gather(*(streamed(client, f"prompt {n}", sampling=sampling, request_id=name) for n, name in enumerate(ids)))
    for request_id, (chunks, result) in zip(ids, together, strict=True):
        assert result.request_id == request_id
        assert {chunk.request_id for chunk in chunks} == {request_id}
        assert "".join(chunk.text for chunk in chunks) == result.text
    assert len({result.text for _, result in together}) == len(ids)


async def test_a_stream_that_is_cancelled_ends_as_cancelled(client: Client, role: ServeRole) -> None:
    """Cancelled at its first chunk, while the engine is in the middle of it."""
    request_id, seen = uuid4().hex, []
    async for part in client.stream("for a long time", sampling=ENDLESS, request_id=request_id):
        if not seen:
            await client.cancel(request_id, "heard enough")
        seen.append(part)
    result = seen[-1]
    assert isinstance(result, InferenceResult) and result.error is not None
    assert result.error.code == "cancelled" and "heard enough" in result.error.message
    assert all(isinstance(part, InferenceChunk) for part in seen[:-1]) and len(seen) > 1
    assert role.status("ready").running == 0


async def test_a_stream_of_an_adapter_nobody_announced_is_only_an_error(client: Client) -> None:
    chunks, result = await streamed(client, "x", "nobody-knows-this-one")
    assert not chunks
    assert result.error is not None and result.error.code == "unknown-adapter"


async def test_an_adapter_streams_its_own_text(client: Client, settings: Settings, connection: Connection, tmp_path: Path) -> None:
    name = f"streams-{settings.pool_name}"
    directory = tmp_path / name
    directory.mkdir()
    for file, content in peft_files(Path(settings.base), seed=1).items():
        (directory / file).write_bytes(content)
    sampling = LONG.model_copy(update={"max_tokens": 40, "temperature": 0.0})
    with Workplace(settings.home, "register") as workplace:
        registrar = RegisterRole(settings, connection, Metrics(), workplace)
        await registrar.start()
        running = asyncio.create_task(registrar.run())
        event = await import_adapter(client, settings, name, str(directory))
        await registrar.drain()
        await running
    _, bare = await streamed(client, "who are you", sampling=sampling)
    chunks, result = await streamed(client, "who are you", name, sampling=sampling, after=event.catalog_position)
    assert result.served_by is not None and result.served_by.number == 1
    assert "".join(chunk.text for chunk in chunks) == result.text != bare.text
