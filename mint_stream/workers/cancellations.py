"""Cancellations: which requests nobody waits for any more. Replayed before intake starts, read by every serving worker."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from mint_stream.bus.table import LogRecord
from mint_stream.errors import InvalidRecord
from mint_stream.messages.inference import Cancellation, RequestName

REMEMBERED = 100_000
"""Requests kept; the oldest are forgotten first. A forgotten cancellation costs one answer nobody reads."""


class Cancellations:
    """The set of cancelled requests, and a callback for those that are being worked on right now."""

    def __init__(self, on_cancel: Callable[[RequestName, str], object], keep_s: float) -> None:
        self._on_cancel = on_cancel
        self._keep_ms = keep_s * 1000
        self._reasons: OrderedDict[RequestName, str] = OrderedDict()

    def reason(self, request: RequestName) -> str | None:
        """Why the request was cancelled; None when it was not, or only another tenant's of the same id."""
        return self._reasons.get(request)

    def apply(self, _partition: int, records: Sequence[LogRecord], _next_offset: int) -> None:
        """Take in records of `inference-cancellations`; unreadable ones are ignored, for they can name no request."""
        horizon_ms = time.time() * 1000 - self._keep_ms
        for record in records:
            if record.timestamp_ms >= horizon_ms:
                self._take(record.value)

    def _take(self, value: bytes | None) -> None:
        try:
            cancellation = Cancellation.decode(value)
        except InvalidRecord:
            return
        if cancellation.request_id is not None:
            self._remember((cancellation.tenant, cancellation.request_id), cancellation.reason or "cancelled by its sender")

    def _remember(self, request: RequestName, reason: str) -> None:
        self._reasons[request] = reason
        if len(self._reasons) > REMEMBERED:
            self._reasons.popitem(last=False)
        self._on_cancel(request, reason)
