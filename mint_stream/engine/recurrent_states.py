"""States of recurrent layers, a line for each slot of a cache."""

from torch import Tensor


class RecurrentStates(dict[object, Tensor]):
    """[slots, ...] by name. A slot taken anew has its last one's state."""

    def of(self, name: object, like: Tensor | None, slots: int) -> Tensor:
        """The state under `name`; made of the shape of `like` [sequences, ...] at first."""
        if name not in self:
            if like is None:
                raise ValueError(f"nothing was ever kept as {name}")
            self[name] = like.new_zeros(slots, *like.shape[1:])
        return self[name]
