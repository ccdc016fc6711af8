"""The hand-off benchmark runs the real system, compares it with full checkpoints, and refuses what it cannot vouch for."""

from pathlib import Path
from uuid import uuid4

import pytest

from mint_stream.bench.direct import Answer
from mint_stream.bench.full_checkpoint import SERVER, Script, measure
from mint_stream.bench.handoff import STAGES, Sample, Size, check, run
from mint_stream.bench.wrong import WrongResult
from mint_stream.bus.connection import Connection
from mint_stream.messages.adapters import RevisionAnnounced
from mint_stream.messages.inference import InferenceResult, ServedBy
from tests.factories import peft_files, tiny_base
from tests.fleets import fleet_settings

DIGEST, OTHER = "a" * 64, "c" * 64


def sample(digest: str | None, tokens: tuple[int, ...]) -> Sample:
    event = RevisionAnnounced(command_id="c", adapter_id="a", at_ms=1, number=1, digest=DIGEST, pool="p")
    served = ServedBy(adapter_id="a", number=1, revision_digest=digest, base_digest="b" * 64, worker_id="w") if digest else None
    error = None if served else {"code": "cancelled", "message": "x"}
    fields = {"status": "ok" if served else "error", "error": error, "tokens": tokens, "served_by": served, "completed_at_ms": 1}
    return Sample(event, 0, 1, InferenceResult(request_id="r", tenant="t", request_digest=DIGEST, **fields))


def test_what_was_announced_and_drawn_as_directly_passes() -> None:
    check([sample(DIGEST, (1, 2))], [Answer((1, 2), 0.1, 1.0)])


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [(sample(OTHER, (1, 2)), "was announced as aaaaaaaaaaaa"), (sample(None, (1, 2)), "cancelled"), (sample(DIGEST, (1, 3)), "directly")],
    ids=["revision", "error", "tokens"],
)
def test_another_revision_an_error_and_other_tokens_are_refused(wrong: Sample, reason: str) -> None:
    with pytest.raises(WrongResult, match=reason):
        check([wrong], [Answer((1, 2), 0.1, 1.0)])


@pytest.mark.long
@pytest.mark.timeout(180)
def test_the_baseline_merges_writes_loads_and_draws_a_token(tmp_path: Path) -> None:
    base, adapter = tiny_base(tmp_path / "base"), tmp_path / "adapter"
    adapter.mkdir()
    for name, content in peft_files(base).items():
        (adapter / name).write_bytes(content)
    found = measure(base, [adapter], (65, 66, 67), "float32")
    (cold,), (warm,) = found.cold, found.warm
    assert cold == pytest.approx(sum(values[0] for values in found.stages.values()))
    assert 0 < warm < cold, "a process that has to start first is slower"


def test_a_baseline_that_dies_says_of_what() -> None:
    with Script(SERVER) as server, pytest.raises(RuntimeError, match=r"did not load.*nowhere"):
        server.ask("load", checkpoint="/nowhere", dtype="float32")


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(300)
async def test_every_revision_of_a_job_is_handed_over_and_compared(connection: Connection, tmp_path: Path) -> None:
    settings = await fleet_settings(connection, tmp_path)
    report = await run(settings, Size(revisions=2, steps=2, rank=2, prompt_tokens=6, repeats=1, adapter=f"a{uuid4().hex[:8]}"))
    assert report["n"] == 2 and report["baseline_cold_ms"]["n"] == 1
    assert set(report["stages_ms"]) == set(STAGES)
    for stage in ("write", "announce", "loaded", "prefill"):
        assert report["stages_ms"][stage] > 0, stage
    first, second = (report[f"baseline_{which}_ms"]["p50"] / report["handoff_ms"]["p50"] for which in ("cold", "warm"))
    assert (report["ratios"]["vs_cold"], report["ratios"]["vs_warm"]) == pytest.approx((first, second))
    assert report["beyond_prefill_ms"] == pytest.approx(report["handoff_ms"]["p50"] - report["prefill_ms"]["p50"])
    assert report["machine"]["cores"] >= 1 and report["workload"]["dtype"]
