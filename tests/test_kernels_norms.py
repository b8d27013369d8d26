"""Norms (of blocks, Mamba-2, queries and keys), MLPs: kernels equal the definition, and lower."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.gated_mlp import gpu as mlp_gpu
from hybrid_lm.kernels.gated_mlp import xla as mlp_xla
from hybrid_lm.kernels.gated_norm import gpu as gated_gpu
from hybrid_lm.kernels.gated_norm import xla as gated_xla
from hybrid_lm.kernels.residual_norm import gpu as residual_gpu
from hybrid_lm.kernels.residual_norm import xla as residual_xla
from hybrid_lm.kernels.rotary import gpu as rotary_gpu
from hybrid_lm.kernels.rotary import xla as rotary_xla
from tests.lowering import count_triton_kernels


def of(shape: tuple[int, ...], rows: int) -> list[jax.Array]:
    """So many arrays of the shape, and one of its last dimension."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in [shape] * rows + [shape[-1:]]]


def values_and_gradients(run, inputs, cotangents):
    values, pull = jax.vjp(lambda *x: run(*x, 1e-6), *inputs)
    return values, pull(cotangents)


def assert_same(gots, wants):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-5), gots, wants)


def test_gated_norm_equals_the_definition_values_and_gradients():
    """Also where the rows do not fill the last program."""
    y, z, scale = of((3, 43, 128), 2)
    dout, weight = of((3, 43, 16), 1)[0], of((128, 16), 1)[0]
    wants = values_and_gradients(gated_xla.gated_norm, (y, z, scale, weight), dout)
    kernels = partial(gated_gpu.gated_norm, interpret=True)
    assert_same(values_and_gradients(kernels, (y, z, scale, weight), dout), wants)


def test_residual_norm_equals_the_definition_values_and_gradients():
    x, dresidual, dnormed, scale = of((2, 64, 128), 3)

    def definition(x, scale, epsilon):
        return x, residual_xla.rms_norm(x, scale, epsilon)

    wants = values_and_gradients(definition, (x, scale), (dresidual, dnormed))
    kernel = partial(residual_gpu.residual_norm, interpret=True)
    assert_same(values_and_gradients(kernel, (x, scale), (dresidual, dnormed)), wants)


@pytest.fixture(scope="module")
def mlp_inputs():
    """x and the weights of 256 hidden channels, and a cotangent."""
    x, dout, _ = of((2, 64, 32), 2)
    weights = [0.1 * of(shape, 1)[0] for shape in ((32, 256), (32, 256), (256, 32))]
    return (x, *weights), dout


def gated_mlp(op, *options, **interpret):
    def run(x, gate, up, down, epsilon):
        del epsilon
        return op(x, gate, up, down, *options, **interpret)

    return partial(values_and_gradients, run)


@pytest.mark.parametrize("recomputes", [True, False])
def test_gated_mlp_equals_the_definition_values_and_gradients(mlp_inputs, recomputes):
    wants = gated_mlp(mlp_xla.gated_mlp)(*mlp_inputs)
    assert_same(gated_mlp(mlp_gpu.gated_mlp, recomputes, interpret=True)(*mlp_inputs), wants)


@pytest.mark.parametrize(("recomputes", "kept"), [(True, 1), (False, 2)])
def test_gated_mlp_keeps_the_hidden_layer_unless_it_is_recomputed(mlp_inputs, recomputes, kept):
    """Beside x and the weights: gate and up side by side [128, 512], and the hidden layer."""
    run = partial(mlp_gpu.gated_mlp, recomputes=recomputes, interpret=True)
    leaves = jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(run, *x)[1], *mlp_inputs[0]))
    assert sum(leaf.shape in ((128, 512), (128, 256)) for leaf in leaves) == kept


@pytest.fixture(scope="module")
def attention_inputs():
    """x, weights and scales of 6 heads of queries and 2 of keys, and cotangents."""
    (x,), (dq, _), (dk, _) = of((2, 64, 128), 1)[:1], of((2, 64, 6, 32), 1), of((2, 64, 2, 32), 1)
    (q_weight, q_scale), (k_weight, k_scale) = of((128, 6, 32), 1), of((128, 2, 32), 1)
    return (x, (q_weight, k_weight), (q_scale, k_scale)), (dq, dk)


def queries_and_keys(op, **options):
    positions_BL = jnp.arange(128, dtype=jnp.int32).reshape(2, 64)

    def run(x, weights, scales, epsilon):
        return op(x, weights, scales, positions_BL, 1e4, epsilon, **options)

    return partial(values_and_gradients, run)


def test_queries_and_keys_equal_the_definition_values_and_gradients(attention_inputs):
    wants = queries_and_keys(rotary_xla.queries_and_keys)(*attention_inputs)
    kernels = queries_and_keys(rotary_gpu.queries_and_keys, interpret=True)
    assert_same(kernels(*attention_inputs), wants)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_they_lower_for_cuda(attention_inputs, mlp_inputs):
    y, z, dout, scale = of((1, 64, 1024), 3)
    gated = partial(values_and_gradients, gated_gpu.gated_norm)
    weight = jnp.ones((1024, 1024))
    assert count_triton_kernels(gated, (y, z, scale, weight), dout) == 2
    rotary = queries_and_keys(rotary_gpu.queries_and_keys)
    assert count_triton_kernels(rotary, *attention_inputs) == 2
    mlp = gated_mlp(mlp_gpu.gated_mlp, True)
    assert count_triton_kernels(mlp, *mlp_inputs) == 2
    residual = partial(values_and_gradients, residual_gpu.residual_norm)
    assert count_triton_kernels(residual, (y, scale), (z, dout)) == 1
