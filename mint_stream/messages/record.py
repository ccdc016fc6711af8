"""The shape every record shares: frozen, strict about unknown fields, canonical JSON in and out."""

import hashlib
import json
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from mint_stream.errors import InvalidRecord

T = TypeVar("T")


class Record(BaseModel):
    """A frozen value with one JSON form. Unknown fields are refused, so a typo is an error and never ignored."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=False, ser_json_inf_nan="constants", allow_inf_nan=False, use_attribute_docstrings=True
    )

    def encode(self) -> bytes:
        """The record as UTF-8 JSON, fields in declaration order, absent optionals left out. Raises InvalidRecord for lone surrogates."""
        try:
            return self.model_dump_json(exclude_none=True).encode()
        except PydanticSerializationError as error:
            raise InvalidRecord(f"this {type(self).__name__} holds text that UTF-8 cannot write: {error}") from error

    @classmethod
    def decode(cls, value: bytes | None) -> Self:
        """The record in `value`. Raises InvalidRecord that names the first bad field."""
        if not value:
            raise InvalidRecord(f"a {cls.__name__} cannot be empty: the record's value is null")
        try:
            return cls.__pydantic_validator__.validate_json(value)  # type: ignore[no-any-return]  # what model_validate_json calls
        except ValidationError as error:
            raise InvalidRecord(f"not a {cls.__name__}: {_first(error)}") from error

    def content_digest(self) -> str:
        """sha256 over canonical JSON (sorted keys, no spaces), in hex."""
        return canonical_digest(self.model_dump(mode="json", exclude_none=True))


def canonical_json(value: object) -> bytes:
    """Sorted keys, no spaces, UTF-8: the same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def canonical_digest(value: object) -> str:
    """sha256 hex of `canonical_json(value)`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def decode_one(adapter: TypeAdapter[T], value: bytes | None, name: str) -> T:
    """The record of a union in `value`. Raises InvalidRecord that names the first bad field."""
    if not value:
        raise InvalidRecord(f"an {name} cannot be empty: the record's value is null")
    try:
        return adapter.validate_json(value)
    except ValidationError as error:
        raise InvalidRecord(f"not an {name}: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or "value"
    return f"{where}: {first['msg']}"
