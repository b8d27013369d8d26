"""How far two results are apart."""

from typing import Any

import jax
import numpy as np


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
    return [leaf for leaf in jax.tree.leaves(tree) if jax.numpy.issubdtype(leaf.dtype, np.inexact)]
