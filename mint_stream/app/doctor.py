"""Whether the roles could run here with these settings, and what is missing."""

import asyncio
import uuid

from mint_stream.app.findings import Finding, attempt, found
from mint_stream.app.machine import examine_machine
from mint_stream.app.probe import listens
from mint_stream.app.provisioned import topics
from mint_stream.bus import provision
from mint_stream.client.connect import connection_from
from mint_stream.errors import MintError, StoreUnsuitable
from mint_stream.model.digest import base_digest
from mint_stream.model.pull import resolve_base
from mint_stream.settings import Settings
from mint_stream.store import Store

_KAFKA_S = 20.0


async def examine(settings: Settings) -> list[Finding]:
    """Every finding, in the order in which one would mend them."""
    machine = await asyncio.to_thread(examine_machine, settings.home, settings.kafka.bootstrap_servers is None)
    base = await asyncio.to_thread(attempt, "base", lambda: _base(settings))
    store = await asyncio.to_thread(attempt, "store", lambda: _store(settings))
    return [*machine, base, store, await _kafka(settings)]


def _base(settings: Settings) -> str:
    path = resolve_base(settings.base, settings.home)
    return f"{settings.base} at {path}, digest {base_digest(path)[:12]}"


def _store(settings: Settings) -> str:
    """Creates one small object, reads it back, and sees that it cannot be created again."""
    store = Store(settings.store_uri, settings.store.options)
    path, content = f"doctor/{uuid.uuid4().hex}", uuid.uuid4().bytes
    store.put_object(path, content)
    if store.create_object(path, b"another") or store.read_object(path) != content:
        raise StoreUnsuitable(f"{settings.store_uri} let an object be created twice")
    store.delete_object(path)
    return f"{settings.store_uri}: reachable, creates atomically"


async def _kafka(settings: Settings) -> Finding:
    connection = connection_from(settings)
    where = connection.bootstrap_servers
    if not await _listens_anywhere(where):
        return Finding("kafka", "missing", f"nobody listens at {where}", "start one with `mint-stream kafka`, or name yours: --bootstrap")
    try:
        async with asyncio.timeout(_KAFKA_S):
            await provision.verify(connection, topics(settings), settings.pool_name)
    except TimeoutError:
        return Finding("kafka", "missing", f"{where} does not answer as Kafka", "are the security settings right?")
    except MintError as error:
        return Finding("kafka", "missing", f"{where}: {error.code}", str(error))
    return found("kafka", f"{where}: reachable, topics as in topics/")


async def _listens_anywhere(bootstrap_servers: str) -> bool:
    places = [server.strip().rpartition(":") for server in bootstrap_servers.split(",")]
    return any(await asyncio.gather(*(listens(host, int(port)) for host, _, port in places)))
