"""Prompts: from the text or the conversation of a request to token ids, through the base's own tokenizer and chat template."""

import threading
from typing import Any

from mint_stream.errors import InvalidRequest
from mint_stream.messages.inference import ChatMessage, InferenceRequest


class Prompts:
    """Encodes prompts. May be called from several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()  # a fast tokenizer cannot be borrowed twice at once

    def encode(self, request: InferenceRequest) -> tuple[int, ...]:
        """Token ids of the request's prompt, at least one. Raises InvalidRequest."""
        if request.prompt_tokens is not None:
            return request.prompt_tokens
        with self._lock:
            tokens = self._chat(request.messages) if request.messages is not None else self._tokenizer(request.prompt)["input_ids"]
        if not tokens:
            raise InvalidRequest(f"the prompt of request {request.request_id} has no tokens: give it text")
        return tuple(tokens)

    def _chat(self, messages: tuple[ChatMessage, ...]) -> list[int]:
        if not self._tokenizer.chat_template:
            raise InvalidRequest("this base's tokenizer has no chat template: send `prompt` instead of `messages`")
        turns = [message.model_dump() for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is a program of the base's authors and raises what it likes
            raise InvalidRequest(f"the base's chat template refuses this conversation: {error}") from error
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
