"""The headers every record carries."""

import re

from mint_stream.bus.events import child_traceparent, event_headers, header


def test_every_record_carries_cloudevents_attributes_and_a_trace():
    headers = event_headers("worker-1", "mint.InferenceResult", [("mine", b"1")])
    names = [name for name, _ in headers]
    assert names == ["ce_id", "ce_source", "ce_type", "ce_specversion", "ce_time", "traceparent", "mine"]
    assert header(headers, "ce_type") == b"mint.InferenceResult"
    assert re.fullmatch(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", header(headers, "ce_time"))


def test_a_given_trace_is_continued_by_a_new_span():
    parent = b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-00"
    headers = event_headers("s", "t", [("traceparent", parent)])
    written = header(headers, "traceparent").decode()
    assert written.startswith("00-" + "a" * 32 + "-")
    assert written.endswith("-00")
    assert "b" * 16 not in written
    assert [name for name, _ in headers].count("traceparent") == 1


def test_a_malformed_trace_is_replaced_by_a_new_one():
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-01", child_traceparent(b"\xff\xfe"))


def test_the_last_of_repeated_headers_counts_and_null_values_are_kept():
    assert header([("a", b"1"), ("a", None)], "a") is None
    assert header([("a", None), ("a", b"2")], "a") == b"2"
