"""Settings as environment variables, so that a child process loads the very same tree."""

import json
from collections.abc import Mapping
from typing import Any

from mint_stream.settings import PREFIX, Settings


def environment_of(settings: Settings) -> dict[str, str]:
    """Law: `Settings.load()` under these variables equals `settings`. What is None is left out."""
    return _flat(settings.model_dump(mode="json", exclude_none=True), PREFIX, Settings.model_fields)


def _flat(values: Mapping[str, Any], prefix: str, fields: Mapping[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        key = prefix + name.upper()
        group = getattr(fields[name].annotation, "model_fields", None)
        flat |= _flat(value, f"{key}__", group) if group else {key: value if isinstance(value, str) else json.dumps(value)}
    return flat
