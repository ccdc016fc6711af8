"""The embedded broker: what it acknowledged it keeps, and every way to fail is one clear sentence."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from typer.testing import CliRunner

from mint_stream.bus import kafka_parts, provision
from mint_stream.bus.connection import Connection
from mint_stream.bus.kafka_parts import DEFAULT_PARTS, find_java, read_pins, require_jars, verify_jars
from mint_stream.bus.kafka_process import serves
from mint_stream.bus.local_kafka import LocalKafka
from mint_stream.cli.topics import app as topics
from mint_stream.contracts import TRAINING_CONTROLS
from mint_stream.errors import BrokerFailed, DownloadCorrupt, MissingExtra, MissingJava, PortTaken

TOPIC = TRAINING_CONTROLS.model_copy(update={"name_pattern": "kept", "partitions": 1})

# A parent that starts a broker, says its process id, and waits to be killed.
PARENT = """
import sys, pathlib, threading
from mint_stream.bus.local_kafka import LocalKafka
broker = LocalKafka(pathlib.Path(sys.argv[1]))
starter = threading.Thread(target=broker.start)  # ends before we do: the broker must not end with it
starter.start()
starter.join()
print(broker.pid, broker.port, flush=True)
sys.stdin.read()
"""


class Load:
    """Produces numbered records as fast as they are acknowledged, and remembers which were."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.acked: list[int] = []
        self.progress = asyncio.Condition()

    async def run(self) -> None:
        producer = AIOKafkaProducer(acks="all", enable_idempotence=True, request_timeout_ms=5000, **self._connection.options())
        await producer.start()
        try:
            for number in range(1_000_000):
                await self._send(producer, number)
        finally:
            with suppress(KafkaError, asyncio.CancelledError):
                await producer.stop()

    async def acknowledged(self, count: int) -> None:
        async with self.progress:
            await self.progress.wait_for(lambda: len(self.acked) >= count)

    async def _send(self, producer: AIOKafkaProducer, number: int) -> None:
        with suppress(KafkaError):  # not acknowledged: it may be there or not
            await producer.send_and_wait(TOPIC.name(), str(number).encode())
            self.acked.append(number)
            async with self.progress:
                self.progress.notify_all()


async def read_all(connection: Connection) -> list[int]:
    partition = TopicPartition(TOPIC.name(), 0)
    consumer = AIOKafkaConsumer(auto_offset_reset="earliest", **connection.options())
    await consumer.start()
    try:
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        numbers: list[int] = []
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                numbers += [int(record.value or b"") for record in records]
        return numbers
    finally:
        await consumer.stop()


@pytest.mark.kafka
async def test_what_was_acknowledged_before_and_after_a_kill_is_read_once_and_in_order(kafka_dir: Path) -> None:
    broker = LocalKafka(kafka_dir)
    await asyncio.to_thread(broker.start)
    connection = Connection(broker.bootstrap_servers)
    await provision.apply(connection, [TOPIC])
    load = Load(connection)
    producing = asyncio.create_task(load.run())
    await load.acknowledged(200)
    await asyncio.to_thread(broker.kill)
    before = len(load.acked)
    await asyncio.to_thread(broker.start)
    await load.acknowledged(before + 200)
    producing.cancel()
    await asyncio.gather(producing, return_exceptions=True)
    read = await read_all(connection)
    await asyncio.to_thread(broker.stop)
    assert set(load.acked) <= set(read), "an acknowledged record was lost"
    assert read == sorted(set(read)), "a record was doubled or out of order"


@pytest.mark.kafka
def test_it_starts_stops_and_starts_again_on_the_same_port_and_holds_its_directory_meanwhile(kafka_dir: Path) -> None:
    broker = LocalKafka(kafka_dir)
    with broker:
        port = broker.port
        assert serves("127.0.0.1", port)
        with pytest.raises(BrokerFailed, match="already running"):
            broker.start()
        with pytest.raises(BrokerFailed, match="is used by another running Kafka"):
            LocalKafka(kafka_dir).start()
        with pytest.raises(PortTaken, match=f"port {port} of"):
            LocalKafka(kafka_dir.with_name("other"), port).start()
    assert not serves("127.0.0.1", port)
    with broker:
        assert broker.port == port
    assert "Exception" not in broker.log_path.read_text()


