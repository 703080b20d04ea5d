"""Instructions are counted, so they grow with the values and not with the day."""

from __future__ import annotations

import platform

import pytest

from bench.cpu_instructions import Case, executed

ON_LINUX = (platform.system(), platform.machine()) == ("Linux", "x86_64")


@pytest.mark.skipif(not ON_LINUX, reason="instructions are counted on Linux on x86_64")
def test_twice_the_values_take_twice_the_instructions() -> None:
    """Less what a call takes, of which Python does not do exactly the same each time."""
    once, twice, thrice = executed([Case("scalar", "32-bit", "float32", numel) for numel in (512, 1024, 1536)])
    assert 512 < twice - once == pytest.approx(thrice - twice, rel=0.02)


@pytest.mark.skipif(not ON_LINUX, reason="instructions are counted on Linux on x86_64")
def test_a_child_that_fails_is_no_count() -> None:
    with pytest.raises(RuntimeError, match="the process that is counted ended with 1"):
        executed([Case("mmx", "32-bit", "float32", 512)])


@pytest.mark.skipif(ON_LINUX, reason="instructions are counted here")
def test_elsewhere_it_says_so() -> None:
    with pytest.raises(RuntimeError, match="instructions are counted on Linux on x86_64, not"):
        executed([])
