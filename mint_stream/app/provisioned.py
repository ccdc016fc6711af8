"""The topics as this cluster was provisioned with them."""

from mint_stream.contracts import Topic, load_topics, with_partitions
from mint_stream.settings import Settings


def topics(settings: Settings) -> dict[str, Topic]:
    """Every topic of topics/, by stem, with `MINT_PARTITIONS` in place of its own count where that is set."""
    declared = load_topics()
    return with_partitions(declared, settings.partitions) if settings.partitions else declared
