"""Swap studies: a group's mixers replaced by another one, and the model trained anew."""

import dataclasses
import difflib

from hybrid_lm.config import Config
from hybrid_lm.errors import UserError
from hybrid_lm.pattern import Group, Plan


def swaps(config: Config, mixer: str) -> dict[str, Config]:
    """A point per layer group: ``config`` with ``mixer`` in place of all mixers of the group.

    ``mixer`` is a key of ``config.model.mixers``. The points are called ``GROUP-as-MIXER``; a group
    that has no other mixer gives none. Beside ``config`` itself as the baseline, the sweep's table
    ranks what the swaps cost against the baseline's knock-outs.

    Raises:
        UserError: if there is no such mixer, or no group has another one.
    """
    keys = config.model.mixers
    if mixer not in keys:
        near = difflib.get_close_matches(mixer, keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"model.mixers has: {', '.join(keys)}"
        raise UserError(f"swaps: unknown mixer {mixer!r}; {hint}")
    plan = Plan.parse(config.model.layers, keys)
    points = {}
    for swapped in plan.groups:
        if set(swapped.unit) == {mixer}:
            continue
        replaced = Group(swapped.name, (mixer,), swapped.layers)
        groups = tuple(replaced if group is swapped else group for group in plan.groups)
        model = dataclasses.replace(config.model, layers=str(Plan(groups)))
        points[f"{swapped.name}-as-{mixer}"] = dataclasses.replace(config, model=model)
    if not points:
        raise UserError(f"swaps: every group of {config.model.layers!r} is of {mixer!r} already")
    return points


def swapped_group(baseline: Config, point: Config) -> str | None:
    """The one group in whose layers alone ``point`` differs from ``baseline``; None otherwise."""
    model = dataclasses.replace(point.model, layers=baseline.model.layers)
    if dataclasses.replace(point, model=model) != baseline:
        return None
    before, after = Plan.parse(baseline.model.layers), Plan.parse(point.model.layers)
    shapes = [[(group.name, group.layers) for group in plan.groups] for plan in (before, after)]
    if shapes[0] != shapes[1]:
        return None
    differing = [
        group.name
        for group, other in zip(before.groups, after.groups, strict=True)
        if group != other
    ]
    return differing[0] if len(differing) == 1 else None
