"""Metrics: documented names with units, in a registry of their own, with labels that cannot grow with the fleet's adapters."""

import re

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from mint_stream.metrics import Metrics

UNITS = ("_total", "_seconds", "_bytes", "_requests")


def families(metrics: Metrics) -> dict[str, object]:
    return {family.name: family for family in text_string_to_metric_families(metrics.exposition().decode())}


def test_two_roles_in_one_process_do_not_share_a_count() -> None:
    one, other = Metrics(), Metrics()
    one.requests_total.labels("ok").inc()
    assert 'mint_requests_total{outcome="ok"} 1.0' in one.exposition().decode()
    assert "outcome" not in other.exposition().decode()


def test_a_registry_that_is_given_is_used() -> None:
    registry = CollectorRegistry()
    Metrics(registry).open_requests.set(3)
    assert registry.get_sample_value("mint_open_requests") == 3


def test_every_metric_has_our_prefix_a_unit_and_a_sentence() -> None:
    for collector in collectors(Metrics()):
        [family] = collector.collect()
        name = family.name + ("_total" if family.type == "counter" else "")
        assert re.fullmatch(r"mint_[a-z]+(_[a-z]+)*", name)
        assert name.endswith(UNITS), name
        assert family.documentation.endswith("."), name


def test_no_label_grows_with_adapters_requests_or_jobs() -> None:
    labels = {label for collector in collectors(Metrics()) for label in collector._labelnames}
    assert labels <= {"outcome", "stage", "kind", "code", "event", "state"}


@pytest.mark.parametrize(("latency", "labels"), [("request_seconds", ("x",)), ("adapter_load_seconds", ())])
def test_a_latency_is_told_from_milliseconds_to_minutes(latency: str, labels: tuple[str, ...]) -> None:
    metrics = Metrics()
    histogram = getattr(metrics, latency)
    histogram = histogram.labels(*labels) if labels else histogram
    for seconds in (0.001, 0.02, 300.0):
        histogram.observe(seconds)
    buckets = {
        float(label): count
        for label, count in re.findall(rf'mint_{latency}_bucket\{{.*le="([^"]+)".*\}} (\S+)', metrics.exposition().decode())
    }
    assert (buckets[0.005], buckets[0.025], buckets[120.0], buckets[float("inf")]) == ("1.0", "2.0", "2.0", "3.0")


def test_the_exposition_is_the_text_that_prometheus_reads() -> None:
    metrics = Metrics()
    metrics.tokens_total.labels("prompt").inc(5)
    metrics.parked_requests.set(2)
    assert {"mint_tokens", "mint_parked_requests"} <= set(families(metrics))


def collectors(metrics: Metrics) -> list:
    return list(metrics.registry._collector_to_names)
