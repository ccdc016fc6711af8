"""Requests and results: one prompt, one outcome, and a digest of what was asked that routing does not touch."""

import json
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mint_stream.errors import InvalidRecord
from mint_stream.messages.inference import Cancellation, ChatMessage, InferenceRequest, InferenceResult, ReplyTo, Sampling, request_digest
from mint_stream.messages.shared import CatalogPosition, ErrorBody
from tests.records import PROMPTS, field_values, records

ROUTING = {"reply_to", "deadline_at_ms", "min_catalog_position"}
ASKED = sorted(set(InferenceRequest.model_fields) - ROUTING - set(PROMPTS))
REQUESTS = records(InferenceRequest)

brief = settings(max_examples=15, deadline=None)


def with_field(request: InferenceRequest, name: str, value: Any) -> InferenceRequest:
    return InferenceRequest.decode(request.model_copy(update={name: value}).encode())


@pytest.mark.parametrize("name", sorted(ROUTING))
@brief
@given(data=st.data())
def test_the_digest_ignores_where_the_answer_goes_and_by_when(name: str, data: st.DataObject) -> None:
    request = data.draw(REQUESTS)
    other = with_field(request, name, data.draw(field_values(InferenceRequest.model_fields[name])))
    assert request_digest(other) == request_digest(request)


@pytest.mark.parametrize("name", ASKED)
@brief
@given(data=st.data())
def test_the_digest_tells_every_other_field_apart(name: str, data: st.DataObject) -> None:
    request = data.draw(REQUESTS)
    value = not request.stream if name == "stream" else data.draw(field_values(InferenceRequest.model_fields[name]))
    assume(value != getattr(request, name))
    assert request_digest(with_field(request, name, value)) != request_digest(request)


@brief
@given(request=REQUESTS)
def test_the_digest_tells_prompts_apart(request: InferenceRequest) -> None:
    longer = {"prompt": "!", "prompt_tokens": (0,), "messages": (ChatMessage(role="user", content=""),)}
    [name] = [name for name in PROMPTS if getattr(request, name) is not None]
    assert request_digest(with_field(request, name, getattr(request, name) + longer[name])) != request_digest(request)
    assert request_digest(with_field(request, name, longer[name] + getattr(request, name) * 2)) != request_digest(request)


def test_no_field_is_forgotten_by_the_two_laws_above() -> None:
    assert set(InferenceRequest.model_fields) == {*ROUTING, *ASKED, *PROMPTS}


@brief
@given(request=REQUESTS)
def test_the_digest_is_the_same_wherever_it_is_computed(request: InferenceRequest) -> None:
    """A client that wrote the defaults out and one that left them out asked the same."""
    written_out = InferenceRequest.decode(json.dumps(request.model_dump(mode="json")).encode())
    assert request_digest(written_out) == request_digest(InferenceRequest.decode(request.encode())) == request_digest(request)


def test_the_digest_of_a_request_is_what_it_always_was() -> None:
    request = InferenceRequest(request_id="r-1", adapter="support", prompt="Where?", sampling=Sampling(max_tokens=32))
    assert request_digest(request) == "9b5e7930b593cbf3ab9539b30666fa9cec7d480df2437ea931d0e9632c3f239c"


@brief
@given(data=st.data(), chosen=st.sets(st.sampled_from(PROMPTS)))
def test_a_request_has_exactly_one_prompt(data: st.DataObject, chosen: set[str]) -> None:
    given_prompts = {name: data.draw(field_values(InferenceRequest.model_fields[name]).filter(bool)) for name in sorted(chosen)}
    if len(chosen) == 1:
        assert InferenceRequest(request_id="r", **given_prompts)
        return
    with pytest.raises(ValidationError, match="exactly one of messages, prompt, prompt_tokens"):
        InferenceRequest(request_id="r", **given_prompts)


@pytest.mark.parametrize("empty", [{"prompt": ""}, {"messages": ()}, {"prompt_tokens": ()}])
def test_an_empty_prompt_is_no_prompt(empty: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        InferenceRequest(request_id="r", **empty)


@pytest.mark.parametrize("adapter", ["a", "a@7", "a@nightly", "support-de@v1.2", "A_1@_x"])
def test_an_adapter_is_named_alone_or_with_a_number_or_an_alias(adapter: str) -> None:
    assert InferenceRequest(request_id="r", prompt="p", adapter=adapter).adapter == adapter


@pytest.mark.parametrize("adapter", ["", "@1", "a@", "a@1@2", "a/1", "a b", "a@1\n", "a@" + "x" * 129])
def test_what_names_no_adapter_is_refused(adapter: str) -> None:
    with pytest.raises(ValidationError):
        InferenceRequest(request_id="r", prompt="p", adapter=adapter)


@pytest.mark.parametrize(
    "bad",
    [
        {"max_tokens": 0},
        {"max_tokens": 131_073},
        {"temperature": -0.1},
        {"temperature": 10.1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"stop": ("",)},
        {"stop": ("x",) * 17},
        {"seed": -1},
        {"seed": 2**63},
    ],
    ids=str,
)
def test_sampling_outside_its_limits_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Sampling(**bad)


def test_sampling_is_greedy_unless_told_otherwise() -> None:
    assert Sampling().temperature == 0.0 and Sampling().seed is None and not Sampling().ignore_eos
    assert Sampling(max_tokens=131_072, temperature=10, top_p=1, seed=2**63 - 1)


def test_a_turn_is_said_by_the_system_the_user_or_the_assistant() -> None:
    for role in ("system", "user", "assistant"):
        assert ChatMessage(role=role, content="")
    with pytest.raises(InvalidRecord, match=r"messages\.0\.role"):
        InferenceRequest.decode(b'{"request_id": "r", "messages": [{"role": "tool", "content": "x"}]}')


RESULT = {"request_id": "r", "tenant": "t", "request_digest": "a" * 64, "completed_at_ms": 1}


@pytest.mark.parametrize(("status", "error"), [("ok", ErrorBody(code="c", message="m")), ("error", None)])
def test_a_result_is_a_completion_or_an_error_and_never_both_or_neither(status: Any, error: ErrorBody | None) -> None:
    with pytest.raises(ValidationError, match="an ok result has no error and an error result has one"):
        InferenceResult(**RESULT, status=status, error=error)


@pytest.mark.parametrize("named", [{}, {"request_id": "r", "batch_id": "b"}])
def test_a_cancellation_names_one_request_or_one_batch(named: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="name a request_id or a batch_id, not both"):
        Cancellation(cancelled_at_ms=1, **named)


def test_a_reply_goes_to_a_partition_from_0_up() -> None:
    assert ReplyTo(topic="t").partition is None
    with pytest.raises(ValidationError):
        ReplyTo(topic="t", partition=-1)
    with pytest.raises(ValidationError):
        CatalogPosition(partition=0, offset=-1)
