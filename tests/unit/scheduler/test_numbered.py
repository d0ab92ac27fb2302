"""`Numbered` against a dict."""

from __future__ import annotations

from daskfleet.scheduler.numbered import SIZE, Numbered
from hypothesis import given
from hypothesis import strategies as st

numbers = st.integers(0, 3 * SIZE)


@given(st.lists(st.tuples(st.sampled_from(["set", "delete", "pop"]), numbers)))
def test_it_is_a_mapping(steps: list[tuple[str, int]]) -> None:
    known: dict[int, str] = {}
    found: Numbered[str] = Numbered()
    for count, (step, number) in enumerate(steps):
        if step == "set":
            known[number] = found[number] = str(count)
        elif step == "pop":
            assert found.pop(number, None) == known.pop(number, None)
        elif number in known:
            del known[number], found[number]
        assert (number in found) == (number in known)
        assert found.get(number, "none") == known.get(number, "none")
        assert len(found) == len(known)
    assert dict(found) == known and set(found.values()) == set(known.values())
    for number in list(found):
        del found[number]
    assert not found._pages  # nothing is left of what is gone
