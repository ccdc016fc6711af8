"""A real Apache Kafka (KRaft, one node) as a child process, from parts that pip alone can bring.

data_dir/  lock · server.properties · kafka.log (what the broker says) · log/ (the topics; formatted on first use)
"""

import base64
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from mint_stream.bus.kafka_parts import DEFAULT_PARTS, KAFKA_VERSION, find_java, require_jars
from mint_stream.bus.kafka_process import BrokerProcess, serves
from mint_stream.errors import BrokerFailed, PortTaken

_HOST = "127.0.0.1"
_START_S = 120.0
_STOP_S = 30.0
_FORMAT_S = 60.0
_LOCK_S = 5.0
"""How long a predecessor that was just killed may take to be gone."""
_PROBE_S = 0.1
_LOG_BYTES = 8 * 2**20
_TAIL_LINES = 3

# The first compiler tier only: a start costs half the CPU, on a machine whose cores the model wants too (2.6 s for 4.4 s, measured).
_JVM = ("-XX:+IgnoreUnrecognizedVMOptions", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN")

_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "16",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "16",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    # A killed broker may register again only when its old session is over; the default (9 s) would be most of a restart.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    # The default (128 MiB) is a quarter of our heap; 32 MiB dedupe 1.2 million keys in one pass.
    "log.cleaner.dedupe.buffer.size": str(32 * 2**20),
    # Two preallocated index files a partition: 10 MiB each by default, gigabytes to look at and slow to rebuild after a kill.
    "log.index.size.max.bytes": str(2**20),
    "num.recovery.threads.per.data.dir": "2",
}


class LocalKafka:
    """One broker on 127.0.0.1. What was acknowledged survives `kill()` and `start()` on the same `data_dir`.

    `port` and `controller_port` 0 pick free ones, which a later `start()` of this object keeps. The broker ends when this process ends.

    `format_arguments` go to Kafka's StorageTool when a directory is formatted: `--add-scram=...` makes a user."""

    version = KAFKA_VERSION

    def __init__(
        self,
        data_dir: Path,
        port: int = 0,
        heap_mib: int = 512,
        controller_port: int = 0,
        extra_properties: Mapping[str, str] | None = None,
        parts_dir: Path = DEFAULT_PARTS,
        format_arguments: Sequence[str] = (),
    ) -> None:
        self.data_dir = data_dir.expanduser().absolute()
        self.port = port
        self._controller_port = controller_port
        self._heap_mib = heap_mib
        self._extra = dict(extra_properties or {})
        self._parts_dir = parts_dir
        self._format_arguments = tuple(format_arguments)
        self._process: BrokerProcess | None = None

    @property
    def bootstrap_servers(self) -> str:
        """Where clients connect, once started."""
        return f"{_HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The broker's process id. Raises BrokerFailed when it was not started."""
        return self._running().pid

    @property
    def log_path(self) -> Path:
        """What the broker wrote to its standard output and error."""
        return self.data_dir / "kafka.log"

    def start(self) -> None:
        """Fetch what is missing, format a new directory, start, and return when the broker serves (4 to 8 s).

        Raises MissingJava, MissingExtra, DownloadCorrupt, PortTaken and BrokerFailed, each with what to do about it."""
        if self._process is not None and self._process.exit_code is None:
            raise BrokerFailed(f"the Kafka in {self.data_dir} is already running as process {self._process.pid}")
        java, jars = find_java(), require_jars(self._parts_dir)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        lock = _lock(self.data_dir)
        try:
            self.port = _own_port(self.port)
            self._controller_port = _own_port(self._controller_port)
            command = [str(java), f"-Xmx{self._heap_mib}m", *_JVM, "-cp", f"{jars}/*"]
            self._format(command)
            self._process = BrokerProcess([*command, "kafka.Kafka", str(self._write("server.properties", "log"))], self._log(), [lock])
        finally:
            os.close(lock)  # the broker holds it now, and for exactly as long as it lives
        self._wait_until_it_serves()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the broker has ended, after waiting that long for it."""
        return self._running().wait(timeout_s)

    def stop(self) -> None:
        """Let the broker close its files and end. Nothing when it does not run."""
        if self._process is not None:
            self._process.signal(signal.SIGTERM)
            if not self._process.wait(_STOP_S):
                self.kill()

    def kill(self) -> None:
        """SIGKILL: what a power cut leaves of the process. Returns when it is gone."""
        process = self._running()
        process.signal(signal.SIGKILL)
        process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _running(self) -> BrokerProcess:
        if self._process is None:
            raise BrokerFailed(f"the Kafka in {self.data_dir} was not started")
        return self._process

    def _log(self) -> Path:
        if self.log_path.exists() and self.log_path.stat().st_size > _LOG_BYTES:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
        return self.log_path

    def _write(self, name: str, log_dir: str) -> Path:
        settings = {
            **_PROPERTIES,
            "controller.quorum.voters": f"1@{_HOST}:{self._controller_port}",
            "listeners": f"PLAINTEXT://{_HOST}:{self.port},CONTROLLER://{_HOST}:{self._controller_port}",
            "log.dirs": str(self.data_dir / log_dir),
            **self._extra,
        }
        path = self.data_dir / name
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        return path

    def _format(self, command: list[str]) -> None:
        """Format beside, then rename: a format that was killed half-way is done again."""
        whole, half = self.data_dir / "log", self.data_dir / "log.new"
        if whole.exists():
            return
        shutil.rmtree(half, ignore_errors=True)
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = [
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster_id}",
            "--config",
            str(self._write("format.properties", half.name)),
            *self._format_arguments,
        ]
        done = subprocess.run([*command, *tool], capture_output=True, text=True, timeout=_FORMAT_S, check=False)
        if done.returncode:
            raise BrokerFailed(f"{self.data_dir} could not be formatted for Kafka: {_last_line(done.stderr or done.stdout)}")
        half.rename(whole)

    def _wait_until_it_serves(self) -> None:
        process, give_up_at_s = self._running(), time.monotonic() + _START_S
        while not serves(_HOST, self.port):
            if process.wait(_PROBE_S):
                raise BrokerFailed(f"Kafka ended with code {process.exit_code}: {self._said()}; the whole story is in {self.log_path}")
            if time.monotonic() > give_up_at_s:
                self.kill()
                raise BrokerFailed(f"Kafka did not serve within {_START_S:g} s: {self._said()}; see {self.log_path}")

    def _said(self) -> str:
        return _last_line(self.log_path.read_text(errors="replace"))


def _last_line(text: str) -> str:
    """The last lines that are no stack frames, as one."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith(("\t", "    at "))]
    return " | ".join(lines[-_TAIL_LINES:]) or "it said nothing"


def _own_port(port: int) -> int:
    """A port nobody listens on: this one, or any for 0. Raises PortTaken."""
    try:
        with socket.create_server((_HOST, port)) as listener:
            return int(listener.getsockname()[1])
    except OSError as error:
        raise PortTaken(f"port {port} of {_HOST} is taken by another process; choose another with --port (0 picks a free one)") from error


def _lock(data_dir: Path) -> int:
    """An open descriptor that locks the directory for whoever holds it. Raises BrokerFailed when somebody does."""
    descriptor = os.open(data_dir / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    give_up_at_s = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > give_up_at_s:
                os.close(descriptor)
                raise BrokerFailed(f"{data_dir} is used by another running Kafka; stop it or choose another directory") from error
            time.sleep(_PROBE_S)
        else:
            return descriptor
