"""The Pallas selective scan on the GPU: float64 truth, odd lengths, extreme decays, repeats."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hybrid_lm.kernels.diagonal_scan import selective_gpu, selective_scan

pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")

CASES = {  # B, L, E, N, mean of the step before softplus, scale of A, packed, fused, dtype
    "odd": (2, 1037, 300, 16, -2.0, 1.0, True, True, "bfloat16"),
    "short": (1, 3, 32, 16, -2.0, 1.0, False, True, "float32"),
    "small state": (3, 257, 128, 3, -2.0, 1.0, True, False, "float32"),
    "large state": (1, 300, 16, 64, -2.0, 1.0, True, True, "float32"),
    "state of 32, bf16": (1, 129, 48, 32, -2.0, 1.0, False, False, "bfloat16"),
    "slow decay": (1, 2048, 64, 16, -8.0, 0.1, False, True, "float32"),
    "fast decay": (1, 700, 64, 16, 3.0, 30.0, True, True, "float32"),
    "one piece": (9, 100, 640, 16, -2.0, 1.0, True, True, "float32"),
    "large state, bf16": (1, 300, 16, 64, -2.0, 1.0, True, True, "bfloat16"),
    "slow decay, bf16": (1, 2048, 64, 16, -8.0, 0.1, False, True, "bfloat16"),
    "fast decay, bf16": (1, 700, 64, 16, 3.0, 30.0, True, True, "bfloat16"),
    "one piece, bf16": (9, 100, 640, 16, -2.0, 1.0, True, True, "bfloat16"),
}


def values_and_gradients(scan):
    def run(x, resets_BL, cotangents):
        def values(x):
            required = [x[name] for name in ("u", "step", "a", "b", "c")]
            fused = {name: value for name, value in x.items() if name.endswith(("_E", "_BLE"))}
            return scan(*required, resets_BL, x["initial"], out_dtype=x["u"].dtype, **fused)

        y, pull = jax.vjp(values, x)
        return y, pull((cotangents[0].astype(y[0].dtype), cotangents[1]))

    return jax.jit(run)


def truth(*operands, **options):
    return selective_scan(*operands, **options, implementation="reference")


def kernels(*operands, **options):
    return selective_gpu.selective_scan(*operands, **options)


@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_match_float64(case):
    batch, length, inner, states, mean, scale, packed, fused, dtype = CASES[case]
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape)

    def rounded(x):
        return np.asarray(jnp.asarray(x, dtype), np.float64)

    step = normal(batch, length, inner) + mean
    x = {
        "u": rounded(normal(batch, length, inner)),
        "step": rounded(step) if fused else np.logaddexp(0, step),
        "a": -scale * np.exp(normal(inner, states)),
        "b": rounded(normal(batch, length, states)),
        "c": rounded(normal(batch, length, states)),
        "initial": normal(batch, inner, states),
    }
    if fused:
        x["step_bias_E"], x["skip_E"] = normal(inner), normal(inner)
        x["gate_BLE"] = rounded(normal(batch, length, inner))
    cotangents = (rounded(normal(batch, length, inner)), normal(batch, inner, states))
    resets_BL = rng.random((batch, length)) < 0.01 if packed else None

    def single(name, value):
        narrow = name in ("u", "b", "c", "gate_BLE") or (name == "step" and fused)
        return jnp.asarray(value, dtype if narrow else jnp.float32)

    operands = {name: single(name, value) for name, value in x.items()}
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True):
        wide = jax.tree.map(lambda value: jnp.asarray(np.asarray(value), jnp.float64), operands)
        want = values_and_gradients(truth)(wide, resets_BL, cotangents)
        want = jax.tree.map(np.asarray, want)
    run = values_and_gradients(kernels)
    cotangents = tuple(jnp.asarray(value, jnp.float32) for value in cotangents)
    first = run(operands, resets_BL, cotangents)

    def check(path, got, true):
        limit = 0.005 if got.dtype == jnp.bfloat16 else 1e-5
        error = np.asarray(got.astype(jnp.float32), np.float64) - true
        error = np.sqrt(np.mean(error**2) / np.mean(true**2))
        assert error <= limit, f"{jax.tree_util.keystr(path)}: {error:.1e}"

    jax.tree_util.tree_map_with_path(check, first, want)
    for _ in range(20):
        again = run(operands, resets_BL, cotangents)
        assert all(
            bool((x == y).all())
            for x, y in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True)
        )
