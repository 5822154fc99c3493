"""How tasks are shared out, for any group and any past."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from thalweg.assignment import assign

NAMES = st.text("abcdef", min_size=1, max_size=3)


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, dict[str, set[int]]]:
    """Any number of tasks, each held by one member or by none."""
    n = draw(st.integers(0, 20))
    members = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    held: dict[str, set[int]] = {name: set() for name in members}
    for task in range(n):
        holder = draw(st.sampled_from([*members, None]))
        if holder is not None:
            held[holder].add(task)
    return n, held


@given(groups())
def test_nobody_gets_what_another_holds_and_no_task_goes_to_two(group: tuple[int, dict[str, set[int]]]) -> None:
    n, held = group
    shares = assign("g", n, held)
    assert shares.keys() == held.keys()
    counts = Counter(task for share in shares.values() for task in share)
    assert all(count == 1 for count in counts.values())
    for name, share in shares.items():
        assert not any(share & others for other, others in held.items() if other != name)
        assert share <= set(range(n))


@given(groups())
def test_once_all_have_given_up_what_they_must_the_shares_are_even_and_stay(
    group: tuple[int, dict[str, set[int]]],
) -> None:
    n, held = group
    second = assign("g", n, assign("g", n, held))
    sizes = sorted(len(share) for share in second.values())
    assert sum(sizes) == n
    assert sizes[-1] - sizes[0] <= 1
    assert assign("g", n, second) == second


@given(groups())
def test_a_member_keeps_what_it_holds_up_to_its_share(group: tuple[int, dict[str, set[int]]]) -> None:
    n, held = group
    for name, share in assign("g", n, held).items():
        least = n // len(held)
        assert len(share & held[name]) >= min(len(held[name]), least)
        assert len(share & held[name]) == len(held[name]) or len(share) <= least + 1


@given(groups())
def test_one_that_leaves_moves_nothing_but_its_own_tasks(group: tuple[int, dict[str, set[int]]]) -> None:
    n, held = group
    settled = assign("g", n, assign("g", n, held))
    _, *rest = sorted(settled)
    if rest:
        after = assign("g", n, {name: settled[name] for name in rest})
        assert all(after[name] >= settled[name] for name in rest)
        assert set().union(*after.values()) == set(range(n))


@given(groups(), st.data())
def test_those_who_rest_get_nothing_and_keep_what_they_have_not_given_up(
    group: tuple[int, dict[str, set[int]]], data: st.DataObject
) -> None:
    n, held = group
    resting = data.draw(st.sets(st.sampled_from(sorted(held))))
    shares = assign("g", n, held, resting)
    assert shares.keys() == held.keys()
    assert not any(shares[name] for name in resting)
    kept: set[int] = set().union(*(held[name] for name in resting))
    assert not any(share & kept for share in shares.values())
    if resting < held.keys():
        later = assign("g", n, shares, resting)
        assert set().union(*later.values()) == set(range(n))


def test_the_only_task_of_small_groups_does_not_go_to_one_member_each_time() -> None:
    owners = {
        name for group in "abcdefgh" for name, share in assign(group, 1, {"a": (), "b": (), "c": ()}).items() if share
    }
    assert len(owners) > 1
