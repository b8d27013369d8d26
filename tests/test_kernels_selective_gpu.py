"""The Pallas selective scan: equals the step-by-step reference, and lowers for CUDA."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.diagonal_scan import (
    selective_backward,
    selective_forward,
    selective_gpu,
    selective_matrix,
    selective_scan,
)
from tests.lowering import count_triton_kernels


def operands(length: int, inner: int, states: int, fused: bool):
    rng = np.random.default_rng(length)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    step_BLE = normal(2, length, inner) - 2
    inputs = {
        "u_BLE": normal(2, length, inner),
        "step_BLE": step_BLE if fused else jax.nn.softplus(step_BLE),
        "a_EN": -jnp.exp(normal(inner, states)),
        "b_BLN": normal(2, length, states),
        "c_BLN": normal(2, length, states),
        "initial": normal(2, inner, states),
    }
    if fused:
        inputs["step_bias_E"], inputs["skip_E"] = normal(inner), normal(inner)
        inputs["gate_BLE"] = normal(2, length, inner)
    return inputs, (normal(2, length, inner), normal(2, inner, states))


def values_and_gradients(scan, inputs, cotangents, resets_BL):
    def run(inputs):
        required = [inputs[x] for x in ("u_BLE", "step_BLE", "a_EN", "b_BLN", "c_BLN")]
        fused = {name: x for name, x in inputs.items() if name.startswith(("step_b", "sk", "ga"))}
        return scan(*required, resets_BL, inputs["initial"], **fused)

    values, pull = jax.vjp(run, inputs)
    return values, pull(cotangents)


def small_rounds(monkeypatch, pieces: int) -> None:
    for module in (selective_forward, selective_backward):
        monkeypatch.setattr(module, "TOKENS", 4)
        monkeypatch.setattr(module, "STRETCH", 2)
    monkeypatch.setattr(selective_gpu, "_STATES", (4, 8, 16, 64))
    monkeypatch.setattr(selective_gpu, "_pieces", lambda programs, length: pieces)


@pytest.mark.parametrize(
    ("length", "states", "pieces", "fused", "resets"),
    [
        (10, 8, 1, True, True),
        pytest.param(9, 8, 2, True, True, marks=pytest.mark.thorough),
        pytest.param(13, 16, 1, True, True, marks=pytest.mark.thorough),
        pytest.param(8, 3, 1, False, False, marks=pytest.mark.thorough),
        pytest.param(5, 8, 4, False, True, marks=pytest.mark.thorough),
        pytest.param(1, 2, 1, True, False, marks=pytest.mark.thorough),
        pytest.param(9, 64, 1, True, True, marks=pytest.mark.thorough),
    ],
)
def test_pallas_equals_reference_values_and_gradients(
    monkeypatch, length, states, pieces, fused, resets
):
    small_rounds(monkeypatch, pieces)
    inputs, cotangents = operands(length, 33, states, fused)
    resets_BL = None
    if resets:
        resets_BL = jnp.asarray(np.random.default_rng(1).random((2, length)) < 0.3)
    compared = partial(
        values_and_gradients, inputs=inputs, cotangents=cotangents, resets_BL=resets_BL
    )
    want = compared(partial(selective_scan, implementation="reference"))
    got = compared(partial(selective_gpu.selective_scan, interpret=True))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)


def narrow_and_wide(inputs):
    """``inputs`` with b and c in bfloat16, and with the same values in float32."""
    narrow = {name: inputs[name].astype(jnp.bfloat16) for name in ("b_BLN", "c_BLN")}
    wide = {name: value.astype(jnp.float32) for name, value in narrow.items()}
    return inputs | narrow, inputs | wide


@pytest.mark.thorough
@pytest.mark.parametrize("out_dtype", ["float32", "bfloat16"])
def test_pallas_takes_bfloat16_of_b_and_c(monkeypatch, out_dtype):
    if out_dtype == "float32":
        small_rounds(monkeypatch, pieces=2)
    else:  # on matrix units, in rounds of 8
        monkeypatch.setattr(selective_gpu, "_pieces", lambda programs, length: 2)
    inputs, (dout, dlast) = operands(19, 33, 16, fused=True)
    narrow, wide = narrow_and_wide(inputs)
    resets_BL = jnp.asarray(np.random.default_rng(1).random((2, 19)) < 0.2)
    cotangents = dout.astype(out_dtype), dlast

    def compared(scan, inputs):
        scan = partial(scan, out_dtype=out_dtype)
        return values_and_gradients(scan, inputs, cotangents, resets_BL)

    want = compared(partial(selective_scan, implementation="reference"), wide)
    got = compared(partial(selective_gpu.selective_scan, interpret=True), narrow)
    rounded = jax.tree.map(lambda x, like: x.astype(like.dtype).astype(jnp.float32), want, got)
    got = jax.tree.map(lambda x: x.astype(jnp.float32), got)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-2, atol=1e-5), got, rounded)


def values_in_bfloat16(scan, inputs, resets_BL):
    required = [inputs[x] for x in ("u_BLE", "step_BLE", "a_EN", "b_BLN", "c_BLN")]
    fused = {name: x for name, x in inputs.items() if name.startswith(("step_b", "sk", "ga"))}
    return scan(*required, resets_BL, inputs["initial"], out_dtype=jnp.bfloat16, **fused)


def test_products_of_matrix_units_equal_reference(monkeypatch):
    """States are exact to float32; the interpreter reads all of their bits."""
    monkeypatch.setattr(selective_gpu, "_pieces", lambda programs, length: 2)
    monkeypatch.setattr(selective_matrix, "TOGETHER", 1)
    narrow, wide = narrow_and_wide(operands(20, 40, 16, fused=True)[0])
    resets_BL = jnp.asarray(np.random.default_rng(1).random((2, 20)) < 0.2)

    want = values_in_bfloat16(partial(selective_scan, implementation="reference"), wide, resets_BL)
    got = values_in_bfloat16(
        partial(selective_gpu.selective_scan, interpret=True), narrow, resets_BL
    )
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-5)
    got, want = (np.asarray(y[0].astype(jnp.float32)) for y in (got, want))
    np.testing.assert_allclose(got, want, rtol=1e-2, atol=1e-5)  # a unit of bfloat16


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_pallas_lowers_for_cuda(monkeypatch):
    monkeypatch.setattr(selective_gpu, "_pieces", lambda programs, length: 2)
    inputs, cotangents = operands(16, 32, 8, True)

    def gradients(inputs):
        return values_and_gradients(selective_gpu.selective_scan, inputs, cotangents, None)

    assert count_triton_kernels(gradients, inputs) == 4


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
def test_products_of_matrix_units_lower_for_cuda(monkeypatch):
    monkeypatch.setattr(selective_gpu, "_pieces", lambda programs, length: 2)
    inputs, _ = narrow_and_wide(operands(16, 32, 16, True)[0])

    values = partial(values_in_bfloat16, selective_gpu.selective_scan, resets_BL=None)
    assert count_triton_kernels(values, inputs) == 2
