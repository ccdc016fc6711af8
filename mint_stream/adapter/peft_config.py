"""PEFT's `adapter_config.json`: which layers it adapts, with what rank and scaling. The matching rules are PEFT's own.

What the file can say and we do not compute (DoRA, biases, ...) is refused by name, never ignored.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mint_stream.errors import InvalidAdapter

CONFIG_FILE = "adapter_config.json"
MAX_PATTERN_CHARACTERS = 256
MAX_PATTERN_REPEATS = 4

Number = TypeVar("Number", int, float)
Rank = Annotated[int, Field(ge=1)]

_NAMES = {
    "use_dora": "DoRA",
    "lora_bias": "a bias (lora_bias)",
    "trainable_token_indices": "training of single tokens (trainable_token_indices)",
}
_HARMLESS_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""The values of init_lora_weights that leave the base's own weights alone."""
_WITHOUT_MEANING = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "parent_library",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
    }
)
"""Settings of how an adapter was trained or is found, not of what it computes. Any other unknown one that is set is refused."""


class PeftConfig(BaseModel):
    """What of PEFT's LoraConfig decides what an adapter computes. A module path is the base's, e.g. `model.layers.0.mlp.up_proj`."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    peft_type: str
    r: Rank
    lora_alpha: float
    use_rslora: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, float] | None = None
    target_modules: tuple[str, ...] | str | None = None
    target_parameters: tuple[str, ...] | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | int | None = None
    layers_pattern: tuple[str, ...] | str | None = None
    init_lora_weights: bool | str | None = True
    bias: str = "none"

    @classmethod
    def parse(cls, config: bytes) -> Self:
        """The settings in the file's bytes. Raises InvalidAdapter for malformed ones and, by name, for those we do not compute."""
        try:
            parsed = cls.model_validate(json.loads(config))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            raise InvalidAdapter(f"{CONFIG_FILE}: {'.'.join(map(str, first['loc'])) or 'value'}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidAdapter(f"{CONFIG_FILE} is not JSON: {error}") from error
        parsed._refuse_what_is_not_computed()
        return parsed

    def _refuse_what_is_not_computed(self) -> None:
        if self.peft_type != "LORA":
            raise InvalidAdapter(f"PEFT type {self.peft_type!r} is not supported: only LORA is")
        if self.bias != "none":
            raise InvalidAdapter(f"a bias (bias={self.bias!r}) is not supported: train with bias='none'")
        if self.init_lora_weights not in _HARMLESS_STARTS:
            raise InvalidAdapter(
                f"init_lora_weights={self.init_lora_weights!r} changes the base's weights: convert the adapter to plain LoRA"
            )
        for name, value in sorted((self.model_extra or {}).items()):
            if value and name not in _WITHOUT_MEANING:
                raise InvalidAdapter(f"{_NAMES.get(name, name)} is not supported: {CONFIG_FILE} has {name}={value!r}")

    def rank(self, path: str) -> int:
        """r of the layer at `path`: the first matching rank_pattern in the file's order, else the common one."""
        return _first_match(self.rank_pattern or {}, path, self.r)

    def alpha(self, path: str) -> float:
        """alpha of the layer at `path`, found as `rank` is."""
        return _first_match(self.alpha_pattern or {}, path, self.lora_alpha)

    def scaling(self, path: str) -> float:
        """What the layer's output is multiplied by: alpha / r, or alpha / sqrt(r) under rsLoRA."""
        rank = self.rank(path)
        return self.alpha(path) / (math.sqrt(rank) if self.use_rslora else rank)

    def selects(self, path: str) -> bool:
        """Whether PEFT would adapt the layer at `path`."""
        if self._excluded(path) or not self._targeted(path):
            return False
        exactly = isinstance(self.target_modules, str) or self._targeted.exactly(path)
        return exactly or self._transforms(path)

    def selects_parameter(self, path: str) -> bool:
        """Whether PEFT would adapt the bare parameter at `path`, e.g. `model.layers.0.mlp.experts.down_proj`."""
        return self._parameters(path)

    @cached_property
    def _targeted(self) -> "_Named":
        return _Named(self.target_modules)

    @cached_property
    def _excluded(self) -> "_Named":
        return _Named(self.exclude_modules)

    @cached_property
    def _parameters(self) -> "_Named":
        return _Named(self.target_parameters)

    def _transforms(self, path: str) -> bool:
        wanted = (self.layers_to_transform,) if isinstance(self.layers_to_transform, int) else self.layers_to_transform
        if not wanted:
            return True
        patterns = (self.layers_pattern,) if isinstance(self.layers_pattern, str) else self.layers_pattern
        places = [rf"(?:^|.*?\.){pattern}\.(\d+)\." for pattern in patterns or ()] or [r".*?\.[^.]*\.(\d+)\."]
        found = next((match for place in places if (match := _regex(place).match(path))), None)
        return found is not None and int(found[found.lastindex or 1]) in wanted

    def canonical(self, linears: Iterable[str], parameters: Iterable[str] = ()) -> dict[str, Any]:
        """The settings of these linear layers and bare parameters in their one spelling."""
        linears, parameters = sorted(linears), sorted(parameters)
        paths = [*linears, *parameters]
        ranks, alphas = {path: self.rank(path) for path in paths}, {path: self.alpha(path) for path in paths}
        named = {"target_parameters": parameters} if parameters else {}  # left out otherwise: digests of the many do not change
        return canonical_config(linears, ranks, alphas, self.use_rslora) | named


def canonical_config(linears: list[str], ranks: Mapping[str, int], alphas: Mapping[str, float], use_rslora: bool) -> dict[str, Any]:
    """A PEFT config with exact paths for patterns, so that neither the order nor the wording of the author's changes its digest."""
    rank, alpha = _most_common(ranks), _most_common(alphas)
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "bias": "none",
        "r": rank,
        "lora_alpha": float(alpha),
        "use_rslora": use_rslora,
        "target_modules": linears,
        "rank_pattern": {_exactly(path): value for path, value in sorted(ranks.items()) if value != rank},
        "alpha_pattern": {_exactly(path): float(value) for path, value in sorted(alphas.items()) if value != alpha},
    }


