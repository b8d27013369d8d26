"""The inverse of Nyström attention: all forms take the same steps, and the steps converge."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.pseudo_inverse import gpu, pseudo_inverse, reference, xla
from tests.lowering import count_triton_kernels
from tests.numerics import assert_close, jit

SIZE, ITERATIONS = 16, 6
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")


def matrices():
    """Softmaxes of scores that favour the diagonal, the second half of one not in use."""
    scores = np.random.default_rng(0).normal(size=(2, 3, SIZE, SIZE)) + 3 * np.eye(SIZE)
    a = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    a[0, 0, SIZE // 2 :] = 0
    a[0, 0, :, SIZE // 2 :] = 0
    return jnp.asarray(a, jnp.float32), jnp.asarray(np.cos(np.arange(a.size)).reshape(a.shape))


def value_and_gradients(iterate, a, start, cotangent):
    value, pull = jax.vjp(lambda a, start: iterate(a, start, ITERATIONS), a, start)
    return value, *pull(cotangent.astype(a.dtype))


@pytest.mark.parametrize(
    "iterate",
    [
        pytest.param(xla.iterate, id="xla", marks=pytest.mark.thorough),
        pytest.param(partial(gpu.iterate, interpret=True), id="pallas"),
    ],
)
def test_a_form_takes_the_steps_of_the_paper(iterate):
    a, cotangent = matrices()
    got, want = (
        jit(partial(value_and_gradients, form))(a, jnp.swapaxes(a, -1, -2), cotangent)
        for form in (iterate, reference.iterate)
    )
    assert_close(got, want)


def test_the_steps_converge_to_the_inverse(float64):
    a = jnp.asarray(matrices()[0], jnp.float64)
    got = pseudo_inverse(a, 20)
    assert_close(got, np.linalg.pinv(np.asarray(a)), 1e-10)


def test_the_kernels_lower_for_cuda():
    a, cotangent = matrices()
    run = partial(value_and_gradients, gpu.iterate)
    assert count_triton_kernels(run, a, a, cotangent) == 2
