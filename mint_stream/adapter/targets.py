"""Which layers an adapter or a base has, by kind: what the registrar can compare without torch and without reading weights."""

from collections import Counter
from collections.abc import Iterable, Mapping

from mint_stream.errors import BaseMismatch, InvalidAdapter
from mint_stream.messages.shared import TargetShape


def pattern_of(path: str) -> str:
    """The path with every layer index written `*`: model.layers.*.self_attn.q_proj."""
    return ".".join("*" if part.isdigit() else part for part in path.split("."))


LayerShape = tuple[int, ...]
"""(in, out) of a linear layer; (in, out, experts) of a bare parameter, where 1 is a matrix that belongs to no expert."""


def grouped_targets(layers: Mapping[str, tuple[LayerShape, int]]) -> tuple[TargetShape, ...]:
    """TargetShapes of layers given as path -> (shape, rank). Each expert of a fused parameter counts as a layer of its own."""
    kinds: Counter[tuple[str, int, int, int]] = Counter()
    for path, ((width, height, *experts), rank) in layers.items():
        count = max(experts, default=1)
        module, _, leaf = pattern_of(path).rpartition(".")
        kinds[f"{module}.*.{leaf}" if count > 1 else pattern_of(path), width, height, rank] += count
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


def check_layers(layers: Mapping[str, tuple[LayerShape, int]], base: Mapping[str, LayerShape], max_rank: int) -> None:
    """Whether layers, path -> (shape, rank), are among the base's, path -> shape. Raises InvalidAdapter or BaseMismatch."""
    for path, (shape, rank) in layers.items():
        check_rank(rank, max_rank)
        if base.get(path) != shape:
            raise BaseMismatch(f"the adapter has {path} as {_shape_words(shape)}, the base {_base_words(base.get(path))}")


def _base_words(shape: LayerShape | None) -> str:
    return "has no such layer" if shape is None else f"as {_shape_words(shape)}"


def _shape_words(shape: LayerShape) -> str:
    width, height, *experts = shape
    return f"{width} -> {height}" + "".join(f" in {count} experts" for count in experts if count > 1)
