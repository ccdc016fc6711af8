"""`mint-stream doctor` says of each thing whether it is there, and what to do when it is not."""

import asyncio
import json
import socket

import pytest

from tests.factories import tiny_base
from tests.provisioned import PARTITIONS, ensure_topics


def findings(output: str) -> dict[str, dict[str, str]]:
    return {finding["name"]: finding for finding in json.loads(output)}


def test_what_is_missing_is_named_with_what_to_do_and_fails(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    shown = run("doctor", "--json", "--bootstrap", f"127.0.0.1:{port}")
    assert shown.exit_code == 1
    found = findings(shown.stdout)
    assert found["python"]["state"] == found["store"]["state"] == "ok"
    assert found["base"]["state"] == "missing" and "mint-stream base pull smollm2-135m" in found["base"]["remedy"]
    assert found["kafka"]["state"] == "missing" and "--bootstrap" in found["kafka"]["remedy"]


def test_a_store_that_cannot_create_atomically_is_missing(run, monkeypatch):
    monkeypatch.setenv("MINT_STORE__URI", "http://example.invalid/store")
    store = findings(run("doctor", "--json", "--bootstrap", "127.0.0.1:9").stdout)["store"]
    assert (store["state"], store["detail"]) == ("missing", "store-unsuitable")


@pytest.mark.kafka
async def test_base_and_topics_are_found_once_they_are_there(run, connection, topic_prefix, tmp_path, monkeypatch):
    monkeypatch.setenv("MINT_PARTITIONS", str(PARTITIONS))
    base = tiny_base(tmp_path / "base")
    doctor = ("doctor", "--bootstrap", connection.bootstrap_servers, "--base", base, "--pool", topic_prefix, "--json")
    before = findings((await asyncio.to_thread(run, *doctor)).stdout)
    assert before["kafka"]["detail"].endswith("topic-mismatch") and "mint-stream topics apply" in before["kafka"]["remedy"]
    await ensure_topics(connection, topic_prefix)
    after = findings((await asyncio.to_thread(run, *doctor)).stdout)
    assert {name: after[name]["state"] for name in ("base", "store", "kafka")} == {"base": "ok", "store": "ok", "kafka": "ok"}
