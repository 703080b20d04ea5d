"""Which page leaves, as a list says it."""

from __future__ import annotations

from pagedopt.paging.replacement import Replacement


def use(replacement: Replacement, *pages: int) -> None:
    for page in pages:
        replacement.pin(page)
        replacement.unpin(page)


def test_the_most_recently_used_page_leaves() -> None:
    replacement = Replacement(prefetch_depth=1)
    use(replacement, 1, 2, 3)
    assert replacement.victim(3) == 3
    replacement.forget(3)
    assert replacement.victim(3) == 2


def test_a_pinned_page_does_not_leave() -> None:
    replacement = Replacement(prefetch_depth=1)
    use(replacement, 1, 2)
    replacement.pin(2)
    assert replacement.victim(2) == 1
    replacement.pin(1)
    assert replacement.victim(2) is None


def test_a_page_not_used_for_a_whole_cycle_leaves_first() -> None:
    replacement = Replacement(prefetch_depth=1)
    use(replacement, 9, 1, 2, 3, 1, 2, 3)
    assert replacement.victim(4) == 9


def test_using_one_page_again_and_again_ages_nobody() -> None:
    replacement = Replacement(prefetch_depth=1)
    use(replacement, 1, *[2] * 50)
    assert replacement.victim(2) == 2


def test_a_page_read_ahead_leaves_last() -> None:
    replacement = Replacement(prefetch_depth=1)
    use(replacement, 1)
    replacement.expect(2)
    replacement.expect(3)
    assert replacement.victim(3) == 1
    replacement.forget(1)
    assert replacement.victim(3) is None
    assert replacement.last_resort() == 3


def test_a_page_read_ahead_in_vain_leaves_first() -> None:
    replacement = Replacement(prefetch_depth=1)
    replacement.expect(7)
    use(replacement, 1, 2, 3, 4, 5)
    assert replacement.victim(100) == 7
