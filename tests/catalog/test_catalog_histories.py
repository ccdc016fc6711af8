"""A catalog on disk, under any history of records, re-deliveries, restarts and replays, answers as a dictionary of last values would."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mint_stream.catalog import Catalog, Change, Entry
from mint_stream.errors import MintError, NoProductionRevision, RevisionQuarantined, RevisionRetired, UnknownAdapter, UnknownRevision
from mint_stream.messages.adapters import Head, Revision, RevisionState, head_key, revision_key

PARTITIONS = 2
ADAPTERS = ("a", "a-b", "z")
NUMBERS = (1, 2, 10)
ALIASES = ("production", "candidate")
STATES = get_args(RevisionState)
REFERENCES = [reference for name in ADAPTERS for reference in (name, *(f"{name}@{what}" for what in (*NUMBERS, *ALIASES, "nobody", 3)))]
RETENTION_MS = 1000


def home(adapter_id: str) -> int:
    """An adapter's records all lie in one partition."""
    return ADAPTERS.index(adapter_id) % PARTITIONS


class Model:
    """What the records of a log say, the obvious way: the last value of each key."""

    def __init__(self) -> None:
        self.heads: dict[str, Head] = {}
        self.revisions: dict[tuple[str, int], Revision] = {}

    def apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            adapter_id, _, part = (entry.key or b"").decode().rpartition("/")
            table, key = (self.heads, adapter_id) if part == "head" else (self.revisions, (adapter_id, int(part)))
            kind = Head if part == "head" else Revision
            table.pop(key, None)
            if entry.value is not None:
                table[key] = kind.decode(entry.value)

    def resolve(self, reference: str) -> Revision | type[MintError]:
        adapter_id, at, wanted = reference.partition("@")
        head = self.heads.get(adapter_id)
        if head is None:
            return UnknownAdapter
        number = int(wanted) if wanted.isdigit() else head.aliases.get(wanted or "production")
        if number is None:
            return UnknownRevision if at and wanted != "production" else NoProductionRevision
        revision = self.revisions.get((adapter_id, number))
        if revision is None:
            return UnknownRevision
        return {"retired": RevisionRetired, "quarantined": RevisionQuarantined}.get(revision.state, revision)


