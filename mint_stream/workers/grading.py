"""The desk of a grading process: answers out, scores in, and an end to whatever takes too long."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable

from mint_stream.errors import InvalidRule, MintError, leaves
from mint_stream.promotion.grading import AnsweredItem, Grade

PATIENCE_S = 30.0
"""How long one answer may be graded; the first one includes the start of the process and the import of the grader's package."""
_LINE_BYTES = 16 * 2**20


class GradingProcess:
    """A grader in a process of its own, which begins with the first answer and ends with `stop` or whatever takes too long."""

    def __init__(self, grader: str, patience_s: float = PATIENCE_S) -> None:
        self._grader = grader
        self._patience_s = patience_s
        self._process: asyncio.subprocess.Process | None = None

    async def scores(self, answered: Iterable[AnsweredItem]) -> tuple[float, ...]:
        """The scores in the order of the answers. Raises what the grader raised, and InvalidRule when it took too long or ended its
        process: nothing is graded here any more then."""
        return tuple([await self._score(number, one) for number, one in enumerate(answered, start=1)])

    async def stop(self) -> None:
        """End the process."""
        if (process := self._process) is not None:
            self._process = None
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()

    async def _score(self, number: int, one: AnsweredItem) -> float:
        process = self._process = self._process or await self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            async with asyncio.timeout(self._patience_s):
                process.stdin.write(one.encode() + b"\n")
                await process.stdin.drain()
                line = await process.stdout.readline()
        except TimeoutError:
            raise InvalidRule(
                f"grader {self._grader} took more than {self._patience_s:g} s for answer {number}: simplify what it does"
            ) from None
        except ConnectionError:
            line = b""
        if not line:
            raise InvalidRule(f"grader {self._grader} ended its process at answer {number}")
        return _checked(Grade.decode(line))

    async def _started(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mint_stream.promotion.grading", self._grader),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
        )


@contextlib.asynccontextmanager
async def grading(grader: str, patience_s: float = PATIENCE_S) -> AsyncIterator[GradingProcess]:
    """A grading process for as long as the block runs."""
    process = GradingProcess(grader, patience_s)
    try:
        yield process
    finally:
        await process.stop()


async def scores_of(grader: str, answered: Iterable[AnsweredItem], patience_s: float = PATIENCE_S) -> tuple[float, ...]:
    """As GradingProcess.scores, by a process for these answers alone."""
    async with grading(grader, patience_s) as process:
        return await process.scores(answered)


def _checked(grade: Grade) -> float:
    if grade.error is not None:
        raise leaves().get(grade.error.code, MintError)(grade.error.message)
    assert grade.score is not None
    return grade.score
