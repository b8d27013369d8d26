"""What the mixers of a model declare of themselves, for its report."""

import dataclasses
from collections import Counter
from typing import Any

from jax.typing import DTypeLike

from hybrid_lm.mixers import MixerConfig
from hybrid_lm.mixers.table import paper, what
from hybrid_lm.model import Model
from hybrid_lm.results import MixerReport


def mixers(model: Model, length: int, dtype: DTypeLike) -> tuple[MixerReport, ...]:
    """The mixers of the pattern in its order; costs are those of a layer on ``length`` tokens."""
    layers: Counter[str] = Counter()
    for group in model.plan.groups:
        for name in group.unit:
            layers[name] += group.repeats
    return tuple(_report(model, name, layers[name], length, dtype) for name in layers)


def _report(model: Model, name: str, layers: int, length: int, dtype: DTypeLike) -> MixerReport:
    config = model.config.mixers[name]
    cost = config.cost(model.config.width, length, dtype)
    return MixerReport(
        name=name,
        key=config.key,
        what=what(type(config)),
        arxiv=paper(type(config)),
        settings=_settings(config),
        layers=layers,
        flops_per_token=cost.flops_per_token,
        state_bytes=cost.state_bytes,
        packable=config.packable,
        subquadratic=config.is_subquadratic(),
    )


def _settings(config: MixerConfig) -> dict[str, Any]:
    """Hyper-parameters that are not the default."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if value != defaults[name]}
