"""The desk of a grading process: answers out, scores in, and an end to whatever takes too long."""

import asyncio
import contextlib
import sys
from collections.abc import Iterable

from mint_stream.errors import InvalidRule, MintError, leaves
from mint_stream.promotion.grading import AnsweredItem, Grade

PATIENCE_S = 30.0
"""How long one answer may be graded; the first one includes the start of the process and the import of the grader's package."""
_LINE_BYTES = 16 * 2**20


async def scores_of(grader: str, answered: Iterable[AnsweredItem], patience_s: float = PATIENCE_S) -> tuple[float, ...]:
    """The scores in the order of the answers. Raises what the grader raised, and InvalidRule when it took too long or ended its process."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mint_stream.promotion.grading", grader),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
    try:
        return tuple([await _score(process, grader, number, one, patience_s) for number, one in enumerate(answered, start=1)])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def _score(process: asyncio.subprocess.Process, grader: str, number: int, one: AnsweredItem, patience_s: float) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        async with asyncio.timeout(patience_s):
            process.stdin.write(one.encode() + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
    except TimeoutError:
        raise InvalidRule(f"grader {grader} took more than {patience_s:g} s for answer {number}: simplify what it does") from None
    except ConnectionError:
        line = b""
    if not line:
        raise InvalidRule(f"grader {grader} ended its process at answer {number}")
    return _checked(Grade.decode(line))


def _checked(grade: Grade) -> float:
    if grade.error is not None:
        raise leaves().get(grade.error.code, MintError)(grade.error.message)
    assert grade.score is not None
    return grade.score
