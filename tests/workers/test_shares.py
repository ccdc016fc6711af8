"""A tenant's share is a bound that no flood passes, and no promise that anybody else can break."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_stream.workers.shares import TenantShares

TENANTS = st.sampled_from(["hot", "quiet", "third"])


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.lists(st.tuples(TENANTS, st.booleans()), max_size=120))
def test_nobody_holds_more_than_its_share_and_nobody_below_it_is_refused(window: int, share: float, moves: list[tuple[str, bool]]) -> None:
    shares, held = TenantShares(window, share), Counter[str]()
    for tenant, comes in moves:
        if comes:
            below = held[tenant] < max(1, int(window * share))
            assert shares.take(tenant) == below
            held[tenant] += below
        elif held[tenant]:
            shares.release(tenant)
            held[tenant] -= 1
    assert all(count <= max(1, int(window * share)) for count in held.values())


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="more than 0 and at most 1"):
        TenantShares(10, share)
