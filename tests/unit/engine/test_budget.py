"""A budget and its shares: whatever is asked, in whatever order, nobody has more than his share and all comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from antiphon.engine.exchange.budget import Budget
from antiphon.errors import ApiError, AtCapacity, RequestTooLarge

_MAX, _SHARE = 100, 60
_STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "check", "close"]), st.integers(0, 7), st.integers(0, _MAX + 10)), max_size=60
)
_OWNERS = ("a", "a", "a", "b", "b", "c", "", "")


def _budget(refused: list[AtCapacity] | None = None) -> Budget:
    told = refused if refused is not None else []
    return Budget(_MAX, "limits.all", share=_SHARE, share_setting="limits.one", refused=told.append)


@given(_STEPS)
def test_nobody_has_more_than_his_share_and_all_comes_back(steps: list[tuple[str, int, int]]) -> None:
    refused: list[AtCapacity] = []
    budget = _budget(refused)
    holds = [budget.hold(owner) for owner in _OWNERS]
    expected = 0
    for action, number, size in steps:
        hold, before = holds[number], [one.size for one in holds]
        try:
            if action == "close":
                hold.close()
            elif action == "check":
                hold.check(size)
            else:
                hold.add(size)
        except ApiError as error:
            assert [one.size for one in holds] == before
            owner = _OWNERS[number]
            held = sum(one.size for one, whose in zip(holds, _OWNERS, strict=True) if whose == owner)
            assert sum(before) + size > _MAX or (owner and held + size > _SHARE)
            # Another moment would do, unless what it holds itself is too much already.
            never = hold.size + size > (_SHARE if owner else _MAX)
            assert isinstance(error, RequestTooLarge if never else AtCapacity)
            expected += not never
        sizes = [one.size for one in holds]
        assert min(sizes) >= 0 and budget.used == sum(sizes) <= _MAX
        for owner in ("a", "b", "c"):
            held = sum(one for one, whose in zip(sizes, _OWNERS, strict=True) if whose == owner)
            assert budget.used_by(owner) == held <= _SHARE
    assert len(refused) == expected
    for hold in holds:
        hold.close()
    assert (budget.used, budget.owners) == (0, 0)


def test_an_owner_with_his_share_leaves_room_for_others() -> None:
    budget = _budget()
    with budget.hold("a") as first, budget.hold("a") as second, budget.hold("b") as other:
        first.add(50)
        with pytest.raises(AtCapacity) as own:
            second.add(20)
        other.add(40)
        assert (own.value.status, own.value.code) == (429, "rate_limit_exceeded")
        assert "'limits.one'" in own.value.message and ("retry-after", "1") in own.value.headers
        with pytest.raises(AtCapacity) as all_of_it:
            other.add(11)
        assert (all_of_it.value.status, all_of_it.value.code) == (503, "overloaded")
        assert "'limits.all'" in all_of_it.value.message and ("retry-after", "1") in all_of_it.value.headers


def test_without_shares_an_owner_may_have_all() -> None:
    budget = Budget(_MAX, "limits.all")
    with budget.hold("a") as hold:
        hold.add(_MAX)
    assert (budget.used, budget.owners) == (0, 0)


def test_what_would_never_fit_is_another_error_than_what_does_not_fit_now() -> None:
    """Trying again is of use only where it was somebody else's bytes that were in the way, or earlier ones."""
    refused: list[AtCapacity] = []
    budget = _budget(refused)
    with budget.hold("a") as first, budget.hold("a") as second, budget.hold("") as nobodys:
        first.add(10)
        nobodys.add(10)
        for ask in (first.add, first.check):
            with pytest.raises(RequestTooLarge) as own:
                ask(_SHARE - 9)
            assert own.value.status == 413 and "'limits.one'" in own.value.message and "owner" in own.value.message
        for ask in (nobodys.add, nobodys.check):
            with pytest.raises(RequestTooLarge) as all_of_it:
                ask(_MAX - 9)
            assert "'limits.all'" in all_of_it.value.message and "owner" not in all_of_it.value.message
        assert refused == [], "nobody counts what no room could be made for"
        # The same bytes asked for by another request of the same owner fit once the first has gone.
        for ask in (second.add, second.check):
            with pytest.raises(AtCapacity):
                ask(_SHARE - 9)
        with pytest.raises(AtCapacity):
            nobodys.check(_MAX - 15)
        assert len(refused) == 3


def test_what_one_request_gives_back_leaves_what_the_owner_has_otherwise() -> None:
    budget = _budget()
    with budget.hold("a") as first:
        first.add(20)
        with budget.hold("a") as second:
            second.add(30)
            assert budget.used_by("a") == 50
        assert (budget.used_by("a"), budget.owners) == (20, 1)
    assert (budget.used_by("a"), budget.owners) == (0, 0)


@pytest.mark.parametrize("owner", ["a", ""], ids=["share", "all of it"])
@pytest.mark.parametrize("held", [0, 1], ids=["by one request", "by two"])
def test_all_of_it_fits_and_one_more_does_not(owner: str, held: int) -> None:
    budget, limit = _budget(), _SHARE if owner else _MAX
    with budget.hold(owner) as other, budget.hold(owner) as hold:
        other.add(held)
        hold.check(limit - held)
        hold.add(limit - held)
        for refused in (hold.check, hold.add):
            with pytest.raises(RequestTooLarge if not held else AtCapacity):
                refused(1)
        hold.add(0)
        assert budget.used == limit
    with budget.hold(owner) as empty:
        empty.check(limit)
        with pytest.raises(RequestTooLarge):
            empty.check(limit + 1)
