"""Results and gradients to compare, and how far apart they are."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Tiny programs take far longer to compile than to run.
jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def relative_rmse(actual: Any, truth: Any) -> float:
    """``rms(actual - truth) / rms(truth)``; 0 if both are all zero, inf if only the truth is."""
    actual, truth = np.asarray(actual), np.asarray(truth)
    assert actual.shape == truth.shape, f"{actual.shape} is not {truth.shape}"
    wide = np.complex128 if np.iscomplexobj(truth) else np.float64
    error = np.linalg.norm(np.ravel(actual.astype(wide) - truth.astype(wide)))
    norm = np.linalg.norm(np.ravel(truth.astype(wide)))
    if norm == 0:
        return 0.0 if error == 0 else np.inf
    return float(error / norm)


def errors(actual: Any, truth: Any) -> dict[str, float]:
    """`relative_rmse` of every leaf of a tree, by its path."""
    leaves, tree = jax.tree.flatten_with_path(truth)
    assert jax.tree.structure(actual) == tree
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): relative_rmse(leaf, true)
        for (path, true), leaf in zip(leaves, jax.tree.leaves(actual), strict=True)
    }


def assert_close(actual: Any, truth: Any, tolerance: float = 1e-5) -> None:
    """Every leaf of a tree is within ``tolerance`` of the truth in `relative_rmse`."""
    too_far = {path: e for path, e in errors(actual, truth).items() if not e <= tolerance}
    assert not too_far, f"relative RMSE above {tolerance}: {too_far}"


def inexact_leaves(tree: Any) -> list[Any]:
    """The real and complex leaves of a tree; not the integers."""
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, np.inexact)]


def random_weights(rng: np.random.Generator, tree: Any) -> list[np.ndarray]:
    """For `weighted_sum`: a random array for every inexact leaf (or shape) of a tree."""
    return [
        rng.normal(size=leaf.shape) + 1j * rng.normal(size=leaf.shape)
        for leaf in inexact_leaves(tree)
    ]


def weighted_sum(tree: Any, weights: list[np.ndarray]) -> jax.Array:
    """A scalar that depends on the real and imaginary part of every inexact leaf."""
    leaves = inexact_leaves(tree)
    terms = []
    for leaf, weight in zip(leaves, weights, strict=True):
        terms.append(jnp.sum(leaf.real * weight.real.astype(leaf.real.dtype)))
        if jnp.iscomplexobj(leaf):
            terms.append(jnp.sum(leaf.imag * weight.imag.astype(leaf.imag.dtype)))
    return sum(terms)
