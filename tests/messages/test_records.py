"""Laws of every record that crosses Kafka: what is encoded is decoded, what nobody declared is refused, what is equal has one digest."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from mint_stream.errors import InvalidRecord, InvalidRequest
from mint_stream.messages.adapters import AdapterCommand, AdapterEvent, decode_command, decode_event
from mint_stream.messages.fleet import WorkerStatus
from mint_stream.messages.inference import InferenceChunk, InferenceRequest
from mint_stream.messages.record import Record, canonical_digest, canonical_json
from mint_stream.messages.shared import MESSAGE_CHARACTERS, CatalogPosition, Digest, ErrorBody, Id, Name
from tests.records import TEXT, kinds, records

KINDS = kinds()
COMMANDS: Any = AdapterCommand.__args__
EVENTS: Any = AdapterEvent.__args__
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
brief = settings(max_examples=10, deadline=None)


@every_kind
@brief
@given(data=st.data())
def test_what_is_encoded_is_decoded_again(kind: type[Record], data: st.DataObject) -> None:
    record = data.draw(records(kind))
    again = kind.decode(record.encode())
    assert again == record
    assert again.encode() == record.encode()
    assert again.content_digest() == record.content_digest()


@every_kind
@brief
@given(data=st.data())
def test_the_order_of_fields_in_the_json_means_nothing(kind: type[Record], data: st.DataObject) -> None:
    record = data.draw(records(kind))
    fields = json.loads(record.encode())
    backwards = json.dumps(dict(reversed(fields.items()))).encode()
    assert kind.decode(backwards) == record
    assert kind.decode(backwards).content_digest() == record.content_digest()


@every_kind
@brief
@given(data=st.data(), name=st.from_regex(r"[a-z_]{1,20}", fullmatch=True), value=JSON)
def test_a_field_nobody_declared_is_refused_and_named(kind: type[Record], data: st.DataObject, name: str, value: Any) -> None:
    fields = json.loads(data.draw(records(kind)).encode())
    if name in kind.model_fields:
        name = f"not_{name}"
    with pytest.raises(InvalidRecord, match=rf"^not a {kind.__name__}: {name}: "):
        kind.decode(json.dumps({**fields, name: value}).encode())


@every_kind
@brief
@given(data=st.data())
def test_a_typo_inside_a_value_is_refused_too(kind: type[Record], data: st.DataObject) -> None:
    fields = json.loads(data.draw(records(kind)).encode())
    nested = [
        name for name, value in fields.items() if isinstance(value, dict) and not str(kind.model_fields[name].annotation).startswith("dict")
    ]
    for name in nested:
        with pytest.raises(InvalidRecord, match=rf"^not a {kind.__name__}: {name}\.nosuchfield: "):
            kind.decode(json.dumps({**fields, name: {**fields[name], "nosuchfield": 1}}).encode())


@every_kind
def test_every_required_field_is_missed_by_name(kind: type[Record]) -> None:
    required = {name for name, field in kind.model_fields.items() if field.is_required()}
    assert required, f"an empty {kind.__name__} would say nothing"
    with pytest.raises(ValidationError) as missing:
        kind()
    assert {error["loc"][0] for error in missing.value.errors() if error["type"] == "missing"} == required


@every_kind
def test_a_record_cannot_be_changed(kind: type[Record]) -> None:
    record = kind.model_construct()
    with pytest.raises(ValidationError, match="frozen"):
        setattr(record, next(iter(kind.model_fields)), None)


@every_kind
@pytest.mark.parametrize("value", [None, b"", b"null", b"[]", b'"text"', b"{", b"\xff\xfe", b"{}{}", b"NaN"])
def test_what_is_no_record_is_an_invalid_record_and_no_other_error(kind: type[Record], value: bytes | None) -> None:
    with pytest.raises(InvalidRecord, match=kind.__name__):
        kind.decode(value)


@pytest.mark.parametrize("value", [None, b""])
def test_a_null_value_is_told_from_bad_json(value: bytes | None) -> None:
    with pytest.raises(InvalidRecord, match="cannot be empty"):
        WorkerStatus.decode(value)


@brief
@given(value=st.binary(max_size=64))
def test_any_bytes_are_a_record_or_an_invalid_record(value: bytes) -> None:
    for decode in (InferenceRequest.decode, decode_command, decode_event):
        with pytest.raises(InvalidRecord):
            decode(value)


def test_only_the_first_bad_field_is_named_and_where_it_is() -> None:
    bad = b'{"request_id": "r", "prompt": "p", "sampling": {"temperature": -1, "top_p": 9}}'
    with pytest.raises(InvalidRecord, match=r"^not a InferenceRequest: sampling\.temperature: "):
        InferenceRequest.decode(bad)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(number: str) -> None:
    bad = f'{{"request_id": "r", "prompt": "p", "sampling": {{"temperature": {number}}}}}'
    with pytest.raises(InvalidRecord, match="temperature"):
        InferenceRequest.decode(bad.encode())


@pytest.mark.parametrize("text", ["\ud800", "a\udfff"])
def test_text_that_utf8_cannot_write_is_refused_by_a_typed_error_on_both_sides(text: str) -> None:
    """A command line hands over bytes that are no UTF-8 as such text."""
    with pytest.raises(InvalidRecord, match="InferenceChunk holds text that UTF-8 cannot write"):
        InferenceChunk(request_id="r", attempt=0, sequence=0, text=text).encode()
    with pytest.raises(InvalidRecord):
        InferenceChunk.decode(json.dumps({"request_id": "r", "attempt": 0, "sequence": 0, "text": text}).encode())


def test_absent_optionals_are_left_out_of_the_json() -> None:
    assert (
        InferenceChunk(request_id="r", attempt=0, sequence=1, text="é").encode()
        == '{"request_id":"r","tenant":"default","attempt":0,"sequence":1,"text":"é"}'.encode()
    )
    assert b"null" not in InferenceRequest(request_id="r", prompt="p").encode()


@pytest.mark.parametrize(("members", "decode"), [(COMMANDS, decode_command), (EVENTS, decode_event)], ids=["commands", "events"])
@brief
@given(data=st.data())
def test_a_union_is_told_apart_by_its_tag_alone(members: Any, decode: Any, data: st.DataObject) -> None:
    record = data.draw(st.sampled_from(members).flatmap(records))
    assert type(decode(record.encode())) is type(record)
    assert decode(record.encode()) == record


@pytest.mark.parametrize("members", [COMMANDS, EVENTS], ids=["commands", "events"])
def test_every_tag_of_a_union_is_another(members: Any) -> None:
    tags = [member.model_fields["type"].default for member in members]
    assert len(set(tags)) == len(members)


@pytest.mark.parametrize("decode", [decode_command, decode_event])
@pytest.mark.parametrize("value", [b"{}", b'{"type": "erase-everything"}', b'{"type": "retire", "adapter_id": "a"}', None])
def test_a_union_refuses_what_has_no_tag_of_its_own(decode: Any, value: bytes | None) -> None:
    with pytest.raises(InvalidRecord, match=r"adapter (command|event)"):
        decode(value)


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "a@1", "a\n", "é", "a" * 129, "../a"])
def test_a_name_that_would_break_a_key_a_path_or_a_topic_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Name).validate_python(name)


@pytest.mark.parametrize("name", ["a", "9", "support-de", "A.b_c-1", "a" * 128])
def test_a_name_is_letters_digits_dots_underscores_and_dashes(name: str) -> None:
    assert TypeAdapter(Name).validate_python(name) == name


@pytest.mark.parametrize("digest", ["a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n"])
def test_a_digest_is_64_lower_case_hex_digits(digest: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Digest).validate_python(digest)
    assert TypeAdapter(Digest).validate_python("0123456789abcdef" * 4)


def test_an_id_is_short_and_not_empty() -> None:
    assert TypeAdapter(Id).validate_python("é/ 1" * 64)
    for bad in ("", "a" * 257):
        with pytest.raises(ValidationError):
            TypeAdapter(Id).validate_python(bad)


@brief
@given(value=JSON)
def test_canonical_json_is_json_of_the_same_value_in_one_form(value: Any) -> None:
    assert json.loads(canonical_json(value)) == value
    assert canonical_json(json.loads(canonical_json(value))) == canonical_json(value)


def test_canonical_json_sorts_keys_and_spends_no_spaces() -> None:
    assert canonical_json({"b": [1, 2.5], "a": {"d": "é", "c": None}}) == '{"a":{"c":null,"d":"é"},"b":[1,2.5]}'.encode()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


def test_digests_are_what_they_were_when_they_were_first_written() -> None:
    """Results in the log and revisions in the store are compared with these for years: they must never move."""
    assert canonical_digest({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    assert CatalogPosition(partition=1, offset=2).content_digest() == "e7e7cfa058654159cbe65cbdab25287b84792a9760dc2ace2a8b8614f9b6c89a"


def test_an_errors_body_quotes_no_more_than_any_record_holds() -> None:
    assert ErrorBody.of(InvalidRequest("short")) == ErrorBody(code="invalid-request", message="short")
    cut = ErrorBody.of(InvalidRequest("a" * (MESSAGE_CHARACTERS + 1))).message
    assert (len(cut), cut[-2:]) == (MESSAGE_CHARACTERS, "a…")
    assert len(ErrorBody.of(InvalidRequest("a" * MESSAGE_CHARACTERS)).message.encode()) == MESSAGE_CHARACTERS
