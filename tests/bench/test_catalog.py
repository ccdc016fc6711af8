"""The catalog's benchmark, tiny: what it reports, that it keeps its log, and that it reports nothing that is wrong."""

import json
import time
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path

import pytest

from mint_stream.app.measure import private_bytes
from mint_stream.bench import report
from mint_stream.bench.catalog import Load, run
from mint_stream.bench.catalog_log import digest_of, head_of, revision_of
from mint_stream.bench.catalog_sides import _Answered, _check
from mint_stream.bench.wrong import WrongResult
from mint_stream.bus.table import LogRecord
from mint_stream.catalog import Catalog, Entry
from mint_stream.messages.adapters import head_key, revision_key

TINY = Load(adapters=40, repeats=1, delta_records=10, updates_per_s=50, resolves=300, commands=30)


@pytest.mark.kafka
@pytest.mark.long
@pytest.mark.timeout(180)
def test_every_figure_is_there_and_the_log_is_filled_once(tmp_path: Path) -> None:
    left = tmp_path / "40" / "copy-0-left-by-one-that-was-killed"
    left.mkdir(parents=True)
    found = run(TINY, tmp_path)
    assert not list((tmp_path / "40").glob("copy-*")), "its log is kept, its copies are not"
    assert (found["adapters"], found["records"], found["n"]) == (40, 80, 1)
    for name in ("replay_records_per_s", "warm_restart_s", "registrar_commands_per_s", "updates_applied_per_s"):
        assert found[name] > 0
    assert 0 < found["resolve_us"]["p50"] <= found["resolve_us"]["p99"]
    assert found["machine"]["cores"] and set(found["spread"]) > {"resolve_p99_us", "extra_private_bytes"}
    assert json.loads((tmp_path / "40" / "filled.json").read_text()) == {"adapters": 40}
    page = report._catalog({"sizes": [found, found], "machine": found["machine"]})
    assert page.count("| 40 |") == 2 and 'x-axis ["40", "40"]' in page


def test_commands_a_second_are_counted_from_when_the_registrar_could_begin() -> None:
    answered = _Answered(wanted=2)
    begun = time.perf_counter()
    events = [LogRecord(None, b'{"type":"revision-announced"}', (), offset, 0) for offset in range(2)]
    answered.apply(0, events, 2)
    assert answered.all.is_set()
    assert answered.per_s(begun) > answered.per_s(begun - 1) and answered.per_s(begun - 1) == pytest.approx(2, abs=0.2)


def test_a_revision_that_is_parts_of_two_is_no_result() -> None:
    torn = revision_of("a", 1).model_copy(update={"digest": digest_of("a", 2)})
    with Catalog(None, 1) as catalog:
        catalog.apply(0, [Entry(revision_key("a", 1), torn.encode(), 0), Entry(head_key("a"), head_of("a", 1).encode(), 1)], 2)
        with pytest.raises(WrongResult, match="a@1"):
            _check(catalog, "a")


def test_private_memory_counts_what_is_held_and_not_what_is_mapped_from_a_file(tmp_path: Path) -> None:
    before = private_bytes(tmp_path)
    with mmap(-1, 50_000_000, MAP_PRIVATE | MAP_ANONYMOUS) as held:  # an allocator could answer from pages that this process has already
        held.write(b"x" * 50_000_000)
        assert private_bytes(tmp_path) - before > 40_000_000
    with Catalog(tmp_path / "copy", 1) as catalog:
        before = private_bytes(tmp_path)
        entries = [Entry(head_key(f"a{n}"), head_of(f"a{n}", 1).encode(), n) for n in range(20_000)]
        catalog.apply(0, entries, len(entries))
        whole = private_bytes(Path("/nowhere"))
        for n in range(20_000):
            catalog._rows.stored(head_key(f"a{n}"))
        assert private_bytes(Path("/nowhere")) > whole, "the file's pages are private as well, for nobody else maps them"
        assert private_bytes(tmp_path) < private_bytes(Path("/nowhere")) - 5_000_000
