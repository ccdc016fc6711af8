"""What the doctor finds, finding by finding, and the questions to local ports that it and the supervisor ask."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mint_stream.app.doctor import examine
from mint_stream.app.findings import Finding, attempt, found
from mint_stream.app.machine import examine_machine
from mint_stream.app.probe import answers_ready, free_port, listens, require_free, reserved_port
from mint_stream.errors import BaseUnusable, PortTaken
from mint_stream.settings import Settings
from tests.factories import tiny_base

HOST = "127.0.0.1"


def by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """Somebody who reads a request and says this; gives the port."""

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(say, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def test_what_a_look_says_is_found_and_what_it_raises_is_missing_with_its_sentence():
    def fail() -> str:
        raise BaseUnusable("no base: pull one")

    assert attempt("base", lambda: "here") == found("base", "here") == Finding("base", "ok", "here")
    assert attempt("base", fail) == Finding("base", "missing", "base-unusable", "no base: pull one")


def test_an_error_that_is_not_ours_is_not_hidden_as_a_finding():
    with pytest.raises(ZeroDivisionError):
        attempt("arithmetic", lambda: str(1 // 0))


def test_every_finding_that_is_not_ok_says_what_to_do(tmp_path: Path):
    findings = examine_machine(tmp_path / "not" / "yet", needs_broker=True)
    assert [finding for finding in findings if finding.state != "ok" and not finding.remedy] == []
    assert {"python", "java", "jgo", "torch", "cuda", "triton", "dtype", "cores", "memory", "disk"} == by_name(findings).keys()


def test_java_matters_only_where_the_embedded_broker_is_wanted(tmp_path: Path):
    assert not {"java", "jgo"} & by_name(examine_machine(tmp_path, needs_broker=False)).keys()


def test_a_home_that_is_not_there_yet_is_measured_where_it_would_be(tmp_path: Path):
    disk = by_name(examine_machine(tmp_path / "a" / "b", needs_broker=False))["disk"]
    assert disk.detail == by_name(examine_machine(tmp_path, needs_broker=False))["disk"].detail
    assert not (tmp_path / "a").exists()


async def test_looking_leaves_nothing_in_the_store_and_does_not_make_a_base(tmp_path: Path):
    settings = Settings.load(home=tmp_path, base=str(tmp_path / "nowhere"), kafka={"bootstrap_servers": f"{HOST}:{free_port()}"})
    found_here = by_name(await examine(settings))
    assert found_here["store"].state == "ok" and "creates atomically" in found_here["store"].detail
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
    assert (found_here["base"].state, found_here["base"].detail) == ("missing", "base-unusable")


async def test_findings_come_in_the_order_in_which_one_would_mend_them(tmp_path: Path):
    settings = Settings.load(home=tmp_path, base=str(tiny_base(tmp_path / "base")), kafka={"bootstrap_servers": f"{HOST}:{free_port()}"})
    names = [finding.name for finding in await examine(settings)]
    assert names[0] == "python" and names[-3:] == ["base", "store", "kafka"]


async def test_a_store_that_is_a_file_is_missing_with_its_reason(tmp_path: Path):
    (tmp_path / "store").write_text("a file")
    settings = Settings.load(home=tmp_path, kafka={"bootstrap_servers": f"{HOST}:{free_port()}"})
    store = by_name(await examine(settings))["store"]
    assert (store.state, store.detail) == ("missing", "store-unavailable")


async def test_a_list_of_servers_of_which_nobody_listens_is_said_whole(tmp_path: Path):
    servers = f"{HOST}:{free_port()}, {HOST}:{free_port()}"
    kafka = by_name(await examine(Settings.load(home=tmp_path, kafka={"bootstrap_servers": servers})))["kafka"]
    assert (kafka.state, kafka.detail) == ("missing", f"nobody listens at {servers}")


async def test_a_port_listens_while_somebody_holds_it():
    with socket.create_server((HOST, 0)) as held:
        port = held.getsockname()[1]
        assert await listens(HOST, port)
        with pytest.raises(PortTaken, match=rf"{HOST}:{port} is taken by another process: set MINT_X"):
            require_free(HOST, port, "set MINT_X")
    assert not await listens(HOST, port)
    require_free(HOST, port, "set MINT_X")


def test_a_reserved_port_is_nobody_elses_and_a_server_of_ours_listens_on_it_again_and_again():
    with reserved_port(HOST) as holder:
        port = holder.getsockname()[1]
        for _ in range(3):
            with socket.create_server((HOST, port)):
                pass
        assert port not in {free_port() for _ in range(500)}
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind((HOST, port))
    require_free(HOST, port, "")


def test_a_free_port_can_be_taken():
    port = free_port()
    with socket.create_server((HOST, port)):
        pass


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False),
        (b"SSH-2.0-OpenSSH\r\n", False),
        (b"", False),
    ],
)
async def test_only_a_200_is_ready(answer: bytes, ready: bool):
    async with answering(answer) as port:
        assert await answers_ready(HOST, port) is ready


async def test_nobody_is_not_ready():
    assert not await answers_ready(HOST, free_port())
