"""Every metric: name, kind, labels, buckets and what it means. An adapter_id is never a label: there may be a million."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.requests_total = self._counter("mint_requests_total", "Requests answered, by `ok` or the error's code.", "outcome")
        self.request_seconds = self._histogram("mint_request_seconds", "Time of a request by stage.", "stage")
        self.tokens_total = self._counter("mint_tokens_total", "Tokens read (prompt) and written (completion).", "kind")
        self.dead_letters_total = self._counter("mint_dead_letters_total", "Records set aside unprocessed, by error code.", "code")
        self.moved_requests_total = self._counter("mint_moved_requests_total", "Requests of tenants over their share, moved to bulk.")
        self.open_requests = self._gauge("mint_open_requests", "Requests taken from Kafka and not yet answered.")
        self.parked_requests = self._gauge("mint_parked_requests", "Requests waiting for an adapter to load.")
        self.adapter_load_seconds = self._histogram(
            "mint_adapter_load_seconds", "Store to device, as a request that caused the load waited for it."
        )
        self.tier_lookups_total = self._counter(
            "mint_tier_lookups_total",
            "Looks for a revision in a tier (device, host, disk, store), by result.",
            "kind",
            "outcome",
        )
        self.tier_evictions_total = self._counter("mint_tier_evictions_total", "Adapters that gave up their place in a tier.", "kind")
        self.tier_bytes = self._gauge("mint_tier_resident_bytes", "Bytes of adapters in a tier.", "kind")
        self.tier_load_seconds = self._histogram(
            "mint_tier_load_seconds", "Reading one adapter from a tier (store, disk), or copying it into one (device).", "kind"
        )
        self.load_retries_total = self._counter("mint_load_retries_total", "Reads of the store that were tried again.")
        self.catalog_applied_total = self._counter("mint_catalog_records_total", "Catalog changes applied here.")
        self.commands_total = self._counter("mint_adapter_commands_total", "Commands decided by the registrar, by event type.", "event")
        self.verdicts_total = self._counter("mint_trial_verdicts_total", "Verdicts on candidates, `refused` ones by that.", "outcome")
        self.training_steps_total = self._counter("mint_training_steps_total", "Optimizer steps made.")
        self.training_tokens_total = self._counter("mint_training_tokens_total", "Tokens that passed forward and backward.")
        self.jobs_total = self._counter("mint_training_jobs_total", "Training jobs ended, by state.", "state")

    def exposition(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, meaning: str, *labels: str) -> Counter:
        return Counter(name, meaning, labels, registry=self.registry)

    def _gauge(self, name: str, meaning: str, *labels: str) -> Gauge:
        return Gauge(name, meaning, labels, registry=self.registry)

    def _histogram(self, name: str, meaning: str, *labels: str) -> Histogram:
        return Histogram(name, meaning, labels, buckets=_LATENCY_S, registry=self.registry)
