"""The broker's process: ends when we end, however we end, and is asked over the wire whether it serves."""

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from mint_stream.errors import BrokerFailed

_PR_SET_PDEATHSIG = 1
_ANSWER_S = 2.0
_METADATA = 3
_METADATA_VERSION = 1


class BrokerProcess:
    """A child with its output in a file.

    Linux sends the child SIGKILL when the *thread* that forked it ends, so one thread does nothing but fork it and wait for it."""

    def __init__(self, command: Sequence[str], log_path: Path, inherit: Sequence[int] = ()) -> None:
        self._command = list(command)
        self._log_path = log_path
        self._inherit = tuple(inherit)
        self._born = threading.Event()
        self._ended = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        threading.Thread(target=self._run, name="kafka", daemon=True).start()
        self._born.wait()
        if self._failure is not None:
            raise BrokerFailed(f"{self._command[0]} could not be run: {self._failure}") from self._failure

    @property
    def pid(self) -> int:
        """The process id of the child."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; a negative number is the signal that ended it."""
        return self._process.returncode if self._process is not None and self._ended.is_set() else None

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it has ended, after waiting that long for it."""
        return self._ended.wait(timeout_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing when it has ended."""
        if self._process is not None and not self._ended.is_set():
            self._process.send_signal(number)

    def _run(self) -> None:
        try:
            with self._log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=self._inherit,
                    start_new_session=True,
                    preexec_fn=die_with(os.getpid()),
                )
        except OSError as error:
            self._failure = error
        finally:
            self._born.set()
        if self._process is not None:
            self._process.wait()
        self._ended.set()


def die_with(parent: int) -> Callable[[], None] | None:
    """What a child does between fork and exec: ask Linux for SIGKILL when its parent ends, and go if it already has."""
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def serves(host: str, port: int) -> bool:
    """Whether a Kafka broker answers there and counts itself as live (it lists at least one broker in its metadata)."""
    # api key, version, correlation id, null client id, then an empty list of topics
    request = struct.pack(">hhih", _METADATA, _METADATA_VERSION, 1, -1) + struct.pack(">i", 0)
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_S) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.makefile("rb").read(12)
    except OSError:
        return False
    return len(answer) == 12 and struct.unpack(">iii", answer)[2] > 0
