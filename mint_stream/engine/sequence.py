"""One generation on its way through the engine."""

from dataclasses import dataclass, field

from mint_stream.engine.generation import Completion, Generation
from mint_stream.engine.sampler import Draw
from mint_stream.engine.stops import Decode, TextStream
from mint_stream.messages.inference import FinishReason, TokenLogprob


@dataclass(eq=False)
class RunningSequence:
    """Tokens so far, the text they make, and when things happened (seconds of the engine's clock). Touched by the engine's thread only."""

    key: int
    generation: Generation
    decode: Decode
    submitted_at_s: float
    slot: int = -1
    admitted_at_s: float = 0.0
    first_token_at_s: float = 0.0
    tokens: list[int] = field(default_factory=list)
    """Prompt, then what was drawn."""
    reused_tokens: int = 0
    """Of the prompt, what the slot held already."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    stream: TextStream = field(init=False)

    def __post_init__(self) -> None:
        self.tokens.extend(self.generation.prompt_tokens)
        self.stream = TextStream(self.decode, self.generation.sampling.stop)

    @property
    def maker(self) -> str | None:
        """Whose weights compute it: the adapter's content digest, None for the bare base."""
        return None if self.generation.adapter is None else self.generation.adapter.digest

    @property
    def drawn(self) -> tuple[int, ...]:
        """Tokens generated so far."""
        return tuple(self.tokens[len(self.generation.prompt_tokens) :])

    def draw(self) -> Draw:
        """How the next token is chosen."""
        return Draw(self.generation.sampling, self.generation.seed, len(self.tokens))

    def accept(self, token: int, eos_tokens: frozenset[int], now_s: float) -> tuple[str, FinishReason | None]:
        """Append a token: the text that may be shown now, and why the sequence ends here, if it does."""
        if len(self.tokens) == len(self.generation.prompt_tokens):
            self.first_token_at_s = now_s
        self.tokens.append(token)
        sampling = self.generation.sampling
        ended = token in eos_tokens and not sampling.ignore_eos
        shown = "" if ended else self.stream.push(token)
        reason: FinishReason | None = None
        if ended or self.stream.stopped:
            reason = "stop"
        elif len(self.tokens) - len(self.generation.prompt_tokens) >= sampling.max_tokens:
            reason = "length"
        if reason is not None:
            shown += self.stream.finish()
            if self.stream.stopped:
                reason = "stop"
        return shown, reason

    def completion(self, reason: FinishReason, now_s: float) -> Completion:
        """The finished generation."""
        return Completion(
            self.stream.text,
            self.drawn,
            reason,
            queued_ms=(self.admitted_at_s - self.submitted_at_s) * 1e3,
            prefill_ms=(self.first_token_at_s - self.admitted_at_s) * 1e3,
            decode_ms=(now_s - self.first_token_at_s) * 1e3,
            reused_tokens=self.reused_tokens,
            logprobs=tuple(self.logprobs) if self.generation.sampling.logprobs is not None else None,
            prompt_logprobs=tuple(self.prompt_logprobs) if self.generation.sampling.prompt_logprobs is not None else None,
        )
