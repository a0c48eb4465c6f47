"""The examples that Hypothesis draws: the same in each ordinary run, new ones in a full one."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import pytest_configure


def drawn() -> list[int]:
    found: list[int] = []

    @given(st.integers())
    def draw(number: int) -> None:
        found.append(number)

    draw()
    return found


def test_an_ordinary_run_draws_the_same_examples_each_time():
    if not settings().derandomize:
        pytest.skip("this run draws new examples, as it was asked to")
    assert drawn() == drawn()


@pytest.mark.parametrize(
    ("expression", "profile"),
    [
        ("not (durability_full or limits_full or packaging or clients)", None),
        ("durability_full", "new"),
        ("limits_full or durability_full", "new"),
        ("packaging", None),
        ("", None),
    ],
)
def test_a_full_run_draws_new_ones_from_a_seed(expression, profile):
    option = SimpleNamespace(markexpr=expression, hypothesis_profile=None, hypothesis_seed=None)
    pytest_configure(SimpleNamespace(option=option))
    assert option.hypothesis_profile == profile
    assert (option.hypothesis_seed is None) == (profile is None)
