"""Where the weights of a step's adapters are, for all layers at once and at the same place for ever, as a graph looks them up."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from weakref import ref

import torch
from torch import Tensor

from mint_stream.kernels.placing import NOTHING, placed, table_key, weight_line
from mint_stream.kernels.segments import LoraWeights, SiteWeights, SliceWeights

REMEMBERED_ADAPTERS = 1024

Layers = Mapping[str, LoraWeights]
"""What an adapter has, by module path."""


class BoundWeights:
    """int64 [paths, slots, 4], lines as weight_table has them: what layers ask for together stands together."""

    def __init__(self, paths: Sequence[str], slots: int, device: torch.device) -> None:
        self._slots, self._device = slots, device
        self._paths = frozenset(paths)
        self._table = torch.zeros(len(paths), slots, 4, dtype=torch.int64, device=device)
        self._places: dict[str, int] = {}
        self._known: OrderedDict[int, tuple[ref[Tensor], Tensor]] = OrderedDict()

    def slices(self, paths: tuple[str, ...]) -> SliceWeights | None:
        """What the layers at `paths` have, which read the same x; None when no adapter here has anything for any of them."""
        mine = [path for path in paths if path in self._paths]
        if not mine:
            return None
        first = len(self._places)
        self._places |= {path: first + at for at, path in enumerate(mine)}
        self._known.clear()
        sites = {path: SiteWeights([None] * self._slots) for path in mine}
        found = list(sites.values())
        found[0].placed[table_key(self._device, False, found)] = self._table[first : first + len(mine)]  # type: ignore[index]
        return SliceWeights([sites.get(path) for path in paths])

    def holds(self, adapters: Sequence[Layers]) -> bool:
        """Whether there is a line for all that these adapters have."""
        return len(adapters) <= self._slots and all(path in self._places for layers in adapters for path in layers)

    def load(self, adapters: Sequence[Layers]) -> None:
        """From now on slot i is adapters[i]."""
        lines = torch.stack([self._lines(layers) for layers in adapters], dim=1)
        self._table[: lines.shape[0], : lines.shape[1]].copy_(placed(lines, self._device), non_blocking=True)

    def _lines(self, layers: Layers) -> Tensor:
        """[paths, 4] of one adapter, remembered for as long as its weights live."""
        one = next(iter(layers.values())).A
        known = self._known.get(id(one))
        if known is None or known[0]() is not one:
            lines = [NOTHING if (lora := layers.get(path)) is None else weight_line(lora) for path in self._places]
            known = ref(one), torch.tensor(lines, dtype=torch.int64)
            self._known[id(one)] = known
        self._known.move_to_end(id(one))
        while len(self._known) > REMEMBERED_ADAPTERS:
            self._known.popitem(last=False)
        return known[1]
