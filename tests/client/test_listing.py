"""The picture of the catalog that people see is the same whether the log was compacted, repeated, or read in any order of partitions."""

from hypothesis import given
from hypothesis import strategies as st

from mint_stream.client.listing import CatalogFold
from mint_stream.messages.adapters import Head, Revision, SpentNumbers, head_key, revision_key, spent_key
from mint_stream.messages.shared import CatalogPosition

ADAPTERS = ("a", "a-b", "b")
Record = tuple[bytes, bytes | None]


def head(adapter_id: str, **aliases: int) -> Record:
    return head_key(adapter_id), Head(adapter_id=adapter_id, pool="p", next_number=9, aliases=aliases).encode()


def revision(adapter_id: str, number: int, rank: int = 4) -> Record:
    made = Revision(adapter_id=adapter_id, number=number, state="announced", digest="d" * 64, pool="p", rank=rank, announced_at_ms=1)
    return revision_key(adapter_id, number), made.encode()


def folded(records: list[tuple[int, Record]]) -> CatalogFold:
    fold = CatalogFold()
    for offset, (key, value) in records:
        fold.apply(CatalogPosition(partition=0, offset=offset), key, value)
    return fold


def test_an_adapter_shows_with_its_revisions_by_number_and_its_production():
    log = [revision("a", 10), revision("a", 2), head("a", production=2), revision("b", 1)]
    (view,) = folded(list(enumerate(log))).views()
    assert (view.adapter_id, view.production) == ("a", 2)
    assert [made.number for made in view.revisions] == [2, 10]
    assert view.position == CatalogPosition(partition=0, offset=2)


def test_an_adapter_without_production_has_none():
    (view,) = folded([(0, head("a", candidate=1))]).views()
    assert view.production is None and view.revisions == ()


def test_a_name_that_begins_like_another_is_another():
    log = [head("a"), head("a-b"), revision("a-b", 1), revision("a", 2)]
    first, second = folded(list(enumerate(log))).views()
    assert [made.number for made in first.revisions] == [2] and [made.number for made in second.revisions] == [1]


def test_the_numbers_that_deleted_adapters_had_are_no_adapter():
    log = [(spent_key(0), SpentNumbers(next_numbers={"a": 3}).encode()), head("a"), (spent_key(0), None)]
    assert [view.adapter_id for view in folded(list(enumerate(log))).views()] == ["a"]


records = st.one_of(
    st.builds(head, st.sampled_from(ADAPTERS), production=st.integers(1, 3)),
    st.builds(revision, st.sampled_from(ADAPTERS), st.integers(1, 3), st.integers(1, 9)),
    st.sampled_from([(head_key(name), None) for name in ADAPTERS]),
    st.sampled_from([(revision_key(name, number), None) for name in ADAPTERS for number in (1, 2, 3)]),
)


@given(st.lists(records, max_size=25))
def test_the_view_depends_only_on_the_last_record_of_each_key(log: list[Record]):
    """Law: compaction, with or without the tombstones, changes nothing that is shown."""
    numbered = list(enumerate(log))
    last = {key: (offset, (key, value)) for offset, (key, value) in numbered}
    compacted = sorted(last.values())
    without_tombstones = [record for record in compacted if record[1][1] is not None]
    assert folded(numbered).views() == folded(compacted).views() == folded(without_tombstones).views()
