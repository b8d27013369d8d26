"""Cross-entropy in chunks of positions: values and gradients of all logits at once."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm import loss
from hybrid_lm.kernels.cross_entropy import gpu, xla
from tests.lowering import count_triton_kernels

B, L, D, V = 2, 23, 8, 31


def plain(readout_BLD, embedding_VD, targets_BL, counts_BL):
    logits_BLV = jnp.einsum("bld,vd->blv", readout_BLD, embedding_VD)
    nll_BL = -jnp.take_along_axis(jax.nn.log_softmax(logits_BLV), targets_BL[..., None], -1)[..., 0]
    return jnp.sum(jnp.where(counts_BL, nll_BL, 0.0)), nll_BL


@pytest.fixture(scope="module")
def operands():
    rng = np.random.default_rng(0)
    readout_BLD = rng.normal(size=(B, L, D)).astype(np.float32)
    embedding_VD = rng.normal(size=(V, D)).astype(np.float32)
    return readout_BLD, embedding_VD, rng.integers(0, V, (B, L)), rng.random((B, L)) < 0.7


@pytest.mark.parametrize(("positions", "unroll"), [(L, False), (5, False), (5, True)])
def test_chunks_give_the_loss_and_gradients_of_all_logits(operands, positions, unroll, monkeypatch):
    """Also where the last chunk is not full."""
    monkeypatch.setattr(loss, "_LOGITS", positions * B * V)
    readout_BLD, embedding_VD, targets_BL, counts_BL = operands

    def both(readout_BLD, embedding_VD):
        def of(function):
            def total(readout_BLD, embedding_VD):
                return 0.7 * function(readout_BLD, embedding_VD, targets_BL, counts_BL)

            return jax.value_and_grad(total, (0, 1))(readout_BLD, embedding_VD)

        summed_nll = partial(loss.summed_nll, unroll=unroll)
        ours = of(summed_nll), loss.token_nll(readout_BLD, embedding_VD, targets_BL)
        expected = of(lambda *x: plain(*x)[0]), plain(*operands)[1]
        return ours, expected

    ours, expected = jax.jit(both)(readout_BLD, embedding_VD)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=3e-6), ours, expected
    )


def test_the_kernel_equals_the_definition():
    rng = np.random.default_rng(0)
    logits_BCV = jnp.asarray(3 * rng.normal(size=(2, 3, 128)), jnp.float32)
    rest = jnp.asarray(rng.integers(0, 128, (2, 3))), jnp.asarray(rng.random((2, 3)) < 0.7)
    got = gpu.cross_entropy(logits_BCV, *rest, jnp.float32, interpret=True)
    want = xla.cross_entropy(logits_BCV, *rest, jnp.float32)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-6), got, want)


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_the_kernel_lowers_for_cuda():
    def run(logits_BCV, targets_BC, counts_BC):
        return gpu.cross_entropy(logits_BCV, targets_BC, counts_BC, jnp.bfloat16)

    operands = jnp.zeros((1, 8, 8192)), jnp.zeros((1, 8), jnp.int32), jnp.ones((1, 8), bool)
    assert count_triton_kernels(run, *operands) == 1


def test_bf16_gradients_are_close_to_those_of_float32(operands):
    readout_BLD, embedding_VD, *rest = operands

    def gradients(readout_BLD):
        return jax.grad(loss.summed_nll, (0, 1))(readout_BLD, embedding_VD, *rest)

    ours = jax.jit(gradients)(jnp.bfloat16(readout_BLD))
    for a, b in zip(ours, jax.jit(gradients)(readout_BLD), strict=True):
        error = np.asarray(a, np.float32) - b
        assert np.sqrt(np.mean(error**2) / np.mean(np.square(b))) < 0.01


def test_the_logits_of_a_batch_are_never_held_at_once(monkeypatch):
    """What the program holds does not grow with them."""
    monkeypatch.setattr(loss, "_LOGITS", 2**14)
    length, vocab = 1024, 512
    operands = (
        jax.ShapeDtypeStruct((1, length, D), jnp.float32),
        jax.ShapeDtypeStruct((vocab, D), jnp.float32),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1, length), jnp.bool),
    )
    compiled = jax.jit(jax.grad(loss.summed_nll, (0, 1))).lower(*operands).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < length * vocab * 4 / 4
