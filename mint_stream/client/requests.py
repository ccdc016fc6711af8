"""From what a caller has in hand to an inference request, and from a result to a value or a typed error."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import TypeVar

from pydantic import ValidationError

from mint_stream.errors import InvalidRequest, MintError, Reject, leaves
from mint_stream.messages.inference import ChatMessage, InferenceRequest, InferenceResult, Sampling
from mint_stream.messages.record import Record
from mint_stream.messages.shared import CatalogPosition, Digest

R = TypeVar("R", bound=Record)

Turn = ChatMessage | Mapping[str, str]
Prompt = str | Sequence[Turn] | Sequence[int]
"""Plain text, the turns of a chat, or token ids."""


class Ticket(Record):
    """What is needed to collect the result of a submitted request later, in this process or another."""

    request_id: str
    tenant: str = "default"
    request_digest: Digest
    partition: int
    offset: int
    """Where in `inference-results` to begin looking: its end when the request was sent."""


def now_ms() -> int:
    """Milliseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1_000_000


def new_id() -> str:
    """An id nobody else will choose."""
    return uuid.uuid4().hex


def made(kind: type[R], refusal: type[Reject], **fields: object) -> R:
    """A record of these fields. Raises `refusal`, naming the first bad one."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or kind.__name__
        raise refusal(f"{where}: {first['msg']}") from error


def request_of(
    prompt: Prompt,
    adapter: str | None,
    sampling: Sampling | None,
    request_id: str | None,
    tenant: str,
    timeout_s: float,
    after: CatalogPosition | None,
) -> InferenceRequest:
    """The request a caller means. Its deadline is when the caller stops waiting. Raises InvalidRequest."""
    return made(
        InferenceRequest,
        InvalidRequest,
        request_id=request_id or new_id(),
        tenant=tenant,
        adapter=adapter,
        sampling=sampling or Sampling(),
        deadline_at_ms=now_ms() + round(timeout_s * 1000),
        min_catalog_position=after,
        **prompt_fields(prompt),
    )


def prompt_fields(prompt: Prompt) -> dict[str, object]:
    """The one field of InferenceRequest that carries this prompt."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    tokens = tuple(turn for turn in prompt if isinstance(turn, int))
    if tokens and len(tokens) == len(prompt):
        return {"prompt_tokens": tokens}
    return {"messages": tuple(prompt)}


def raise_for_error(result: InferenceResult) -> InferenceResult:
    """The result itself when it is a completion; else its error, as the class of `mint_stream.errors` with that code."""
    if result.error is None:
        return result
    kind = leaves().get(result.error.code, MintError)
    raise kind(f"request {result.request_id}: {result.error.message}")
