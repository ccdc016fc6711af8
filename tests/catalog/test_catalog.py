"""The fold of the catalog's log: positions and rows together, names resolved, waiters and subscribers told."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.catalog import Catalog, Change, Entry
from mint_stream.errors import NoProductionRevision, RevisionQuarantined, RevisionRetired, UnknownAdapter, UnknownRevision
from mint_stream.messages.adapters import Head, Revision, RevisionState, head_key, revision_key
from mint_stream.messages.shared import CatalogPosition

RETENTION_MS = 1000


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog(None, 4) as made:
        yield made


def revision(number: int, state: RevisionState = "announced", adapter_id: str = "a", **fields: object) -> Entry:
    made = Revision(adapter_id=adapter_id, number=number, state=state, digest="d" * 64, pool="p", announced_at_ms=1, **fields)
    return Entry(revision_key(adapter_id, number), made.encode(), -1)


def head(next_number: int, adapter_id: str = "a", **aliases: int) -> Entry:
    return Entry(head_key(adapter_id), Head(adapter_id=adapter_id, pool="p", next_number=next_number, aliases=aliases).encode(), -1)


def put(catalog: Catalog, *entries: Entry, partition: int = 0) -> int:
    """Append to the partition's log as one transaction with its marker; gives the next offset."""
    first = catalog.positions().get(partition, 0)
    placed = [entry._replace(offset=first + n) for n, entry in enumerate(entries)]
    catalog.apply(partition, placed, first + len(placed) + 1)
    return first + len(placed) + 1


def filled(catalog: Catalog) -> None:
    put(catalog, *(revision(number) for number in (1, 2, 10)), head(11, production=2, candidate=10))


@pytest.mark.parametrize(("reference", "number"), [("a", 2), ("a@production", 2), ("a@10", 10), ("a@candidate", 10), ("a@01", 1)])
def test_a_reference_names_a_revision(catalog: Catalog, reference: str, number: int) -> None:
    filled(catalog)
    assert catalog.resolve(reference).number == number


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        ("nobody", UnknownAdapter, "import or train"),
        ("", UnknownAdapter, "import or train"),
        ("x" * 2000, UnknownAdapter, "import or train"),
        ("a@7", UnknownRevision, "a@candidate"),
        ("a@canary", UnknownRevision, "a@candidate"),
        ("a@" + "9" * 5000, UnknownRevision, "a@candidate"),
        ("a@٣", UnknownRevision, "a@candidate"),
        ("b", NoProductionRevision, "b@1"),
        ("c", NoProductionRevision, "no revisions"),
        ("d@1", RevisionRetired, "not served any more"),
        ("d@2", RevisionQuarantined, "weights are not finite"),
    ],
)
def test_a_reference_that_cannot_be_served_says_what_to_do(catalog: Catalog, reference: str, error: type[Exception], says: str) -> None:
    filled(catalog)
    put(catalog, revision(1, adapter_id="b"), head(2, "b"), head(1, "c"))
    put(catalog, revision(1, "retired", "d"), revision(2, "quarantined", "d", reason="weights are not finite"), head(3, "d"))
    with pytest.raises(error, match=says):
        catalog.resolve(reference)


def test_a_revision_before_its_head_does_not_show(catalog: Catalog) -> None:
    put(catalog, revision(1))
    with pytest.raises(UnknownAdapter):
        catalog.resolve("a")
    put(catalog, head(2, production=1))
    assert catalog.resolve("a").number == 1


def test_a_changed_head_is_seen_at_once(catalog: Catalog) -> None:
    filled(catalog)
    assert catalog.resolve("a").number == 2
    put(catalog, head(11, production=10))
    assert catalog.resolve("a").number == 10
    assert catalog.head_position("a") == CatalogPosition(partition=0, offset=5)


def test_revisions_are_listed_by_number_and_adapters_once_each(catalog: Catalog) -> None:
    filled(catalog)
    put(catalog, head(1, "a-b"), revision(1, adapter_id="aa"), head(1, "z"), partition=3)
    assert [made.number for made in catalog.revisions("a")] == [1, 2, 10]
    assert sorted(catalog.adapters()) == ["a", "a-b", "z"]


def test_a_step_is_found_until_its_revision_is_gone(catalog: Catalog) -> None:
    put(catalog, revision(1, job_id="job", step=3), head(2))
    assert catalog.number_of_step("a", "job", 3) == 1
    assert catalog.number_of_step("a", "job", 4) is None
    put(catalog, Entry(revision_key("a", 1), None, -1), Entry(head_key("a"), None, -1))
    assert catalog.number_of_step("a", "job", 3) is None


