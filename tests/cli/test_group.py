"""How a command ends: errors as one line with a code, and the settings that its options make."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from mint_stream.cli.demo import Screen
from mint_stream.cli.group import ErrorLine
from mint_stream.cli.options import settings_from
from mint_stream.errors import BaseConflict, InvalidRequest, InvalidSettings, MintError, StoreUnavailable
from mint_stream.messages.training import TrainingEvent


def ending(error: BaseException | None, *options: str) -> Result:
    """What a command that ends so leaves behind."""
    app = typer.Typer(cls=ErrorLine)

    @app.callback()
    def main(debug: bool = False) -> None: ...

    @app.command()
    def work() -> None:
        typer.echo("worked")
        if error is not None:
            raise error

    return CliRunner().invoke(app, [*options, "work"])


@pytest.mark.parametrize(
    ("error", "code"), [(InvalidRequest("no prompt"), 1), (StoreUnavailable("no store"), 1), (BaseConflict("another base"), 2)], ids=str
)
def test_an_error_of_ours_is_its_code_and_its_sentence_on_standard_error(error: MintError, code: int) -> None:
    result = ending(error)
    assert (result.exit_code, result.stdout) == (code, "worked\n")
    assert result.stderr == f"error {error.code}: {error}\n"


def test_debug_adds_the_traceback_and_keeps_the_line_and_the_exit_code() -> None:
    result = ending(BaseConflict("another base"), "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr and result.stderr.endswith("error base-conflict: another base\n")


def test_an_interrupt_is_exit_code_130_without_a_traceback() -> None:
    result = ending(KeyboardInterrupt())
    assert (result.exit_code, result.stderr) == (130, "")


def test_a_mistake_of_our_own_keeps_its_traceback() -> None:
    result = ending(ZeroDivisionError("ours"))
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_command_that_works_is_exit_code_0() -> None:
    assert (ending(None).exit_code, ending(None).stdout) == (0, "worked\n")


def test_options_come_before_the_environment_and_absent_ones_leave_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINT_POOL", "theirs")
    monkeypatch.setenv("MINT_BASE", "/models/theirs")
    monkeypatch.setenv("MINT_KAFKA__BOOTSTRAP_SERVERS", "theirs:1")
    settings = settings_from(bootstrap="ours:1", home=tmp_path)
    assert (settings.kafka.bootstrap_servers, settings.pool_name, settings.base) == ("ours:1", "theirs", "/models/theirs")
    assert settings_from(pool="ours", base="b").pool_name == "ours"
    assert settings_from(home=tmp_path).home == tmp_path
    assert settings_from().kafka.bootstrap_servers == "theirs:1"


def test_another_broker_keeps_how_one_gets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "PLAIN", "SASL_USERNAME": "u", "SASL_PASSWORD": "p"}.items():
        monkeypatch.setenv(f"MINT_KAFKA__{name}", value)
    kafka = settings_from(bootstrap="ours:1").kafka
    assert (kafka.bootstrap_servers, kafka.security_protocol, kafka.sasl_username) == ("ours:1", "SASL_SSL", "u")


def test_a_bad_variable_is_an_invalid_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_STORE__URL", "x")
    with pytest.raises(InvalidSettings, match=r"^MINT_STORE__URL is not a setting"):
        settings_from()


def event(step: int, **fields: object) -> TrainingEvent:
    given = {"state": "running", "loss": 0.51234, "tokens_per_s": 321.4, "eta_s": 12.3} | fields
    return TrainingEvent(job_id="j", adapter_id="a", tenant="t", worker_id="w", steps=16, step=step, at_ms=1, **given)


def test_a_piped_demo_tells_of_training_now_and_then_and_of_every_other_state(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.training(event(0, state="claimed"))
    for step in range(1, 17):
        screen.training(event(step))
    screen.training(event(16, state="succeeded", number=2))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "  job j: claimed"
    assert lines[1] == "  step 2/16  loss 0.512  321 tokens/s  12 s left"
    assert [line.split()[1] for line in lines[1:-1]] == [f"{step}/16" for step in range(2, 17, 2)]
    assert lines[-1] == "  job j: succeeded, revision 2"


def test_what_is_not_known_yet_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    Screen().training(event(8, loss=None, tokens_per_s=None, eta_s=None))
    assert capsys.readouterr().out.rstrip() == "  step 8/16"
