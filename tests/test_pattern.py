"""The layer pattern: what it means, that it round-trips, and where its errors point."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybrid_lm.pattern import Group, PatternError, Plan

KEYS = ("attn", "swa", "mamba", "mamba2")


def test_the_example_of_the_readme():
    plan = Plan.parse("early: attn*2; middle: (mamba*3, swa)*2; deep: mamba2*4", KEYS)
    assert plan.groups == (
        Group("early", ("attn",), 2),
        Group("middle", ("mamba", "mamba", "mamba", "swa"), 2),
        Group("deep", ("mamba2",), 4),
    )
    assert plan.layers == 14
    assert str(plan) == "early: attn*2; middle: (mamba*3, swa)*2; deep: mamba2*4"


def test_groups_reduce_to_their_smallest_unit():
    assert Plan.parse("a, b, a, b").groups[0] == Group("group1", ("a", "b"), 2)
    assert Plan.parse("((a*2)*3, a)*2").groups[0] == Group("group1", ("a",), 14)


groups = st.lists(
    st.tuples(st.lists(st.sampled_from(KEYS), min_size=1, max_size=6), st.integers(1, 4)),
    min_size=1,
    max_size=4,
)


@given(groups)
def test_parse_inverts_str(parts):
    text = "; ".join(f"g{i}: ({', '.join(unit)})*{n}" for i, (unit, n) in enumerate(parts))
    plan = Plan.parse(text, KEYS)
    assert Plan.parse(str(plan), KEYS) == plan
    flat = [key for group in plan.groups for key in group.unit * group.repeats]
    assert flat == [key for unit, n in parts for key in unit * n]


@given(st.text(alphabet="ab*(),;: 012é", max_size=20))
def test_any_text_parses_or_points_at_a_column(text):
    try:
        plan = Plan.parse(text)
    except PatternError as error:
        assert 0 <= error.column <= len(text)
        assert str(error).endswith("^")
    else:
        assert Plan.parse(str(plan)) == plan


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("attn*2; mambo", 8, "did you mean 'mamba'?"),
        ("", 0, "expected a mixer"),
        ("attn*0", 5, ">= 1"),
        ("attn*", 5, ">= 1"),
        ("(attn, swa", 10, "expected ')'"),
        ("attn swa", 5, "expected ','"),
        ("a: attn; a: swa", 9, "used twice"),
        ("attn, $", 6, "unexpected character '$'"),
        ("(attn*10000)*10000", 13, "layers allowed"),
    ],
)
def test_errors_point_at_the_column(text, column, message):
    with pytest.raises(PatternError) as error:
        Plan.parse(text, KEYS)
    assert error.value.column == column
    assert message in str(error.value)
    assert str(error.value).splitlines()[-1] == "  " + " " * column + "^"
