"""Whether a manifest can be served on a pool's base, told from shapes alone: no torch, no weights."""

from collections import Counter

from mint_stream.messages.adapters import Manifest
from mint_stream.messages.fleet import PoolBase
from mint_stream.messages.shared import TargetShape


def unservable(manifest: Manifest, base: PoolBase) -> str | None:
    """Why the manifest cannot be served on the base; None when it can."""
    if manifest.base_digest != base.base_digest:
        return (
            f"it was made for base {manifest.base_digest[:12]}, pool {base.pool} runs {base.base_digest[:12]}: "
            "train it on this base or announce it to the pool of its own"
        )
    known = {target.pattern: target for target in base.targets}
    for target in manifest.targets:
        if reason := _misfit(target, known.get(target.pattern), base):
            return reason
    return _too_many(manifest, known)


def _misfit(target: TargetShape, layer: TargetShape | None, base: PoolBase) -> str | None:
    if layer is None:
        return f"{target.pattern} is no layer of {base.architecture} that an adapter may target"
    if (target.in_features, target.out_features) != (layer.in_features, layer.out_features):
        return (
            f"{target.pattern} is {target.in_features} x {target.out_features} in the adapter "
            f"and {layer.in_features} x {layer.out_features} in the base"
        )
    if not 1 <= target.rank <= base.max_rank:
        return f"{target.pattern} has rank {target.rank}, pool {base.pool} serves ranks 1 to {base.max_rank}"
    return None


def _too_many(manifest: Manifest, known: dict[str, TargetShape]) -> str | None:
    counts: Counter[str] = Counter()
    for target in manifest.targets:
        counts[target.pattern] += target.count
    for pattern, count in counts.items():
        if count > known[pattern].count:
            return f"it has {count} layers {pattern}, the base has {known[pattern].count}"
    return None
