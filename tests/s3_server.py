"""A real S3 server for tests: versitygw, found through MINT_TEST_S3_SERVER or PATH."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import s3fs


@dataclass(frozen=True)
class S3Server:
    """Where it listens, and what s3fs must be told."""

    options: dict[str, Any]

    def new_bucket(self, name: str) -> str:
        """Make a bucket; gives its uri."""
        s3fs.S3FileSystem(**self.options).mkdir(name)
        return f"s3://{name}"


def find_server() -> str | None:
    """The program, or None: then the tests that need it are skipped by name."""
    return os.environ.get("MINT_TEST_S3_SERVER") or shutil.which("versitygw")


@contextmanager
def running_server(program: str, directory: Path) -> Iterator[S3Server]:
    """Run it on a free port until the block ends."""
    port = _free_port()
    keys = {"ROOT_ACCESS_KEY": "mint-test", "ROOT_SECRET_KEY": "mint-test-secret"}
    command = [program, "--port", f"127.0.0.1:{port}", "posix", str(directory)]
    with (directory.parent / f"{directory.name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | keys, stdout=log, stderr=log)
        try:
            _wait_until_open(port, process)
            yield S3Server({"endpoint_url": f"http://127.0.0.1:{port}", "key": "mint-test", "secret": "mint-test-secret"})
        finally:
            process.terminate()
            process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_open(port: int, process: subprocess.Popen[bytes], limit_s: float = 20.0) -> None:
    until = time.monotonic() + limit_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1.0).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.05)  # polling a foreign process; nothing it could tell us by
        else:
            return
