"""The client library: async, typed, and without torch."""

from mint_stream.bus.streams import StreamRestart as StreamRestart
from mint_stream.client.client import Client as Client
from mint_stream.client.feed import Feed as Feed
from mint_stream.client.history import AdapterThen as AdapterThen
from mint_stream.client.history import RevisionThen as RevisionThen
from mint_stream.client.listing import AdapterView as AdapterView
from mint_stream.client.requests import Ticket as Ticket
from mint_stream.client.requests import raise_for_error as raise_for_error