def test_tombstones_end_an_adapter(catalog: Catalog) -> None:
    put(catalog, revision(1), head(2, production=1))
    put(catalog, Entry(revision_key("a", 1), None, -1), Entry(head_key("a"), None, -1), Entry(b"never/1", None, -1))
    with pytest.raises(UnknownAdapter):
        catalog.resolve("a")
    assert list(catalog.adapters()) == []


@pytest.mark.parametrize(
    "broken",
    [Entry(b"a/head", b"{", -1), Entry(b"b/head", head(1).value, -1), Entry(None, b"x", -1), Entry(b"k" * 600, head(1).value, -1)],
)
def test_what_is_no_catalog_record_is_passed_over(catalog: Catalog, broken: Entry) -> None:
    put(catalog, revision(1), head(2, production=1))
    put(catalog, broken, revision(2), Entry(b"k" * 600, None, -1))
    assert catalog.resolve("a").number == 1
    assert catalog.resolve("a@2").number == 2
    assert list(catalog.adapters()) == ["a"]


@pytest.mark.parametrize("rest", [b"}", b'x","next_number":-1}', b'p","unheard":1}'])
def test_what_only_begins_as_a_record_is_as_if_it_were_not_there(catalog: Catalog, rest: bytes) -> None:
    put(catalog, Entry(head_key("a"), b'{"adapter_id":"a","pool":"' + rest, -1), revision(1), head(2, "b", production=1))
    put(catalog, Entry(revision_key("b", 1), b'{"adapter_id":"b","number":1,"state":"' + rest, -1))
    for reference, error in (("a", UnknownAdapter), ("b", UnknownRevision)):
        with pytest.raises(error):
            catalog.resolve(reference)
    assert catalog.revisions("b") == []
    put(catalog, revision(1, adapter_id="b"))
    assert catalog.resolve("b").number == 1


def test_what_was_applied_before_is_passed_over(catalog: Catalog) -> None:
    put(catalog, revision(1), head(2, production=1))
    catalog.apply(0, [head(9)._replace(offset=1), revision(2)._replace(offset=3)], 4)
    catalog.apply(0, [head(9)._replace(offset=3)], 4)
    assert catalog.head("a").next_number == 2
    assert catalog.resolve("a@2").number == 2


async def test_the_barrier_opens_at_its_position_and_not_before(catalog: Catalog) -> None:
    put(catalog, head(1))
    await catalog.reached(CatalogPosition(partition=0, offset=0))
    waiting = asyncio.create_task(catalog.reached(CatalogPosition(partition=0, offset=4)))
    cancelled = asyncio.create_task(catalog.reached(CatalogPosition(partition=0, offset=4)))
    await asyncio.sleep(0)
    cancelled.cancel()
    put(catalog, head(2))
    put(catalog, head(2), partition=1)
    await asyncio.sleep(0)
    assert not waiting.done()
    put(catalog, head(3))
    await waiting


def told(catalog: Catalog) -> list[tuple[object, ...]]:
    seen: list[tuple[object, ...]] = []

    def note(change: Change) -> None:
        seen.append((change.kind, change.adapter_id, change.number, change.previous_number, change.alias))

    catalog.subscribe(note)
    return seen


def test_changes_are_told_in_the_order_of_the_log(catalog: Catalog) -> None:
    seen = told(catalog)
    put(catalog, revision(1), head(2, production=1, candidate=1))
    put(catalog, revision(2), head(3, production=2, candidate=2, previous=1))
    put(catalog, revision(2, "quarantined"), head(3, production=1))
    put(catalog, revision(2, "retired"), head(3, production=1))
    put(catalog, Entry(head_key("a"), None, -1))
    assert seen == [
        ("announced", "a", 1, None, None),
        ("alias-moved", "a", 1, None, "production"),
        ("alias-moved", "a", 1, None, "candidate"),
        ("announced", "a", 2, None, None),
        ("alias-moved", "a", 2, 1, "production"),
        ("alias-moved", "a", 2, 1, "candidate"),
        ("alias-moved", "a", 1, None, "previous"),
        ("quarantined", "a", 2, None, None),
        ("alias-moved", "a", 1, 2, "production"),
        ("alias-moved", "a", None, 2, "candidate"),
        ("alias-moved", "a", None, 1, "previous"),
        ("retired", "a", 2, None, None),
        ("deleted", "a", None, None, None),
    ]