@pytest.mark.kafka
def test_it_ends_with_the_process_that_started_it_but_not_with_a_mere_thread(kafka_dir: Path) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(kafka_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        assert serves("127.0.0.1", port)
        parent.kill()
        watched = os.pidfd_open(pid) if Path(f"/proc/{pid}").exists() else None
    if watched is not None:
        asyncio.run(_closed(watched))
    assert not serves("127.0.0.1", port)


async def _closed(descriptor: int) -> None:
    """Until the process behind a pidfd has ended."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    await asyncio.wait_for(ended.wait(), 30)
    loop.remove_reader(descriptor)
    os.close(descriptor)


@pytest.mark.kafka
def test_a_broker_that_cannot_start_says_why_and_leaves_the_directory_free(kafka_dir: Path) -> None:
    with pytest.raises(BrokerFailed, match=r"no\.such\.size"):
        LocalKafka(kafka_dir, extra_properties={"message.max.bytes": "no.such.size"}).start()
    with LocalKafka(kafka_dir) as broker:
        assert serves("127.0.0.1", broker.port)


@pytest.mark.kafka
def test_the_commands_serve_a_broker_give_it_every_topic_and_stop_cleanly(kafka_dir: Path) -> None:
    code = "import sys, typer; from mint_stream.cli.kafka import kafka; typer.run(kafka)"
    command = [sys.executable, "-c", code, "--data-dir", str(kafka_dir), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        found = re.search(r"Kafka [\d.]+ serves at (127\.0\.0\.1:(\d+)) ", said)
        assert found and serves("127.0.0.1", int(found.group(2)))
        here = ["--bootstrap", found.group(1), "--pool", "p", "--json"]
        planned, applied, after = (CliRunner().invoke(topics, [verb, *here]) for verb in ("plan", "apply", "plan"))
        assert (planned.exit_code, applied.exit_code, after.exit_code) == (1, 0, 0)
        changes = json.loads(applied.stdout)
        assert changes == json.loads(planned.stdout) and json.loads(after.stdout) == []
        assert {"inference-requests-p", "inference-requests-p-dlq", "adapter-revisions"} <= {change["topic"] for change in changes}
        running.send_signal(signal.SIGINT)
        assert running.stdout.read() == "Kafka stopped\n"
    assert running.returncode == 0


def test_a_taken_port_is_named_before_anything_starts(kafka_dir: Path) -> None:
    require_jars()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {port} of 127\.0\.0\.1 is taken"):
            LocalKafka(kafka_dir, port).start()


def test_a_jar_with_one_flipped_bit_stops_the_start_and_is_named(kafka_dir: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(require_jars(), parts)
    jar = parts / f"kafka-clients-{LocalKafka.version}.jar"
    content = bytearray(jar.read_bytes())
    content[len(content) // 2] ^= 1
    jar.write_bytes(content)
    with pytest.raises(DownloadCorrupt, match=rf"{jar.name} is not what .* delete {parts} and start again"):
        LocalKafka(kafka_dir, parts_dir=parts).start()


def test_a_download_that_is_not_what_was_pinned_is_not_kept(tmp_path: Path) -> None:
    pins = {"kafka_2.13-4.1.0.jar": "0" * 64}
    with pytest.raises(DownloadCorrupt):
        kafka_parts.adopt({"kafka_2.13-4.1.0.jar": DEFAULT_PARTS / "kafka_2.13-4.1.0.jar"}, pins, tmp_path / "parts")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_jar_beside_the_pinned_ones_is_refused(tmp_path: Path) -> None:
    (tmp_path / "foreign.jar").write_bytes(b"x")
    with pytest.raises(DownloadCorrupt, match="foreign"):
        verify_jars(tmp_path, {})


def test_the_pins_are_sha256s_of_jars_of_the_one_version() -> None:
    pins = read_pins()
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) and name.endswith(".jar") for name, digest in pins.items())
    assert {name for name in pins if name.startswith("kafka-") and LocalKafka.version not in name} == set()


def test_no_java_is_said_with_what_to_do() -> None:
    with pytest.raises(MissingJava, match=r"needs Java 17 or newer \(found: none\); install the extra"):
        find_java([])


def test_an_old_java_and_a_broken_one_are_passed_over_and_named(tmp_path: Path) -> None:
    old, broken = tmp_path / "old", tmp_path / "broken"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\"' >&2\n")
    broken.write_text("#!/bin/sh\nexit 1\n")
    for script in (old, broken):
        script.chmod(0o755)
    with pytest.raises(MissingJava, match=r"old \(Java 11\), .*broken \(does not run\), .*absent \(does not run\)"):
        find_java([old, broken, tmp_path / "absent"])
    assert find_java([old, *kafka_parts.java_candidates()]) != old


def test_a_first_start_without_the_resolver_says_which_extra(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; sys.modules['jgo'] = None\n"
        "from mint_stream.bus.kafka_parts import require_jars\n"
        "from mint_stream.errors import MissingExtra\n"
        "try: require_jars(pathlib.Path(sys.argv[1]) / 'parts')\n"
        "except MissingExtra as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "pip install 'mint-stream[local]'" in done.stdout
    assert issubclass(MissingExtra, Exception) and list(tmp_path.iterdir()) == []
