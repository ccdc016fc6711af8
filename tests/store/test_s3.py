"""A server that ignores `If-None-Match` is refused, every time: never only at the first write."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mint_stream.errors import StoreUnavailable, StoreUnsuitable
from mint_stream.store import Store


class Overwriting(ThreadingHTTPServer):
    """As much of S3 as a store writes with; every write wins. While `down` it takes none."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.held: dict[str, bytes] = {}
        self.down = False


class _Answer(BaseHTTPRequestHandler):
    server: Overwriting
    protocol_version = "HTTP/1.1"

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.down:
            self._say(403)
        else:
            self.server.held[self.path] = content
            self._say(200)

    def do_DELETE(self) -> None:
        self.server.held.pop(self.path, None)
        self._say(204)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _say(self, status: int) -> None:
        self.send_response(status)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def server() -> Iterator[Overwriting]:
    with Overwriting() as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server
        server.shutdown()
        serving.join()


@pytest.fixture
def store(server: Overwriting) -> Store:
    config = {"request_checksum_calculation": "when_required", "retries": {"max_attempts": 1}}
    return Store(
        "s3://bucket", {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "key": "k", "secret": "s", "config_kwargs": config}
    )


def test_a_server_that_lets_two_writers_win_takes_no_object_however_often_it_is_asked(server: Overwriting, store: Store) -> None:
    for _ in range(3):
        with pytest.raises(StoreUnsuitable, match="If-None-Match"):
            store.create_object("jobs/x", b"1")
    assert server.held == {}


def test_a_server_that_could_not_be_tried_at_first_is_tried_when_it_is_there(server: Overwriting, store: Store) -> None:
    server.down = True
    with pytest.raises(StoreUnavailable):
        store.create_object("jobs/x", b"1")
    server.down = False
    with pytest.raises(StoreUnsuitable, match="If-None-Match"):
        store.create_object("jobs/x", b"1")
    assert server.held == {}
