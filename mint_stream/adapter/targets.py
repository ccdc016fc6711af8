"""Which layers an adapter or a base has, by kind: what the registrar can compare without torch and without reading weights."""

from collections import Counter
from collections.abc import Iterable, Mapping

from mint_stream.errors import BaseMismatch, InvalidAdapter
from mint_stream.messages.shared import TargetShape


def pattern_of(path: str) -> str:
    """The path with every layer index written `*`: model.layers.*.self_attn.q_proj."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


def grouped_targets(shapes: Mapping[str, tuple[int, int, int]]) -> tuple[TargetShape, ...]:
    """TargetShapes of layers given as path -> (in, out, rank)."""
    kinds = Counter((pattern_of(path), *shape) for path, shape in shapes.items())
    return tuple(
        TargetShape(pattern=pattern, in_features=width, out_features=height, rank=rank, count=count)
        for (pattern, width, height, rank), count in sorted(kinds.items())
    )


def check_rank(rank: int, max_rank: int) -> None:
    """Raises InvalidAdapter when `rank` is over the cap."""
    if rank > max_rank:
        raise InvalidAdapter(f"rank {rank} is over this pool's cap of {max_rank}")


def check_targets(targets: Iterable[TargetShape], base_targets: Iterable[TargetShape], max_rank: int) -> None:
    """Whether layers of these kinds exist on the base. Raises InvalidAdapter (rank over the cap) or BaseMismatch."""
    base = {(target.pattern, target.in_features, target.out_features): target.count for target in base_targets}
    used: Counter[tuple[str, int, int]] = Counter()
    for target in targets:
        check_rank(target.rank, max_rank)
        kind = (target.pattern, target.in_features, target.out_features)
        used[kind] += target.count
        if used[kind] > base.get(kind, 0):
            raise BaseMismatch(
                f"the adapter has {used[kind]} layers {target.pattern} of {target.in_features} -> {target.out_features}, "
                f"the base {base.get(kind, 0)}"
            )


def check_linears(shapes: Mapping[str, tuple[int, int, int]], linears: Mapping[str, tuple[int, int]], max_rank: int) -> None:
    """Whether layers, path -> (in, out, rank), are among the base's, path -> (in, out). Raises InvalidAdapter or BaseMismatch."""
    for path, (width, height, rank) in shapes.items():
        check_rank(rank, max_rank)
        if linears.get(path) != (width, height):
            raise BaseMismatch(f"the adapter has {path} as {width} -> {height}, the base {_shape_words(linears.get(path))}")


def _shape_words(shape: tuple[int, int] | None) -> str:
    return "has no such linear layer" if shape is None else f"as {shape[0]} -> {shape[1]}"
