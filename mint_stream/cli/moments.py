"""Moments as people write them: an ISO time, or how long ago."""

import re
from datetime import UTC, datetime

import typer

_AGO = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def moment_ms(text: str, now_ms: int) -> int:
    """Milliseconds since 1970 UTC of `2026-11-25T14:00` (UTC unless it says otherwise) or `90m`, that is so long before now."""
    if ago := _AGO.fullmatch(text):
        return now_ms - int(ago[1]) * _SECONDS[ago[2]] * 1000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text} is neither a time like 2026-11-25T14:00 nor how long ago, like 90m, 2h or 3d") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
