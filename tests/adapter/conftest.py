"""A tiny base that real peft adapts."""

from pathlib import Path

import pytest

from tests.factories import tiny_base


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("bases") / "llama")
