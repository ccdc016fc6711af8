"""Commands run in this process as a user would run them, and the session's fleet to run them against."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from mint_stream.cli.main import app

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Run:
    """`run("adapters", "list", ...)`: its exit code and output. Local state goes to a fresh directory."""
    monkeypatch.setenv("MINT_HOME", str(tmp_path))
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])
