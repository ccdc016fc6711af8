"""The base of this process: loaded once, for one role or for two that take turns on it."""

import asyncio

from mint_stream.app.serve_parts import chosen_device
from mint_stream.model.base import ResidentBase, load_base
from mint_stream.model.pull import resolve_base
from mint_stream.model.turns import Turns
from mint_stream.settings import Settings


class Resident:
    """See the module."""

    def __init__(self, settings: Settings, both: bool = False) -> None:
        """`both`: it serves and trains."""
        self._settings = settings
        self._loading = asyncio.Lock()
        self._base: ResidentBase | None = None
        self.turns = Turns(settings.training.busy_share)
        self.training_bytes = settings.training.state_bytes if both else 0
        """Of the device, which serving has to leave to training."""

    async def base(self) -> ResidentBase:
        """Raises BaseUnusable and InvalidSettings."""
        async with self._loading:
            if self._base is None:
                self._base = await asyncio.to_thread(self._load)
        return self._base

    def _load(self) -> ResidentBase:
        return load_base(resolve_base(self._settings.base, self._settings.home), device=chosen_device(self._settings))
