"""AdamW with warm-up, cosine decay, clipping, and weight decay where it belongs."""

import jax
import optax

from hybrid_lm.config import OptimizerConfig
from hybrid_lm.model import Params


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate of update ``count`` = 0, 1, ..., ``steps`` - 1.

    Rises linearly to the peak, reached by update number ``warmup_steps``, and falls as a cosine to
    ``final_fraction`` of it at the last update. A run shorter than its warm-up never peaks.
    """
    warmup_steps = config.warmup_steps
    schedule = optax.schedules.join_schedules(
        [
            optax.schedules.linear_schedule(0.0, config.learning_rate, warmup_steps),
            optax.schedules.cosine_decay_schedule(
                config.learning_rate, max(steps - warmup_steps, 1), config.final_fraction
            ),
        ],
        [warmup_steps],
    )
    return lambda count: schedule(count + 1)  # the first update must not be lost to a rate of 0


def make_optimizer(
    config: OptimizerConfig, steps: int, decays: Params
) -> optax.GradientTransformation:
    """Clip by the global norm, then AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101).

    ``decays`` is a tree of bool like the parameters: where weight decay applies.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            weight_decay=config.weight_decay,
            mask=decays,
        ),
    )


def norms(tree: Params) -> dict[str, jax.Array]:
    """Global norm of each part of a tree like the parameters.

    Keys: ``embedding``, ``groups/NAME`` of every group, ``norm``.
    """
    return {name: optax.tree.norm(part) for name, part in parts(tree).items()}


def parts(tree: Params) -> dict[str, Params]:
    """The parts of a tree like the parameters, by the keys of `norms`."""
    groups = {f"groups/{name}": group for name, group in tree["groups"].items()}
    return {"embedding": tree["embedding"], **groups, "norm": tree["norm"]}
