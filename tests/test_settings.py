"""Settings: what is unknown, malformed or contradictory is one sentence that names the key, before anything starts."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mint_stream.app.serve_parts import budgets
from mint_stream.errors import InvalidSettings
from mint_stream.settings import ServingSettings, Settings


def test_nothing_set_is_a_whole_system_on_this_machine() -> None:
    settings = Settings.load()
    assert settings.base == settings.pool_name == "smollm2-135m"
    assert settings.kafka.bootstrap_servers is None
    assert settings.store_uri == (settings.home / "store").as_uri()
    assert settings.kafka_dir == settings.home / "kafka"
    assert settings.http.host == settings.http.model_copy().host == "127.0.0.1"


def test_the_environment_reaches_every_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_POOL", "mine")
    monkeypatch.setenv("MINT_KAFKA__BOOTSTRAP_SERVERS", "a:1,b:2")
    monkeypatch.setenv("MINT_STORE__OPTIONS", '{"endpoint_url": "http://127.0.0.1:9"}')
    monkeypatch.setenv("MINT_STORE__ALLOWED_ROOTS", '["file:///a", "s3://b"]')
    monkeypatch.setenv("MINT_SERVING__MAX_NUM_SEQS", "7")
    settings = Settings.load()
    assert (settings.pool_name, settings.kafka.bootstrap_servers, settings.serving.max_num_seqs) == ("mine", "a:1,b:2", 7)
    assert settings.store.options == {"endpoint_url": "http://127.0.0.1:9"}
    assert settings.store.allowed_roots == ("file:///a", "s3://b")


def test_what_the_command_line_says_comes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINT_POOL", "of-the-environment")
    assert Settings.load(pool="given").pool_name == "given"


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("MINT_STOER__URI", "MINT_STORE__URI"),
        ("MINT_KAFKA__BOOTSTRAP_SERVER", "MINT_KAFKA__BOOTSTRAP_SERVERS"),
        ("MINT_KAFKA_BOOTSTRAP_SERVERS", "MINT_KAFKA__BOOTSTRAP_SERVERS"),
        ("MINT_SERVING__MAX_NUM_SEQ", "MINT_SERVING__MAX_NUM_SEQS"),
    ],
)
def test_an_unknown_variable_is_refused_and_the_nearest_named(monkeypatch: pytest.MonkeyPatch, name: str, nearest: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(InvalidSettings, match=rf"^{name} is not a setting; the nearest are .*\b{nearest}\b"):
        Settings.load()


def test_variables_of_others_are_nobodys_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINTY", "x")
    monkeypatch.setenv("MINT_TEST_HOME", "x")
    assert Settings.load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MINT_PARTITIONS", "0"),
        ("MINT_PARTITIONS", "many"),
        ("MINT_KAFKA__PORT", "65536"),
        ("MINT_KAFKA__SECURITY_PROTOCOL", "TLS"),
        ("MINT_KAFKA__HEAP_MIB", "1"),
        ("MINT_SERVING__CONTEXT_TOKENS", "1"),
        ("MINT_SERVING__DEFAULT_DEADLINE_S", "-1"),
        ("MINT_HTTP__PORT", "-1"),
        ("MINT_LOG_JSON", "perhaps"),
    ],
)
def test_a_malformed_value_is_refused_by_the_name_of_its_variable(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=rf"^{name}: "):
        Settings.load()


@pytest.mark.parametrize(
    ("name", "value"), [("MINT_STORE__OPTIONS", "endpoint=x"), ("MINT_STORE__ALLOWED_ROOTS", "file:///data"), ("MINT_KAFKA", "{")]
)
def test_what_should_be_json_and_is_not_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    group = name.removeprefix("MINT_").partition("__")[0].lower()
    with pytest.raises(InvalidSettings, match=rf'"{group}".*JSON'):
        Settings.load()


SASL = {"sasl_mechanism": "PLAIN", "sasl_username": "u", "sasl_password": "p"}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"kafka": SASL}, r"^MINT_KAFKA__SASL_MECHANISM and a SASL_\* MINT_KAFKA__SECURITY_PROTOCOL go together$"),
        ({"kafka": {"security_protocol": "SASL_SSL"}}, "go together"),
        ({"serving": {"max_deadline_s": 9}}, "^MINT_SERVING__DEFAULT_DEADLINE_S is more than MINT_SERVING__MAX_DEADLINE_S$"),
        ({"training": {"heartbeat_s": 6}}, "^MINT_TRAINING__SILENCE_S must be at least three heartbeats$"),
        ({"serving": {"max_num_seqs": 512}}, "^MINT_SERVING__MAX_NUM_BATCHED_TOKENS must exceed MINT_SERVING__MAX_NUM_SEQS"),
        ({"serving": {"max_num_seqs": 1}}, "^MINT_SERVING__MAX_NUM_SEQS: "),
        ({"serving": {"max_adapters_per_step": 1}}, "^MINT_SERVING__MAX_ADAPTERS_PER_STEP: "),
        ({"kafka": {"bootstrap": "a:1"}}, "^MINT_KAFKA__BOOTSTRAP: "),
        ({"basis": "x"}, "^MINT_BASIS: "),
    ],
    ids=str,
)
def test_what_contradicts_itself_is_refused_in_one_sentence(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidSettings, match=reason):
        Settings.load(**given)


@pytest.mark.parametrize(
    "serving", [{}, {"max_num_seqs": 2, "max_adapters_per_step": 2}, {"max_num_seqs": 15, "max_num_batched_tokens": 16}]
)
def test_every_serving_that_is_accepted_is_one_the_engine_takes(serving: dict[str, Any]) -> None:
    accepted = Settings.load(serving=serving).serving
    assert budgets(accepted).max_num_seqs == accepted.max_num_seqs


@pytest.mark.parametrize(
    ("base", "pool", "name"),
    [
        ("smollm2-135m", None, "smollm2-135m"),
        ("/models/Tiny", None, "tiny"),
        ("org/Model-1B", None, "model-1b"),
        ("/models/x", "mine", "mine"),
    ],
)
def test_a_pool_is_named_or_takes_its_bases_name(base: str, pool: str | None, name: str) -> None:
    assert Settings.load(base=base, pool=pool).pool_name == name


def test_places_below_home_move_with_it_unless_they_are_given(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path)
    assert (settings.store_uri, settings.kafka_dir) == ((tmp_path / "store").as_uri(), tmp_path / "kafka")
    given = Settings.load(home=tmp_path, store={"uri": "s3://bucket"}, kafka={"data_dir": tmp_path / "log"})
    assert (given.store_uri, given.kafka_dir) == ("s3://bucket", tmp_path / "log")


def test_a_relative_home_is_a_whole_uri_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.load(home="here").store_uri == (tmp_path / "here" / "store").as_uri()


def test_a_password_is_not_printed() -> None:
    settings = Settings.load(kafka={"security_protocol": "SASL_SSL", **SASL, "sasl_password": "hunter2"})
    assert "hunter2" not in repr(settings) + str(settings)
    assert settings.kafka.sasl_password == "hunter2"


def test_settings_do_not_change_once_loaded() -> None:
    settings = Settings.load()
    with pytest.raises(ValidationError):
        settings.pool = "other"
    with pytest.raises(ValidationError):
        settings.serving.max_num_seqs = 1
    assert ServingSettings() == settings.serving
