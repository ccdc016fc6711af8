"""LoRA on bare parameters, as PEFT's `target_parameters` has it: a router's matrix, or the fused 3-D weights of experts.

PEFT names a tensor's module and not its parameter: of several parameters of one module, each is wrapped around the last, so the
outermost name (`experts.lora_A`) is the last parameter's and `experts.base_layer.lora_A` the one's before it.
Experts share one A [experts · r, in], an expert after the other, and one B [out, r · experts], where the expert runs fastest.
"""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from mint_stream.adapter.peft_config import CONFIG_FILE, PeftConfig
from mint_stream.errors import InvalidAdapter

WRAPPED = ".base_layer"
FUSED = ("gate_up_proj", "up_proj", "down_proj")
"""Parameters of a module named `experts`, in the order they are declared and wrapped. Any other module has its `weight`."""

Pair = Mapping[str, Tensor]


def module_of(parameter: str) -> str:
    """The module that `parameter`, a full path, lies in."""
    return parameter.rpartition(".")[0]


def named_in(module: str, settings: PeftConfig) -> tuple[str, ...]:
    """Full paths of the parameters of `module` that target_parameters names, in the order PEFT wraps them."""
    leaves = FUSED if module.rpartition(".")[2] == "experts" else ("weight",)
    return tuple(path for leaf in leaves if settings.selects_parameter(path := f"{module}.{leaf}"))


def separated(pairs: Mapping[str, Pair], settings: PeftConfig) -> tuple[dict[str, Pair], dict[str, Pair]]:
    """(linears by module path, parameters by full path). Raises InvalidAdapter for a target parameter without weights, or with too many."""
    linears: dict[str, Pair] = {}
    wrapped: dict[str, dict[int, Pair]] = {}
    for name, pair in pairs.items():
        module = name.replace(WRAPPED, "")
        if named_in(module, settings):
            wrapped.setdefault(module, {})[name.count(WRAPPED)] = pair
        else:
            linears[name] = pair
    parameters = {path: pair for module, found in wrapped.items() for path, pair in _by_path(module, found, settings)}
    for target in settings.target_parameters or ():
        if not any(ends_with(path, target) for path in parameters):
            raise InvalidAdapter(f"LoRA on bare parameters (target_parameters): {CONFIG_FILE} names {target!r}, which no tensor is for")
    return linears, parameters


def _by_path(module: str, found: Mapping[int, Pair], settings: PeftConfig) -> Iterable[tuple[str, Pair]]:
    paths = named_in(module, settings)
    if sorted(found) != list(range(len(paths))):
        raise InvalidAdapter(f"{module}: {CONFIG_FILE} names {len(paths)} of its parameters, the tensors are for {len(found)}")
    return [(path, found[len(paths) - 1 - order]) for order, path in enumerate(paths)]


def tensor_names(parameters: Sequence[str]) -> dict[str, str]:
    """Each parameter's full path -> the module name PEFT's tensor keys have for it."""
    inside = {path: [other for other in parameters if module_of(other) == module_of(path)] for path in parameters}
    return {path: module_of(path) + WRAPPED * sum(_order(other) > _order(path) for other in inside[path]) for path in parameters}


def _order(path: str) -> int:
    leaf = path.rpartition(".")[2]
    return FUSED.index(leaf) if leaf in FUSED else -1


def ends_with(path: str, name: str) -> bool:
    """How PEFT's lists name things: by the whole path or its end."""
    return path == name or path.endswith(f".{name}")


def by_expert(b: Tensor, experts: int) -> Tensor:
    """B [out, r · experts], expert fastest → its transpose [experts · r, out], an expert after the other, as A has them."""
    out = b.shape[0]
    return b.reshape(out, -1, experts).permute(2, 1, 0).reshape(-1, out)
