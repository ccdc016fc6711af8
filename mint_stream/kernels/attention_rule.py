"""What a layer asks of attention."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """What a layer asks of attention besides causality."""

    scaling: float
    window: int | None = None
    """Tokens visible to a row, itself included; None: all of them."""
    softcap: float | None = None
    sinks: Tensor | None = None
    """[heads]: a logit a head that takes part in the softmax and has no value."""

    def arguments(self) -> tuple[float, int | None, float | None, Tensor | None]:
        """In the order of the kernels' arguments."""
        return self.scaling, self.window, self.softcap, self.sinks
