"""The README: its commands parse, and its example of a mixer is one."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hybrid_lm import cli, evaluate, mixers, sample, train
from hybrid_lm.compare import __main__ as compare
from hybrid_lm.data.config import DataConfig
from hybrid_lm.layers import fan_in, param, project
from hybrid_lm.mixers import base
from hybrid_lm.mixers.table import replace_in
from hybrid_lm.sweep import __main__ as sweep
from tests.numerics import assert_close

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"^python -m (hybrid_lm\.[^#\n]+)", README, re.MULTILINE)))
PARSERS = {
    "hybrid_lm.train": train.parse,
    "hybrid_lm.evaluate": lambda args: cli.parse(evaluate.Options, args),
    "hybrid_lm.sample": lambda args: cli.parse(sample.Options, args),
    "hybrid_lm.sweep": sweep.parse,
    "hybrid_lm.compare": lambda args: cli.parse(compare.Options, args),
    "hybrid_lm.data.prepare": lambda args: cli.parse(DataConfig, args),
}


def test_the_table_of_mixers_is_that_of_the_registry():
    assert replace_in(README) == README, "run python -m hybrid_lm.mixers.table README.md"


def test_every_command_is_shown():
    assert {command.split()[0] for command in COMMANDS} == set(PARSERS)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    module, *args = shlex.split(command)
    PARSERS[module](args)


@pytest.fixture
def example(monkeypatch):
    """The config class of the README's example, registered for one test."""
    monkeypatch.setattr(base, "_REGISTRY", dict(base._REGISTRY))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {
        "jax": jax,
        "jnp": jnp,
        "nnx": nnx,
        "dataclass": dataclass,
        "param": param,
        "fan_in": fan_in,
        "project": project,
        "CONTINUES": mixers.CONTINUES,
        "MixerConfig": mixers.MixerConfig,
        "register": mixers.register,
    }
    exec(compile(code, "README.md", "exec"), names)
    assert "ema" in mixers.names()
    return mixers.get("ema")


def test_the_example_keeps_documents_apart_and_hands_its_state_on(example):
    module = example().build(8, nnx.Rngs(0))
    x_BLD = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, 8)), jnp.float32)
    ids_BL = jnp.asarray([[3, 3, 3, 1, 1, 1, 1]], jnp.int32)
    ctx = mixers.Context(jnp.asarray([[0, 1, 2, 0, 1, 2, 3]], jnp.int32), ids_BL)
    whole_BLD, _ = module(x_BLD, ctx)
    alone_BLD, _ = module(x_BLD[:, 3:], mixers.Context.of_documents(1, 4))
    assert_close(alone_BLD, whole_BLD[:, 3:])
    parts, state = [], None
    for cut in (slice(0, 5), slice(5, 7)):
        x_part, ctx_part = jax.tree.map(lambda a: a[:, cut], (x_BLD, ctx))  # noqa: B023
        y_BLD, state = module(x_part, ctx_part, state)
        parts.append(y_BLD)
    assert_close(jnp.concatenate(parts, axis=1), whole_BLD)
    assert example().cost(8, 100).state_bytes == 4 * 8 + 4
