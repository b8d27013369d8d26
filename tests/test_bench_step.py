"""The bench of the training step: what it attributes time to, and that it runs."""

import jax
import jax.numpy as jnp
import pytest

from hybrid_lm import config as configs
from hybrid_lm.bench.profile import part_of, scopes
from hybrid_lm.bench.step import Step

PARTS = ("attn", "mlp", "head")


def test_every_point_is_the_model_of_50m_parameters():
    points = [configs.load(name) for name in Step().config]
    assert {p.train.length * p.train.batch_size for p in points} == {65536}
    assert {p.data.bpe_vocab_size for p in points} == {8192}


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("jit(step)/while/body/transpose(jvp())/checkpoint/attn/mlp/dot_general", "mlp"),
        ("jit(step)/while/body/attn/slice", "attn"),
        ("jit(step)/transpose(jvp(head))/while/body/exp", "head"),
        ("jit(step)/while/body/overhead/add", None),
    ],
)
def test_an_operation_belongs_to_the_innermost_part_that_it_is_in(path, part):
    assert part_of(path, PARTS) == part


def test_instructions_of_a_program_are_found_with_their_scopes():
    def function(x):
        with jax.named_scope("attn"):
            return jax.lax.map(lambda a: jnp.sin(a) @ a, x)

    compiled = jax.jit(jax.grad(lambda x: function(x).sum())).lower(jnp.ones((3, 4, 4))).compile()
    found = scopes(compiled.as_text() or "")
    assert "attn" in {part_of(path, PARTS) for path in found.values()}
