"""When a partition counts as stuck."""

from mint_stream.bus.liveness import Sighting, stuck


def test_only_what_has_records_to_fetch_and_did_not_move_for_long_enough_is_stuck():
    seen = {"idle": Sighting(5, 0.0), "moving": Sighting(5, 55.0), "stuck": Sighting(5, 0.0)}
    ends = {"idle": 5, "moving": 9, "stuck": 9}
    assert stuck(seen, ends, now_s=60.0, after_s=60.0) == ["stuck"]
    assert stuck(seen, ends, now_s=59.0, after_s=60.0) == []