def test_a_subscriber_can_leave_and_sees_the_catalog_already_changed(catalog: Catalog) -> None:
    seen: list[int] = []
    leave = catalog.subscribe(lambda change: seen.append(catalog.resolve("a").number) if change.kind == "alias-moved" else None)
    put(catalog, revision(1), head(2, production=1))
    leave()
    put(catalog, revision(2), head(3, production=2))
    assert seen == [1]


def test_a_copy_continues_where_it_was(tmp_path: Path) -> None:
    with Catalog(tmp_path, 4) as first:
        assert first.prepare("topic", RETENTION_MS, 0) == {}
        put(first, revision(1), head(2, production=1), partition=2)
        first.mark_current(5000)
    with Catalog(tmp_path, 4) as second:
        assert second.prepare("topic", RETENTION_MS, 5999) == {2: 3}
        assert second.resolve("a").number == 1


@pytest.mark.parametrize(("topic", "now_ms"), [("another", 5001), ("topic", 6000)])
def test_a_copy_of_another_topic_or_too_old_is_replayed(tmp_path: Path, topic: str, now_ms: int) -> None:
    with Catalog(tmp_path, 4) as first:
        first.prepare("topic", RETENTION_MS, 0)
        put(first, revision(1), head(2, production=1))
        first.mark_current(5000)
    with Catalog(tmp_path, 4) as second:
        assert second.prepare(topic, RETENTION_MS, now_ms) == {}
        with pytest.raises(UnknownAdapter):
            second.resolve("a")


def test_a_copy_never_known_to_be_current_is_replayed(tmp_path: Path) -> None:
    with Catalog(tmp_path, 4) as first:
        first.prepare("topic", RETENTION_MS, 10_000)
        put(first, head(2))
    with Catalog(tmp_path, 4) as second:
        assert second.prepare("topic", RETENTION_MS, 10_001) == {}


def test_only_the_partition_that_is_too_old_is_replayed(catalog: Catalog) -> None:
    catalog.prepare("topic", RETENTION_MS, 0)
    put(catalog, head(1, "old"), head(1, "older"), partition=0)
    put(catalog, head(1, "new"), partition=1)
    put(catalog, head(1, "owned"), partition=2)
    catalog.mark_current(5000, [1])
    assert catalog.prepare("topic", RETENTION_MS, 5500, partitions=[0, 1]) == {1: 2, 2: 2}
    assert list(catalog.adapters()) == ["new", "owned"]


def test_a_copy_from_before_the_last_boot_is_thrown_away(tmp_path: Path) -> None:
    with Catalog(tmp_path, 4) as first:
        first.prepare("topic", RETENTION_MS, 0)
        put(first, head(2))
        first.mark_current(5000)
    (tmp_path / "boot").write_text("another boot")
    with Catalog(tmp_path, 4) as second:
        assert second.positions() == {}


def test_an_unreadable_copy_is_replayed(tmp_path: Path) -> None:
    with Catalog(tmp_path, 4) as first:
        put(first, head(2))
    (tmp_path / "data.mdb").write_bytes(b"\x00" * 8192)
    with Catalog(tmp_path, 4) as second:
        assert second.positions() == {}


KEYS = st.sampled_from([("a", 1), ("a", 2), ("b", 1), ("a", None), ("b", None)])


@given(st.lists(st.tuples(KEYS, st.none() | st.integers(1, 5)), max_size=30), st.integers(1, 7))
def test_the_copy_depends_only_on_the_last_record_of_each_key(log: list[tuple[tuple[str, int | None], int | None]], cut: int) -> None:
    """Law: replaying the compacted log gives what applying the whole log gave, wherever it was cut into batches."""
    entries = [_entry(adapter_id, number, value, offset) for offset, ((adapter_id, number), value) in enumerate(log)]
    last = {entry.key: entry for entry in entries}
    with Catalog(None, 1) as whole, Catalog(None, 1) as compacted:
        for start in range(0, len(entries), cut):
            batch = entries[start : start + cut]
            whole.apply(0, batch, batch[-1].offset + 1)
        compacted.apply(0, sorted(last.values(), key=lambda entry: entry.offset), len(entries))
        for adapter_id in ("a", "b"):
            assert whole.head(adapter_id) == compacted.head(adapter_id)
            assert whole.head_position(adapter_id) == compacted.head_position(adapter_id)
            assert whole.revisions(adapter_id) == compacted.revisions(adapter_id)


def _entry(adapter_id: str, number: int | None, value: int | None, offset: int) -> Entry:
    made = revision(number, adapter_id=adapter_id, rank=value) if number else head(value or 1, adapter_id)
    return Entry(made.key, made.value if value else None, offset)
