"""Honest cost: `state_bytes` are the bytes of the state, memory grows no faster than the row, and
`flops_per_token` counts every product with a parameter.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import jaxprs_in_params

from hybrid_lm.mixers import Context
from tests.laws.cases import WIDTH, Case, cases, defaults, module, parameters, run
from tests.numerics import jit


def of_length(length, width=WIDTH, dtype=jnp.float32):
    """A context and abstract inputs of one row."""
    x_BLD = jax.ShapeDtypeStruct((1, length, width), dtype)
    return Context.of_documents(1, length, dtype=dtype, capacity=length), x_BLD


@pytest.mark.parametrize("case", cases(arithmetic=True), ids=str)
@pytest.mark.parametrize(("length", "dtype"), [(3, "float32"), (40, "bfloat16")])
def test_state_bytes_are_those_of_the_state(case: Case, length: int, dtype: str):
    ctx, x_BLD = of_length(length, dtype=dtype)
    params = parameters(case.config)
    start = module(case.config, params).initial_state(1, dtype, capacity=length)
    for state in (None, start):
        _, after = jax.eval_shape(
            lambda x_BLD, state=state: run(case.config, params, x_BLD, ctx, state), x_BLD
        )
        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(after))
        assert held == case.config.cost(WIDTH, length, dtype).state_bytes


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", defaults(heads=2, state_size=128, head_dim=8, chunk_size=32), ids=str
)
def test_memory_is_linear_in_length(case: Case):
    length, width = 4096, 4 * WIDTH
    params = parameters(case.config, width)

    def temporary_bytes(length):
        """Of a forward and backward pass."""
        ctx, x_BLD = of_length(length, width)

        def loss(params, x_BLD):
            return run(case.config, params, x_BLD, ctx)[0].sum()

        compiled = jit(jax.grad(loss, argnums=(0, 1))).lower(params, x_BLD).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(length), temporary_bytes(2 * length)
    assert long <= 2.3 * short
    # Neither the scores of one head nor the states of every token are ever there at once.
    float_bytes, growth = 4, long - short
    assert growth < float_bytes * ((2 * length) ** 2 - length**2)
    if hasattr(case.config, "state_size"):
        inner = getattr(case.config, "expand", 1) * width
        assert growth < float_bytes * length * inner * case.config.state_size


def matrix_flops(jaxpr, times=1):
    """FLOPs of the matrix products in a jaxpr, loops of known length counted in full."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            inner = 1
            for dimension in contracted:
                inner *= left[dimension]
            total += 2 * times * inner * equation.outvars[0].aval.size
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in jaxprs_in_params(equation.params):
            total += matrix_flops(inner, times * repeats)
    return total


@pytest.mark.parametrize("case", cases(arithmetic=True), ids=str)
def test_flops_count_every_product_with_a_parameter(case: Case):
    """A row of one token has no products but those, and the mixer's own work on its state."""
    params = parameters(case.config)
    ctx, x_BLD = of_length(1)
    jaxpr = jax.make_jaxpr(lambda x_BLD: run(case.config, params, x_BLD, ctx))(x_BLD)
    counted = matrix_flops(jaxpr.jaxpr)
    claimed = case.config.flops_per_token(WIDTH, 1)
    state = case.config.cost(WIDTH, 1, jnp.float32).state_bytes / 4
    assert counted <= claimed <= counted + 12 * state + 12 * WIDTH
