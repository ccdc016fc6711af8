"""From tokens to text as they arrive: never half a character, never any part of a stop string."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
_UNFINISHED = "\ufffd"


class Detokenizer:
    """Text of a growing token sequence. Decodes only a short tail each time, and holds back bytes that are not yet a character."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0
        self._read = 0

    def push(self, token: int) -> str:
        """The text that this token completes; may be empty."""
        self._tokens.append(token)
        return self._advance(final=False)

    def finish(self) -> str:
        """What was held back."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        known = self._decode(self._tokens[self._context : self._read])
        text = self._decode(self._tokens[self._context :])
        if len(text) <= len(known) or (text.endswith(_UNFINISHED) and not final):
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return text[len(known) :]


class StopScanner:
    """Lets text through up to the first stop string. What might be the beginning of one waits."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that certainly precedes any stop string."""
        if self.stopped:
            return ""
        self._held += text
        found = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        self.stopped = bool(found)
        keep = min(found) if found else len(self._held) - self._maybe()
        out, self._held = self._held[:keep], self._held[keep:]
        return out

    def finish(self) -> str:
        """The rest, when no more text comes."""
        out, self._held = ("" if self.stopped else self._held), ""
        return out

    def _maybe(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(self._held)), 0, -1):
            end = self._held[-size:]
            if any(stop.startswith(end) for stop in self._stops):
                return size
        return 0


class TextStream:
    """Both together: tokens in, text that may be shown out. `text` is all that was shown."""

    def __init__(self, decode: Decode, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(decode)
        self._scanner = StopScanner(stops)
        self.text = ""

    @property
    def stopped(self) -> bool:
        """A stop string came; what follows is not shown."""
        return self._scanner.stopped

    def push(self, token: int) -> str:
        """Text that may be shown after this token."""
        return self._show(self._scanner.push(self._detokenizer.push(token)))

    def finish(self) -> str:
        """Text that may be shown now that no token follows."""
        shown = self._scanner.push(self._detokenizer.finish())
        return self._show(shown + self._scanner.finish())

    def _show(self, piece: str) -> str:
        self.text += piece
        return piece
