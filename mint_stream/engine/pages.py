"""Which sequence's tokens are in which pages: memory follows what sequences have, and prompts that begin alike share it. Pure.

Whose weights computed a page is part of its name, by content digest, as are all tokens up to its end: what one revision computed is never
read by the next one of the same adapter, nor by the bare base.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

NOBODYS = 0
"""A page that belongs to no sequence: rows that only fill a pass up are written there."""


@dataclass
class _Open:
    tokens: Sequence[int]
    owed: int
    """Pages that were promised and not given yet."""
    found: int
    """Leading pages that were there already."""
    pages: list[int]
    names: list[bytes] = field(default_factory=list)
    """Of its first pages, each full of computed tokens; the maker's alone before them."""


class PagePool:
    """Laws: a page is one sequence's, or that of several which begin alike by the same maker. What was promised is there when asked for.
    Full pages are offered until their memory is needed, those used last the longest, and a beginning longer than what follows it.
    """

    def __init__(self, pages: int, page_tokens: int) -> None:
        self.pages, self.page_tokens = pages, page_tokens
        self._free = list(range(pages, NOBODYS, -1))
        self._holders: Counter[int] = Counter()
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._by_name: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self._open: dict[int, _Open] = {}
        self._owed = 0

    @property
    def used(self) -> int:
        """Pages of open sequences."""
        return len(self._holders)

    @property
    def spare(self) -> int:
        """Pages that could still be promised."""
        return self.pages - self.used - self._owed

    def open(self, sequence: int, maker: Hashable, tokens: Sequence[int], length: int, reuse: bool = True) -> int | None:
        """Promise a new sequence pages for `length` tokens: how many of `tokens` are in pages it has already. None: there is no room now.

        The last of `tokens` is never among them. The sequence may go on appending to `tokens`.
        """
        names = [hashlib.blake2b(repr(maker).encode(), digest_size=16).digest()]
        found = self._known(names, tokens) if reuse else []
        owed = -(-length // self.page_tokens) - len(found)
        if owed + sum(page in self._idle for page in found) > self.spare:
            return None
        for page in found:
            self._idle.pop(page, None)
            self._holders[page] += 1
        self._open[sequence] = _Open(tokens, owed, len(found), found, names)
        self._owed += owed
        return len(found) * self.page_tokens

    def reach(self, sequence: int, tokens: int) -> bool:
        """Give a sequence the pages of its first `tokens` tokens; whether it got any. Raises ValueError beyond what it was promised."""
        opened = self._open[sequence]
        missing = -(-tokens // self.page_tokens) - len(opened.pages)
        if missing > opened.owed:
            raise ValueError(f"sequence {sequence} was promised {opened.owed} pages more and asks for {missing}")
        for _ in range(missing):
            page = self._fresh()
            self._holders[page] += 1
            opened.pages.append(page)
            opened.owed -= 1
            self._owed -= 1
        return missing > 0

    def table(self, sequence: int) -> list[int]:
        """Its pages, in the order of its tokens."""
        return self._open[sequence].pages

    def advance(self, sequence: int, computed: int) -> None:
        """Its first `computed` tokens are computed: pages that are full are offered to others from now on."""
        opened = self._open[sequence]
        for at in range(len(opened.names) - 1, computed // self.page_tokens):
            opened.names.append(self._name(opened.names[-1], opened.tokens, at))
            if opened.names[-1] not in self._by_name:
                self._by_name[opened.names[-1]], self._name_of[opened.pages[at]] = opened.pages[at], opened.names[-1]

    def close(self, sequence: int, keep: bool) -> None:
        """End a sequence. To `keep` goes on offering its full pages; what it computed is forgotten otherwise, what it found is not."""
        opened = self._open.pop(sequence)
        self._owed -= opened.owed
        for at, page in reversed(list(enumerate(opened.pages))):
            if at >= opened.found and not keep:
                self._forget(page)
            self._let_go(page)

    def _known(self, names: list[bytes], tokens: Sequence[int]) -> list[int]:
        """The pages that `tokens` begin with; `names` grows by theirs."""
        found: list[int] = []
        for at in range((len(tokens) - 1) // self.page_tokens):
            name = self._name(names[-1], tokens, at)
            if name not in self._by_name:
                break
            names.append(name)
            found.append(self._by_name[name])
        return found

    def _name(self, before: bytes, tokens: Sequence[int], page: int) -> bytes:
        own = array("q", tokens[page * self.page_tokens : (page + 1) * self.page_tokens])
        return hashlib.blake2b(before + own.tobytes(), digest_size=16).digest()

    def _fresh(self) -> int:
        if self._free:
            return self._free.pop()
        page, _ = self._idle.popitem(last=False)
        self._forget(page)
        return page

    def _let_go(self, page: int) -> None:
        self._holders[page] -= 1
        if not self._holders[page]:
            del self._holders[page]
            if page in self._name_of:
                self._idle[page] = None
            else:
                self._free.append(page)

    def _forget(self, page: int) -> None:
        name = self._name_of.pop(page, None)
        if name is not None:
            del self._by_name[name]
