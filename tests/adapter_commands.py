"""Commands, manifests and a base to decide on: records only, no torch.

BASE                               the pool `tiny`: 2 layers q_proj 16x16, down_proj 40x16, rank at most 8
announce("a", ...)                 an import of a servable manifest; a job's with job_id, attempt, step
claim, promote, roll_back, ...     the other commands; each has a command_id of its own unless given
"""

import itertools
from typing import Any

from mint_stream.messages.adapters import (
    Announce,
    Canary,
    Claim,
    Delete,
    FileEntry,
    Manifest,
    Promote,
    Quarantine,
    Retire,
    RollBack,
    SetCanary,
    SetRule,
    SetSpread,
)
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.gates import CanaryTerms, GateTerms, Judge, Trial
from mint_stream.messages.shared import CatalogPosition, TargetShape

POOL = "tiny"
BASE_DIGEST = "b" * 64
NOW_MS = 1_700_000_000_000
BASE = PoolBase(
    pool=POOL,
    base_digest=BASE_DIGEST,
    architecture="LlamaForCausalLM",
    context_tokens=128,
    vocabulary_tokens=259,
    targets=(
        TargetShape(pattern="model.layers.*.self_attn.q_proj", in_features=16, out_features=16, count=2),
        TargetShape(pattern="model.layers.*.mlp.down_proj", in_features=40, out_features=16, count=2),
    ),
    max_rank=8,
)
_IDS = itertools.count(1)


def target(**changes: Any) -> TargetShape:
    """A target that fits BASE, with changes."""
    fits: dict[str, Any] = {"pattern": "model.layers.*.self_attn.q_proj", "in_features": 16, "out_features": 16, "count": 2, "rank": 4}
    return TargetShape(**{**fits, **changes})


def manifest(*targets: TargetShape, **changes: Any) -> Manifest:
    """A manifest that BASE can serve, with changes."""
    fits: dict[str, Any] = {
        "digest": "d" * 64,
        "uri": "memory://store/adapters/d",
        "files": (FileEntry(name="adapter_model.safetensors", size_bytes=1000, sha256="f" * 64),),
        "base_digest": BASE_DIGEST,
        "targets": targets or (target(),),
        "parameters": 256,
    }
    return Manifest(**{**fits, **changes})


def _stamp(adapter_id: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {"command_id": f"command-{next(_IDS)}", "adapter_id": adapter_id, "issued_at_ms": NOW_MS, **fields}


def announce(adapter_id: str, **fields: Any) -> Announce:
    return Announce(**_stamp(adapter_id, {"pool": POOL, "manifest": manifest(), **fields}))


def claim(adapter_id: str, attempt: int, job_id: str = "job", **fields: Any) -> Claim:
    return Claim(**_stamp(adapter_id, {"pool": POOL, "job_id": job_id, "expected_attempt": attempt, **fields}))


def promote(adapter_id: str, number: int, **fields: Any) -> Promote:
    return Promote(**_stamp(adapter_id, {"number": number, **fields}))


def roll_back(adapter_id: str, **fields: Any) -> RollBack:
    return RollBack(**_stamp(adapter_id, fields))


def quarantine(adapter_id: str, number: int, **fields: Any) -> Quarantine:
    return Quarantine(**_stamp(adapter_id, {"number": number, "reason": "not finite", **fields}))


def retire(adapter_id: str, number: int, **fields: Any) -> Retire:
    return Retire(**_stamp(adapter_id, {"number": number, **fields}))


def set_rule(adapter_id: str, rule: str, **fields: Any) -> SetRule:
    return SetRule(**_stamp(adapter_id, {"rule": rule, **fields}))


def set_canary(adapter_id: str, number: int | None, share_basis_points: int = 500, **fields: Any) -> SetCanary:
    """Number None: the end of the canary."""
    canary = Canary(number=number, share_basis_points=share_basis_points) if number is not None else None
    return SetCanary(**_stamp(adapter_id, {"canary": canary, **fields}))


def delete(adapter_id: str, expected_position: CatalogPosition, **fields: Any) -> Delete:
    return Delete(**_stamp(adapter_id, {"expected_position": expected_position, **fields}))


def set_spread(adapter_id: str, spread: int, **fields: Any) -> SetSpread:
    return SetSpread(**_stamp(adapter_id, {"spread": spread, **fields}))


GATE = GateTerms(dataset_uri="memory://store/items", grader="exact-match", floor=0.6, canary=CanaryTerms(share_basis_points=500))


def judge(adapter_id: str, trial: Trial, verdict: str, production: int | None = None, **fields: Any) -> Judge:
    given = {"trial_id": trial.trial_id, "phase": trial.phase, "verdict": verdict, "production": production, "reason": "measured"}
    return Judge(**_stamp(adapter_id, {**given, "figures": {"score": 0.5}, **fields}))
