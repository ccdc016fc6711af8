"""What an examination of a machine finds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mint_stream.errors import MintError


@dataclass(frozen=True)
class Finding:
    """One line: ok, missing (something will not run), or slow (it will, but could be better), and what to do."""

    name: str
    state: Literal["ok", "slow", "missing"]
    detail: str
    remedy: str = ""


def found(name: str, detail: str) -> Finding:
    """All is well."""
    return Finding(name, "ok", detail)


def attempt(name: str, look: Callable[[], str]) -> Finding:
    """What `look` says; or what it raised, whose sentence says what to do."""
    try:
        return found(name, look())
    except MintError as error:
        return Finding(name, "missing", error.code, str(error))
