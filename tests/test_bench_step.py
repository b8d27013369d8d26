"""The bench of the training step: what it attributes time to, and that it runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm import config as configs
from hybrid_lm.bench.profile import part_of, scopes
from hybrid_lm.bench.step import Step
from hybrid_lm.step import context

PARTS = ("attn", "mlp", "head")


def test_every_point_is_the_model_of_50m_parameters():
    points = [configs.load(name) for name in Step().config]
    assert {p.train.length * p.train.batch_size for p in points} == {65536}
    assert {p.data.bpe_vocab_size for p in points} == {8192}


@pytest.mark.parametrize("documents", [1, 4])
def test_rows_hold_as_many_documents_as_the_program_is_told(documents):
    step = Step(documents=documents)
    program, batch = step._program(step.config[0]), step._batch(2, 64, 10)
    ids_BL = context(program.config, batch).segment_ids_BL
    assert len(np.unique(batch["segment_ids_BL"])) == documents
    assert ids_BL is None if documents == 1 else np.array_equal(ids_BL, batch["segment_ids_BL"])
    assert program.config.data.max_segments == documents


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
