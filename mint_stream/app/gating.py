"""A gate is looked at before it is set: can its dataset be read and graded, and could a candidate as good as production pass it?"""

from mint_stream.app.evaluate import MAX_DATASET_BYTES
from mint_stream.errors import InvalidRule
from mint_stream.messages.gates import GateTerms
from mint_stream.promotion import graders
from mint_stream.promotion.gate import items_needed
from mint_stream.promotion.items import read_items
from mint_stream.settings import Settings
from mint_stream.store import read_uri


def check(terms: GateTerms, settings: Settings) -> None:
    """Raises InvalidRule, InvalidDataset (names the line), UriNotAllowed, InvalidRequest, MissingExtra or StoreUnavailable."""
    for uri in (terms.dataset_uri, terms.canary.dataset_uri if terms.canary else None):
        if uri is not None:
            _check_dataset(uri, terms, settings)


def _check_dataset(uri: str, terms: GateTerms, settings: Settings) -> None:
    roots = (settings.store_uri, *settings.store.allowed_roots)
    items = read_items(read_uri(uri, roots, MAX_DATASET_BYTES, settings.store.options))
    graders.check(terms.grader, items)
    least = items_needed(terms.max_regression, terms.confidence)
    if least is None or len(items) < least:
        raise InvalidRule(
            f"{uri} has {len(items)} items, and a candidate that ties with production on every one passes from {least or 'more'} items on: "
            f"give more, or allow more than {terms.max_regression:g} of regression, or ask for less confidence than {terms.confidence:g}"
        )
