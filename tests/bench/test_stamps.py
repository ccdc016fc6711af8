"""A trainer's stamps: what it writes down, and the publishes that are read from it."""

from pathlib import Path

from mint_stream.bench.stamps import Published, published, stamping

EFFECTS = ("claimed", "stepped", "stepped", "checkpoint-durable", "files-durable", "announced", "answered")


def test_effects_are_written_in_order_with_a_clock_that_does_not_go_back(tmp_path: Path) -> None:
    stamp = stamping(tmp_path / "stamps")
    for effect in EFFECTS:
        stamp(effect)
    lines = [line.split() for line in (tmp_path / "stamps").read_text().splitlines()]
    assert [effect for effect, _ in lines] == list(EFFECTS)
    assert (times := [int(at) for _, at in lines]) == sorted(times)


def test_a_publish_counts_from_the_last_step_before_it() -> None:
    lines = "".join(f"{effect} {number}\n" for number, effect in enumerate(EFFECTS * 2))
    assert list(published(lines)) == [Published(2, 3, 4, 5), Published(9, 10, 11, 12)]


def test_what_was_not_announced_is_no_publish() -> None:
    assert list(published("stepped 1\ncheckpoint-durable 2\nfiles-durable 3\n")) == []


def test_files_may_be_durable_before_the_checkpoint_is() -> None:
    (one,) = published("stepped 1\nfiles-durable 2\ncheckpoint-durable 3\nannounced 4\n")
    assert (one, one.durable) == (Published(1, 3, 2, 4), 3)
