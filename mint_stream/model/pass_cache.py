"""What every cache of a packed pass tells a stock model: nothing it could build a mask or positions of."""

from transformers import Cache


class PassCache(Cache):  # type: ignore[misc]  # transformers ships no types
    """A cache whose passes bring their own positions and whose attention builds no masks."""

    def __init__(self) -> None:
        super().__init__(layers=[])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are explicit; models ask and need not know."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(length, offset): no mask is built from them."""
        return query_length, 0
