"""Settings reach a child process whole."""

import pytest

from mint_stream.app.environment import environment_of
from mint_stream.settings import Settings


def test_a_child_loads_the_very_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path):
    kafka = {
        "bootstrap_servers": "a:1,b:2",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "u",
        "sasl_password": '"quoted", {secret}',
    }
    store = {"uri": "s3://bucket/x", "options": {"endpoint_url": "http://127.0.0.1:9"}, "allowed_roots": ("file:///data", "s3://more")}
    training = {"quotas": {"acme": {"jobs": 2}, "*": {"tokens": 9}}}
    settings = Settings.load(
        base="123", pool="p", home=tmp_path, log_json=True, kafka=kafka, store=store, serving={"max_num_seqs": 7}, training=training
    )
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == settings


def test_the_defaults_survive_too(monkeypatch: pytest.MonkeyPatch):
    settings = Settings.load()
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings.load() == settings
