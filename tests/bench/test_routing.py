"""The routing benchmark: the same requests three ways, and what it refuses."""

from pathlib import Path
from uuid import uuid4

import pytest

from mint_stream.bench.direct import Answer, Asked
from mint_stream.bench.routing import Size, check, run
from mint_stream.bench.wrong import WrongResult
from mint_stream.bus.connection import Connection
from mint_stream.messages.adapters import Revision
from mint_stream.messages.inference import InferenceResult, ServedBy
from tests.fleets import fleet_settings

REVISION = Revision(adapter_id="a", number=1, state="announced", digest="a" * 64, pool="p", announced_at_ms=1)
ASKED = Asked((65, 66), 2, REVISION)


def answered(digest: str | None, tokens: tuple[int, ...]) -> InferenceResult:
    served = ServedBy(adapter_id="a", number=1, revision_digest=digest, base_digest="b" * 64, worker_id="w")
    fields = {"status": "ok", "tokens": tokens, "served_by": served, "completed_at_ms": 1}
    return InferenceResult(request_id="r", tenant="t", request_digest="d" * 64, **fields)


def test_an_answer_by_its_revision_with_the_engines_own_tokens_passes() -> None:
    check([ASKED], [answered("a" * 64, (1, 2))], [Answer((1, 2), 0.1, 1.0)])
    check([ASKED], [answered("a" * 64, (3, 4))])


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (answered("c" * 64, (1, 2)), "was answered by"),
        (answered("a" * 64, (1,)), "was answered by"),
        (answered("a" * 64, (2, 1)), "directly"),
    ],
    ids=["revision", "length", "tokens"],
)
def test_another_revision_a_short_answer_and_other_tokens_are_refused(result: InferenceResult, reason: str) -> None:
    with pytest.raises(WrongResult, match=reason):
        check([ASKED], [result], [Answer((1, 2), 0.1, 1.0)])


def test_rounds_share_no_prompt_and_all_adapters_take_part() -> None:
    size, revisions = Size(), [REVISION.model_copy(update={"number": number}) for number in range(1, 5)]
    rounds = [size.round(number, revisions) for number in range(6)]
    assert len({one.prompt for asked in rounds for one in asked}) == 6 * size.requests
    assert all(len({one.revision.number for one in asked if one.revision}) == len(revisions) for asked in rounds)
    assert size.round(3, revisions) == rounds[3], "each side is asked the same"


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_round_is_answered_alike_over_kafka_and_directly(connection: Connection, tmp_path: Path) -> None:
    settings = await fleet_settings(connection, tmp_path)
    report = await run(settings, Size(2, 3, prompt_tokens=6, new_tokens=3, rank=2, rounds=1, name=f"a{uuid4().hex[:8]}"))
    shares = 1 - report["direct_ms"]["p50"] / report["served_ms"]["p50"]
    assert report["share_of_latency"] == pytest.approx(shares) and 0 < shares < 1
    ratio = report["full_checkpoint_server_s"]["median"] / report["together_s"]["median"]
    assert report["ratio_vs_full_checkpoint_server"] == pytest.approx(ratio)
    assert set(report["stages_ms"]) == {"bus", "admit", "parked", "queued", "prefill", "decode", "back"}
    assert report["full_checkpoint_server_agrees"] >= 0 and report["n"] == 1
