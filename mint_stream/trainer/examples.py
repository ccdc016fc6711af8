"""What a step learns from: single sequences, pairs of which one is preferred, and sequences that a policy drew and a grader judged.

Every kind has `sequences` (what goes through the base), `length` (their tokens) and `learned` (what it adds to a batch's weight).
"""

from dataclasses import dataclass

from mint_stream.errors import InvalidDataset
from mint_stream.promotion.items import Item


@dataclass(frozen=True)
class Example:
    """One sequence. `weights[i]` is how much predicting `tokens[i]` from those before it counts; the first is always 0."""

    tokens: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def sequences(self) -> "tuple[Example, ...]":
        """Itself."""
        return (self,)

    @property
    def length(self) -> int:
        """Tokens that go through the base."""
        return len(self.tokens)

    @property
    def learned(self) -> float:
        """The sum of the weights."""
        return sum(self.weights)


@dataclass(frozen=True)
class Rollout(Example):
    """A sequence that a policy drew: for each token its log-probability then (q) and its advantage. What weighs 0 is not read."""

    behaviour: tuple[float, ...]
    advantages: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises InvalidDataset when a token lacks one of the four."""
        lengths = [len(part) for part in (self.tokens, self.weights, self.behaviour, self.advantages)]
        if len(set(lengths)) != 1 or not self.tokens or self.weights[0]:
            raise InvalidDataset(f"a rollout has as many tokens, weights, log-probabilities and advantages, the first weight 0: {lengths}")


@dataclass(frozen=True)
class Question:
    """A prompt as serving sees it, the item it belongs to, and how long it is with its longest answer, in tokens."""

    tokens: tuple[int, ...]
    item: Item
    length: int


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, the first of them preferred."""

    chosen: Example
    rejected: Example

    @property
    def sequences(self) -> tuple[Example, ...]:
        """The chosen one, then the rejected one."""
        return self.chosen, self.rejected

    @property
    def length(self) -> int:
        """Tokens of both."""
        return self.chosen.length + self.rejected.length

    @property
    def learned(self) -> float:
        """A pair counts as one."""
        return 1.0


Learnable = Example | Preference
