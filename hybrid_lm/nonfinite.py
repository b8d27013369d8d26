"""What to say, and to keep, when a step is not finite: where it began, by part of the model."""

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_lm.config import Config
from hybrid_lm.model import Model, Params
from hybrid_lm.optimizer import norms, parts
from hybrid_lm.recorder import NonFiniteStep
from hybrid_lm.run_dir import RunDir
from hybrid_lm.step import Batch, Metrics, context, split


class NonFiniteError(Exception):
    """A loss, gradient or update that is not finite; the message says where it began."""


def largest_activations(
    model: Model, config: Config, params: Params, batch: Batch
) -> dict[str, jax.Array]:
    """Largest magnitude in the residual stream that leaves each group, by ``groups/NAME``."""

    def of_part(part: Batch) -> list[jax.Array]:
        exits = model.apply(params, part["tokens_BL"], context(config, part)).exits
        return [jnp.max(jnp.abs(x_BLD)).astype(jnp.float32) for x_BLD in exits]

    peaks = jax.lax.map(of_part, split(batch, config.train.accumulate))
    names = [f"groups/{group.name}" for group in model.plan.groups]
    return {name: jnp.max(peak) for name, peak in zip(names, peaks, strict=True)}


def explain(
    model: Model, config: Config, params: Params, batch: Batch, failed: NonFiniteStep
) -> str:
    """Where the step, which left ``params`` as they were, stopped being finite; with all norms."""
    metrics = failed.metrics
    parameters = jax.device_get(jax.jit(norms)(params))
    activations = jax.device_get(
        jax.jit(lambda params, batch: largest_activations(model, config, params, batch))(
            params, batch
        )
    )
    names = list(parts(model.axes))  # in the order of the stack
    lines = [
        f"step {failed.step} is not finite: loss {metrics.loss:.6g}, gradient norm "
        f"{metrics.grad_norm:.6g}, update norm {metrics.update_norm:.6g}; it was not applied",
        f"first not finite: {first(names, parameters, activations, metrics)}",
        f"{'':24}{'parameters':>14}{'gradient':>14}{'activations':>14}",
    ]
    for name in names:
        largest = f"{activations[name]:14.4g}" if name in activations else ""
        gradient = metrics.grad_norms[name]
        lines.append(f"{name:24}{parameters[name]:14.4g}{gradient:14.4g}{largest}")
    return "\n".join(lines)


def first(
    names: Sequence[str],
    parameters: Mapping[str, float],
    activations: Mapping[str, float],
    metrics: Metrics,
) -> str:
    """The earliest number of the step that is not finite: forward, then backward.

    ``names`` are the parts of the model in the order of the forward pass.
    """
    gradients = metrics.grad_norms
    candidates = [
        *((f"the parameters of {name}", parameters[name]) for name in names),
        *((f"what leaves {name}", activations[name]) for name in names if name in activations),
        ("the loss", metrics.loss),
        *((f"the gradient of {name}", gradients[name]) for name in reversed(names)),
        (f"the update at learning rate {metrics.learning_rate:.3g}", metrics.update_norm),
    ]
    return next((name for name, value in candidates if not math.isfinite(value)), "a global norm")


def dump(run_dir: RunDir, step: int, batch: Mapping[str, np.ndarray]) -> str:
    """Keep this process's rows of the batch in the run directory; the file's path."""
    path = run_dir.path / f"nonfinite-step-{step}-process-{jax.process_index()}.npz"
    np.savez_compressed(path, allow_pickle=False, **batch)
    return str(path)