class AnyHistory(RuleBasedStateMachine):
    """`log` is all that was ever written, by partition; `applied` how far the catalog was shown it."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="catalog-histories-"))
        self.log: dict[int, list[Entry]] = {partition: [] for partition in range(PARTITIONS)}
        self.applied = dict.fromkeys(range(PARTITIONS), 0)
        self.now_ms = 10_000
        self.fresh = dict.fromkeys(range(PARTITIONS), 0)
        self.told: list[Change] = []
        self.catalog = self.opened()
        self.catalog.prepare("topic", RETENTION_MS, self.now_ms)

    def opened(self) -> Catalog:
        catalog = Catalog(self.directory / "copy", PARTITIONS)
        catalog.subscribe(self.told.append)
        return catalog

    def teardown(self) -> None:
        self.catalog.close()
        shutil.rmtree(self.directory)

    def write(self, adapter_id: str, key: bytes, value: bytes | None) -> None:
        records = self.log[home(adapter_id)]
        records.append(Entry(key, value, len(records)))

    @rule(adapter_id=st.sampled_from(ADAPTERS), number=st.sampled_from(NUMBERS), state=st.sampled_from(STATES), rank=st.integers(1, 9))
    def announce(self, adapter_id: str, number: int, state: RevisionState, rank: int) -> None:
        reason = "not finite" if state == "quarantined" else ""
        made = Revision(
            adapter_id=adapter_id, number=number, state=state, digest="d" * 64, pool="p", rank=rank, reason=reason, announced_at_ms=1
        )
        self.write(adapter_id, revision_key(adapter_id, number), made.encode())

    @rule(adapter_id=st.sampled_from(ADAPTERS), aliases=st.dictionaries(st.sampled_from(ALIASES), st.sampled_from(NUMBERS)))
    def move_aliases(self, adapter_id: str, aliases: dict[str, int]) -> None:
        self.write(adapter_id, head_key(adapter_id), Head(adapter_id=adapter_id, pool="p", next_number=11, aliases=aliases).encode())

    @rule(adapter_id=st.sampled_from(ADAPTERS), number=st.none() | st.sampled_from(NUMBERS))
    def delete(self, adapter_id: str, number: int | None) -> None:
        self.write(adapter_id, head_key(adapter_id) if number is None else revision_key(adapter_id, number), None)

    @precondition(lambda self: any(self.applied[partition] < len(self.log[partition]) for partition in range(PARTITIONS)))
    @rule(partition=st.integers(0, PARTITIONS - 1), count=st.integers(0, 6), again=st.integers(0, 4))
    def read_on(self, partition: int, count: int, again: int) -> None:
        """The reader brings a batch; some of it may have been seen before, as after a rebalance."""
        begin, end = max(0, self.applied[partition] - again), min(len(self.log[partition]), self.applied[partition] + count)
        self.catalog.apply(partition, self.log[partition][begin:end], end)
        self.applied[partition] = max(self.applied[partition], end)

    @rule()
    def restart(self) -> None:
        self.catalog.close()
        self.catalog = self.opened()

    @rule(partitions=st.sets(st.integers(0, PARTITIONS - 1), min_size=1))
    def catch_up(self, partitions: set[int]) -> None:
        self.catalog.mark_current(self.now_ms, partitions)
        for partition in partitions:
            self.fresh[partition] = self.now_ms

    @rule(passed_ms=st.sampled_from([1, RETENTION_MS - 1, RETENTION_MS]))
    def come_back_later(self, passed_ms: int) -> None:
        """A partition that was last current too long ago is read from its start again; no other is."""
        self.now_ms += passed_ms
        for partition in range(PARTITIONS):
            if self.applied[partition] and self.fresh[partition] + RETENTION_MS <= self.now_ms:
                self.applied[partition] = 0
        assert self.catalog.prepare("topic", RETENTION_MS, self.now_ms) == self.positions()

    @rule()
    def the_topic_is_another_one(self) -> None:
        assert self.catalog.prepare("another topic", RETENTION_MS, self.now_ms) == {}
        self.catalog.prepare("topic", RETENTION_MS, self.now_ms)
        self.applied = dict.fromkeys(range(PARTITIONS), 0)
        self.fresh = dict.fromkeys(range(PARTITIONS), 0)

    @rule()
    def told_of_nothing_that_is_not_in_the_log(self) -> None:
        assert {change.adapter_id for change in self.told} <= set(ADAPTERS)

    def positions(self) -> dict[int, int]:
        return {partition: offset for partition, offset in self.applied.items() if offset}

    def model(self) -> Model:
        model = Model()
        for partition, records in self.log.items():
            model.apply(records[: self.applied[partition]])
        return model

    @invariant()
    def every_reference_means_what_the_last_records_say(self) -> None:
        model = self.model()
        assert {reference: self.meant(reference) for reference in REFERENCES} == {name: model.resolve(name) for name in REFERENCES}

    @invariant()
    def listings_are_those_of_the_last_records(self) -> None:
        model = self.model()
        assert sorted(self.catalog.adapters()) == sorted(model.heads)
        for adapter_id in ADAPTERS:
            numbers = sorted(number for owner, number in model.revisions if owner == adapter_id)
            assert self.catalog.revisions(adapter_id) == [model.revisions[adapter_id, number] for number in numbers]
            assert self.catalog.head(adapter_id) == model.heads.get(adapter_id)

    @invariant()
    def it_knows_how_far_it_has_read_and_where_each_head_stands(self) -> None:
        assert self.catalog.positions() == self.positions()
        for adapter_id in ADAPTERS:
            records = self.log[home(adapter_id)][: self.applied[home(adapter_id)]]
            last = next((entry for entry in reversed(records) if entry.key == head_key(adapter_id)), None)
            position = self.catalog.head_position(adapter_id)
            expected = None if last is None or last.value is None else (home(adapter_id), last.offset)
            assert (position and (position.partition, position.offset)) == expected

    def meant(self, reference: str) -> Revision | type[MintError]:
        try:
            return self.catalog.resolve(reference)
        except MintError as error:
            return type(error)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
