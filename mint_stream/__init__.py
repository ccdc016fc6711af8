"""Train, version and serve very many LoRA adapters over a few resident base models, with Kafka as the nervous system.

    async with Client(Settings.load()) as client:
        result = await client.generate("Once upon a time", adapter="storyteller")

Importing this package is quick: each name is fetched from its module when it is first used, and none of them needs torch."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mint_stream.bus.connection import Connection as Connection
    from mint_stream.client import AdapterView as AdapterView
    from mint_stream.client import Client as Client
    from mint_stream.client import StreamRestart as StreamRestart
    from mint_stream.client import Ticket as Ticket
    from mint_stream.client import raise_for_error as raise_for_error
    from mint_stream.messages.adapters import AdapterEvent as AdapterEvent
    from mint_stream.messages.adapters import Manifest as Manifest
    from mint_stream.messages.adapters import Revision as Revision
    from mint_stream.messages.inference import ChatMessage as ChatMessage
    from mint_stream.messages.inference import InferenceChunk as InferenceChunk
    from mint_stream.messages.inference import InferenceRequest as InferenceRequest
    from mint_stream.messages.inference import InferenceResult as InferenceResult
    from mint_stream.messages.inference import Sampling as Sampling
    from mint_stream.messages.shared import CatalogPosition as CatalogPosition
    from mint_stream.messages.training import Hyperparameters as Hyperparameters
    from mint_stream.messages.training import LoraSettings as LoraSettings
    from mint_stream.messages.training import TrainingEvent as TrainingEvent
    from mint_stream.messages.training import TrainingJob as TrainingJob
    from mint_stream.settings import Settings as Settings

_HOMES = {
    "AdapterEvent": "messages.adapters",
    "AdapterView": "client",
    "CatalogPosition": "messages.shared",
    "ChatMessage": "messages.inference",
    "Client": "client",
    "Connection": "bus.connection",
    "Hyperparameters": "messages.training",
    "InferenceChunk": "messages.inference",
    "InferenceRequest": "messages.inference",
    "InferenceResult": "messages.inference",
    "LoraSettings": "messages.training",
    "Manifest": "messages.adapters",
    "Revision": "messages.adapters",
    "Sampling": "messages.inference",
    "Settings": "settings",
    "StreamRestart": "client",
    "Ticket": "client",
    "TrainingEvent": "messages.training",
    "TrainingJob": "messages.training",
    "raise_for_error": "client",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"mint_stream has no {name}")
    return getattr(importlib.import_module(f"mint_stream.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
