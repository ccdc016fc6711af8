"""The AsyncAPI document: FastStream's generator for channels and payloads, completed with what it leaves empty."""

import json
from collections.abc import Mapping
from typing import Any

from faststream.kafka import KafkaBroker
from faststream.specification import AsyncAPI

from mint_stream.contracts import POOL, RECORDS, Topic

_SERVER = "127.0.0.1:9092"
_CLIENTS = "clients"
_LISTS = {"cleanup.policy"}
_BINDING = "0.5.0"
_TEXT = {"type": "string"}
_HEADERS = {
    "type": "object",
    "description": "CloudEvents attributes in Kafka's binary mode, and W3C trace context. Always written, optional on input.",
    "properties": dict.fromkeys(("ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time", "traceparent"), _TEXT),
}


def document(topics: Mapping[str, Topic], version: str = "1") -> dict[str, Any]:
    """AsyncAPI 3.0 over all topics: what mint_stream receives and sends, keys, partitions, replicas and configuration."""
    generator = AsyncAPI(_declared(topics), title="mint_stream", version=version, schema_version="3.0.0")
    whole: dict[str, Any] = json.loads(generator.to_specification().to_json())
    whole["operations"] = {}
    for stem, topic in sorted(topics.items()):
        whole["channels"][stem] |= _channel(topic)
        message = whole["components"]["messages"][f"{stem}:Message"]
        del message["correlationId"]  # FastStream's own header, which we do not write
        message |= {"name": topic.record, "title": topic.record, "headers": _HEADERS, "bindings": {"kafka": _key(topic)}}
        whole["operations"] |= _operations(stem, topic)
    return whole


def _declared(topics: Mapping[str, Topic]) -> KafkaBroker:
    broker = KafkaBroker(_SERVER)
    for stem, topic in topics.items():
        broker.publisher(topic.name_pattern, schema=RECORDS[topic.record], title=stem, description=topic.purpose)
    return broker


def _channel(topic: Topic) -> dict[str, Any]:
    address = topic.name_pattern.replace(POOL, "{pool}")
    binding = {
        "topic": address,
        "partitions": topic.partitions,
        "replicas": topic.replication,
        "topicConfiguration": {key: _typed(key, value) for key, value in topic.config.items()},
        "bindingVersion": _BINDING,
    }
    parameters = {"parameters": {"pool": {"description": "The deployment of one base model."}}} if POOL in topic.name_pattern else {}
    return {"address": address, "bindings": {"kafka": binding}, **parameters}


def _typed(key: str, value: str) -> Any:
    if key in _LISTS:
        return value.split(",")
    return json.loads(value)


def _key(topic: Topic) -> dict[str, Any]:
    return {"key": {**_TEXT, "description": topic.key}, "bindingVersion": _BINDING}


def _operations(stem: str, topic: Topic) -> dict[str, Any]:
    """From the system's side: it receives what it consumes and sends what it produces; clients are outside."""
    inside = {"receive": set(topic.consumers) - {_CLIENTS}, "send": set(topic.producers) - {_CLIENTS}}
    channel = {"$ref": f"#/channels/{stem}"}
    messages = [{"$ref": f"#/channels/{stem}/messages/Message"}]
    return {
        f"{action}:{stem}": {"action": action, "channel": channel, "messages": messages, "description": f"by {', '.join(sorted(roles))}"}
        for action, roles in inside.items()
        if roles
    }