def _most_common(values: Mapping[str, Number]) -> Number:
    counts = Counter(values.values())
    return min(counts, key=lambda value: (-counts[value], value))


def _exactly(path: str) -> str:
    return f"^{re.escape(path)}"


def _first_match(patterns: Mapping[str, Number], path: str, otherwise: Number) -> Number:
    if not patterns:
        return otherwise
    found = (value for pattern, value in patterns.items() if _regex(rf"(.*\.)?({pattern})$").match(path))
    return next(found, otherwise)


class _Named:
    """Which paths a setting of PEFT's names: a string is a regular expression for the whole path; a list holds paths or their ends.

    A list may hold tens of thousands, so a path's few ends are looked up in it."""

    def __init__(self, modules: Sequence[str] | str | None) -> None:
        self._pattern = modules if isinstance(modules, str) else ""
        self._names: frozenset[str] = frozenset() if isinstance(modules, str) else frozenset(modules or ())

    def __call__(self, path: str) -> bool:
        """Whether `path` is named."""
        if self._pattern:
            return self._pattern.lower() == "all-linear" or _regex(self._pattern).fullmatch(path) is not None
        return self.exactly(path) or any(path[dot + 1 :] in self._names for dot, sign in enumerate(path) if sign == ".")

    def exactly(self, path: str) -> bool:
        """Whether a list has the whole of `path`."""
        return path in self._names


@lru_cache(maxsize=1024)
def _regex(pattern: str) -> re.Pattern[str]:
    """Compiled, unless a stranger's pattern is broken or could take exponential time to match."""
    if len(pattern) > MAX_PATTERN_CHARACTERS or len(re.findall(r"[*+{]", pattern)) > MAX_PATTERN_REPEATS or re.search(r"\)[*+{]", pattern):
        raise InvalidAdapter(f"{CONFIG_FILE}: the pattern {pattern[:80]!r} is too complex: name the modules by the end of their paths")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InvalidAdapter(f"{CONFIG_FILE}: {pattern!r} is not a regular expression: {error}") from error
