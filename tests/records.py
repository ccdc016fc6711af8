"""Hypothesis strategies for every record: `records(InferenceRequest)` draws ones that the record itself accepts."""

import re
from dataclasses import astuple
from functools import cache
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from hypothesis import strategies as st
from pydantic import StringConstraints
from pydantic.fields import FieldInfo

from mint_stream.contracts import RECORDS
from mint_stream.messages.inference import Cancellation, InferenceRequest, InferenceResult
from mint_stream.messages.record import Record
from mint_stream.messages.shared import ErrorBody
from mint_stream.messages.training import RolloutTerms, TrainingJob

HEX = r"^[0-9a-f]{64}$"
PROMPTS = ("messages", "prompt", "prompt_tokens")
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
"""Whatever UTF-8 can write: line ends, NULs and emoji included."""


def kinds() -> list[type[Record]]:
    """Every record class that a topic may carry."""
    return sorted({kind for record in RECORDS.values() for kind in _members(record)}, key=lambda kind: kind.__name__)


@cache
def records(kind: type[Record]) -> st.SearchStrategy[Any]:
    """Records of `kind`, each valid."""
    return _WHOLE.get(kind, _built)(kind)


def _built(kind: type[Record], **instead: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    drawn = {name: field_values(field) for name, field in kind.model_fields.items()}
    return st.builds(kind, **{**drawn, **instead})


def _request(kind: type[Record]) -> st.SearchStrategy[Any]:
    def with_prompt(name: str) -> st.SearchStrategy[Any]:
        others = {other: st.none() for other in PROMPTS if other != name}
        return _built(kind, **others, **{name: field_values(kind.model_fields[name]).filter(bool)})

    return st.sampled_from(PROMPTS).flatmap(with_prompt)


def _result(kind: type[Record]) -> st.SearchStrategy[Any]:
    ok = _built(kind, status=st.just("ok"), error=st.none())
    return ok | _built(kind, status=st.just("error"), error=records(ErrorBody))


def _cancellation(kind: type[Record]) -> st.SearchStrategy[Any]:
    name = field_values(kind.model_fields["request_id"]).filter(bool)
    return _built(kind, request_id=name, batch_id=st.none()) | _built(kind, request_id=st.none(), batch_id=name)


def _job(kind: type[Record]) -> st.SearchStrategy[Any]:
    settings = kind.model_fields["hyperparameters"].annotation
    cold = _built(settings, warmup_steps=st.just(0)) | _built(settings, steps=st.integers(10, 99), warmup_steps=st.integers(0, 9))
    given = _built(kind, hyperparameters=cold, method=st.sampled_from(["sft", "dpo"]), rollouts=st.none())
    small = _built(settings, batch_size=st.integers(1, 8), warmup_steps=st.just(0))
    terms = _built(RolloutTerms, group_size=st.integers(2, 1024))
    drawn = _built(kind, hyperparameters=small, method=st.just("grpo"), rollouts=terms, publish_every_steps=st.integers(1, 9))
    return given | drawn


_WHOLE: dict[type[Record], Any] = {InferenceRequest: _request, InferenceResult: _result, Cancellation: _cancellation, TrainingJob: _job}


def field_values(field: FieldInfo) -> st.SearchStrategy[Any]:
    """What a field accepts by itself."""
    return _values(field.annotation, tuple(field.metadata))


def _values(kind: Any, limits: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    if hasattr(kind, "__metadata__"):
        return _values(kind.__origin__, (*kind.__metadata__, *limits))
    limits = tuple(limit for outer in limits for limit in (getattr(outer, "metadata", None) or (outer,)))
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is tuple:
        return st.lists(_values(arguments[0]), min_size=_limit(limits, MinLen, 0), max_size=min(3, _limit(limits, MaxLen, 3))).map(tuple)
    if origin is dict:
        return st.dictionaries(_values(arguments[0]), _values(arguments[1]), max_size=3)
    if arguments:
        return st.one_of(*(_values(one, limits if one is not type(None) else ()) for one in arguments))
    return _plain(kind, limits)


def _plain(kind: Any, limits: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        least = _limit(limits, Ge, _limit(limits, Gt, -1) + 1)
        return st.integers(least, min(_limit(limits, Le, 2**63), _limit(limits, Lt, 2**63) - 1))
    if kind is float:
        return _floats(limits)
    return _texts(limits) if kind is str else records(kind)


def _floats(limits: tuple[Any, ...]) -> st.SearchStrategy[float]:
    above, below = _limit(limits, Gt, None), _limit(limits, Lt, None)
    least, most = _limit(limits, Ge, above), _limit(limits, Le, below)
    return st.floats(least, most, allow_nan=False, allow_infinity=False, exclude_min=above is not None, exclude_max=below is not None)


def _texts(limits: tuple[Any, ...]) -> st.SearchStrategy[str]:
    rules = next((limit for limit in limits if isinstance(limit, StringConstraints)), StringConstraints())
    if rules.pattern is not None:
        return _matching(str(rules.pattern))
    least = rules.min_length or _limit(limits, MinLen, 0)
    return TEXT.filter(lambda text: len(text) >= least)


@cache
def _matching(pattern: str) -> st.SearchStrategy[str]:
    """Short ones: a name of 128 characters costs as much to draw as the rest of a record."""
    if pattern == HEX:
        return st.binary(min_size=32, max_size=32).map(bytes.hex)
    return st.from_regex(re.compile(re.sub(r"\{(\d),1\d\d\}", r"{\1,9}", pattern).replace("$", r"\Z")), fullmatch=True)


def _limit(limits: tuple[Any, ...], kind: Any, default: Any) -> Any:
    return next((astuple(limit)[0] for limit in limits if isinstance(limit, kind)), default)


def _members(record: Any) -> tuple[type[Record], ...]:
    kind = record.__origin__ if hasattr(record, "__metadata__") else record
    return get_args(kind) or (kind,)
