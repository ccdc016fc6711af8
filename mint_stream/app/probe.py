"""Small questions to local ports: is it free, does it listen, is the role behind it ready."""

import asyncio
import socket
from contextlib import suppress

from mint_stream.errors import PortTaken

_ANSWER_S = 2.0


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on now."""
    with socket.create_server((host, 0)) as listener:
        return int(listener.getsockname()[1])


def reserved_port(host: str) -> socket.socket:
    """A socket bound to a free port, which nobody else is given while it is open, and which a server of ours can listen on all the same.

    Linux lets two sockets have a port when both are marked for reuse and at most one listens; listening sockets of Python always are."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((host, 0))
    return holder


def require_free(host: str, port: int, hint: str) -> None:
    """Raises PortTaken, with what to do about it, when somebody listens there."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise PortTaken(f"{host}:{port} is taken by another process: {hint}") from error


async def listens(host: str, port: int) -> bool:
    """Whether a connection is accepted."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_S):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            return True
    return False


async def answers_ready(host: str, port: int) -> bool:
    """Whether `GET /ready` is answered with 200."""
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_S):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET /ready HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            status = await reader.readline()
            writer.close()
            return b" 200 " in status
    return False
