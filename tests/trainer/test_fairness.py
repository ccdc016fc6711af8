"""Who goes into the next pass, by the laws that TokenRotation states."""

from collections import Counter
from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mint_stream.trainer.fairness import Offer, TokenRotation

BUDGET = 512

crowds = st.lists(st.lists(st.integers(1, BUDGET), min_size=1, max_size=4), min_size=1, max_size=5)
"""By tenant, the tokens of each of its jobs' pieces."""


def offers_of(crowd: list[list[int]]) -> list[Offer]:
    return [Offer(f"t{tenant}", f"t{tenant}j{job}", tokens) for tenant, jobs in enumerate(crowd) for job, tokens in enumerate(jobs)]


def test_what_fits_goes_together_and_what_is_larger_than_a_pass_goes_alone() -> None:
    rotation = TokenRotation(quantum_tokens=1000)
    offers = [Offer("a", "1", 30), Offer("a", "2", 30), Offer("a", "3", 90)]
    assert [rotation.choose(offers, 60), rotation.choose(offers, 60)] == [[0, 1], [2]]
    assert rotation.choose([], 60) == []


@settings(max_examples=200, deadline=None)
@given(crowd=crowds, quantum=st.integers(1, 700))
def test_a_pass_keeps_its_budget_and_leaves_out_nothing_that_fits(crowd: list[list[int]], quantum: int) -> None:
    rotation, offers = TokenRotation(quantum), offers_of(crowd)
    for _ in range(6):
        chosen = rotation.choose(offers, BUDGET)
        used = sum(offers[place].tokens for place in chosen)
        assert chosen and len(set(chosen)) == len(chosen) and (used <= BUDGET or len(chosen) == 1)
        left = [offer.tenant for place, offer in enumerate(offers) if place not in chosen]
        alone = [offer for place, offer in enumerate(offers) if place not in chosen and left.count(offer.tenant) == 1]
        assert all(offer.tokens > BUDGET - used for offer in alone), "a tenant's only offer left is its next one"


def tenants(offers: list[Offer]) -> list[str]:
    return sorted({offer.tenant for offer in offers})


@settings(max_examples=200, deadline=None)
@given(crowd=crowds, quantum=st.integers(1, BUDGET // 2))
def test_every_tenant_is_in_one_of_4n_passes_and_every_job_in_one_of_4n_times_its_tenants_jobs(
    crowd: list[list[int]], quantum: int
) -> None:
    """The starvation bound."""
    rotation, offers, bound = TokenRotation(quantum), offers_of(crowd), 4 * len(crowd)
    passes = [rotation.choose(offers, BUDGET) for _ in range(2 * bound * max(map(len, crowd)))]
    for tenant in tenants(offers):
        theirs = {place for place, offer in enumerate(offers) if offer.tenant == tenant}
        assert longest_wait(passes, theirs) <= bound
        assert all(longest_wait(passes, {place}) <= bound * len(theirs) for place in theirs)


def longest_wait(passes: list[list[int]], places: set[int]) -> int:
    """Passes from one with any of `places` in it to the next such, from the beginning to the end."""
    seen = [-1, *(number for number, chosen in enumerate(passes) if places & set(chosen)), len(passes)]
    return max(after - before for before, after in pairwise(seen))


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(8, 256), min_size=2, max_size=4), quantum=st.integers(32, 256))
def test_tenants_that_always_have_more_to_offer_get_the_same_tokens(sizes: list[int], quantum: int) -> None:
    """However many jobs they have: here each has so many that a pass never takes them all."""
    assume(max(sizes) <= BUDGET // len(sizes))
    rotation = TokenRotation(quantum)
    offers = offers_of([[size] * (BUDGET // size + 2) for size in sizes])
    served: Counter[str] = Counter()
    for _ in range(60):
        for place in rotation.choose(offers, BUDGET):
            served[offers[place].tenant] += offers[place].tokens
        assert max(served.values()) - min(served[tenant] for tenant in tenants(offers)) <= 2 * BUDGET + quantum + max(sizes)


def test_savings_end_with_the_offers() -> None:
    """A tenant that was idle has no claim on what it did not use."""
    rotation = TokenRotation(quantum_tokens=100)
    small, large = [Offer("a", "a", 10)], [Offer("b", f"b{number}", 100) for number in range(9)]
    for _ in range(50):
        rotation.choose(small, 300)
    assert len([place for place in rotation.choose([*small, *large], 300) if place]) == 2
