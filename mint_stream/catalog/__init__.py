"""The catalog of adapters: a local copy folded from its log, and the rules by which the registrar extends that log."""

from mint_stream.catalog.canary import Chosen
from mint_stream.catalog.catalog import Catalog
from mint_stream.catalog.changes import Change
from mint_stream.catalog.fold import Entry

__all__ = ["Catalog", "Change", "Chosen", "Entry"]
