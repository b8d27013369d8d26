"""Stacks: vmapped initialisation and the scan over stacked parameters equal a loop over layers,
sharded over eight devices equals unsharded, and the program does not grow with repeats.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid_lm import sharding
from hybrid_lm.loss import token_nll
from hybrid_lm.mixers import Context
from hybrid_lm.model import Model, ModelConfig
from hybrid_lm.sharding import MeshConfig
from tests.laws.cases import Case, defaults, packed_context, packed_rows
from tests.numerics import assert_close, jit

VOCAB, WIDTH = 32, 16


def stack(case: Case, repeats: int) -> Model:
    """A stack of one mixer."""
    config = ModelConfig(f"m*{repeats}", {"m": case.config}, width=WIDTH, mlp_width=32)
    return Model(config, VOCAB)


@cache
def start(case: Case, repeats: int) -> dict:
    """Fresh parameters."""
    with jax.enable_x64(False):
        return jax.device_get(jit(stack(case, repeats).init)(jax.random.key(0)))


def inputs(batch: int, length: int) -> tuple[np.ndarray, np.ndarray, Context]:
    """Tokens, targets and the context of packed rows."""
    rng = np.random.default_rng(0)
    tokens_BL, targets_BL = rng.integers(0, VOCAB, (2, batch, length)).astype(np.int32)
    return tokens_BL, targets_BL, packed_context(packed_rows(rng, batch, length))


def loss(model, params, tokens_BL, targets_BL, ctx):
    x_BLD = model.apply(params, tokens_BL, ctx).exits[-1]
    return token_nll(model.readout(params, x_BLD), params["embedding"], targets_BL).mean()


@cache
def unsharded(case: Case) -> tuple[np.ndarray, dict]:
    """Loss and gradients of two layers on one device."""
    model = stack(case, 2)
    gradients = jit(jax.value_and_grad(lambda *operands: loss(model, *operands)))
    params = jax.tree.map(jnp.float64, start(case, 2))
    return jax.device_get(gradients(params, *inputs(8, 8)))


def sharded(case: Case, mesh: MeshConfig) -> tuple[np.ndarray, dict]:
    """`unsharded` over eight devices."""
    model, devices = stack(case, 2), mesh.build()
    params = jax.tree.map(jnp.float64, start(case, 2))
    tokens_BL, *others = inputs(8, 8)
    with jax.set_mesh(devices):
        params = jax.device_put(params, sharding.shardings(model.axes, params, devices))
        assert not params["embedding"].is_fully_replicated
        rows = sharding.spec(("batch", "length"), tokens_BL.shape, devices)
        rows = jax.sharding.NamedSharding(devices, rows)
        operands = jax.device_put((tokens_BL, *others), rows)
        gradients = jit(jax.value_and_grad(lambda *operands: loss(model, *operands)))
        return jax.device_get(gradients(params, *operands))


@pytest.mark.slow
@pytest.mark.parametrize("case", defaults(), ids=str)
def test_initialisation_equals_a_loop_over_layers(case: Case):
    model = stack(case, 2)
    layers_key, _ = jax.random.split(jax.random.key(0))

    @jit
    def layer(key):
        return nnx.to_pure_dict(nnx.state(model.block("m", nnx.Rngs(params=key))))

    layers = [jax.device_get(layer(key)) for key in jax.random.split(layers_key, 2)]
    stacked = jax.tree.map(lambda *of_layers: np.stack(of_layers), *layers)
    assert_close(start(case, 2)["groups"]["group1"]["0"], stacked)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", defaults(), ids=str)
def test_scan_equals_a_loop_over_layers(case: Case):
    model = stack(case, 2)
    tokens_BL, targets_BL, ctx = inputs(8, 8)
    block = nnx.eval_shape(lambda: model.block("m", nnx.Rngs(0)))

    def loop_loss(params):
        x_BLD = params["embedding"][tokens_BL] * WIDTH**0.5
        for layer in range(2):
            graph, state = nnx.split(block)
            own = jax.tree.map(lambda p: p[layer], params["groups"]["group1"]["0"])  # noqa: B023
            nnx.replace_by_pure_dict(state, own)
            x_BLD, *_ = nnx.merge(graph, state)(x_BLD, ctx, None)
        return token_nll(model.readout(params, x_BLD), params["embedding"], targets_BL).mean()

    params = jax.tree.map(jnp.float64, start(case, 2))
    assert_close(unsharded(case), jit(jax.value_and_grad(loop_loss))(params), 1e-9)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", defaults(), ids=str)
def test_sharded_equals_unsharded(case: Case):
    assert_close(sharded(case, MeshConfig(data=2, seq=2, model=2)), unsharded(case), 1e-9)


@pytest.mark.thorough
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mesh", [MeshConfig(8, 1, 1), MeshConfig(2, 1, 4)], ids=str)
@pytest.mark.parametrize("key", ["attention", "mamba2"])
def test_the_shape_of_the_mesh_changes_nothing(key: str, mesh: MeshConfig):
    (case,) = (case for case in defaults() if case.name == key)
    assert_close(sharded(case, mesh), unsharded(case), 1e-9)


@pytest.mark.parametrize("case", defaults(), ids=str)
def test_the_program_does_not_grow_with_repeats(case: Case):
    def operations(repeats):
        model = stack(case, repeats)
        tokens_BL = jnp.zeros((1, 8), jnp.int32)
        ctx = Context.of_documents(1, 8)
        gradients = jax.grad(lambda params: loss(model, params, tokens_BL, tokens_BL, ctx))
        lowered = jax.jit(gradients).lower(model.abstract_params())
        return lowered.as_text().count(" = ")

    assert operations(2) == operations(8)
