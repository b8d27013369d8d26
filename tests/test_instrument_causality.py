"""The causality instrument finds a leak, and the group that it is in."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from hybrid_lm.config import Config, EvaluationConfig, TrainConfig
from hybrid_lm.instruments.base import CannotRun, Subject
from hybrid_lm.instruments.bench import Bench, Session
from hybrid_lm.instruments.causality import CausalityInstrument
from hybrid_lm.instruments.documents import Documents
from hybrid_lm.leaks.published import FORMS
from hybrid_lm.mixers import Conv
from hybrid_lm.model import Model, ModelConfig
from tests.reports import full_report

LENGTH, VOCAB = 24, 11


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Tiny programs take far longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Leaky(FORMS["linformer"]):
    """Sees the whole row, and says it is causal."""

    key = "leaky"

    def flops_per_token(self, width, length):
        return 0.0


def bench(length):
    model = ModelConfig(
        layers="first: conv; wrong: leaky; last: conv",
        mixers={"conv": Conv(), "leaky": Leaky(length=length)},
        width=16,
        mlp_width=0,
    )
    config = Config(
        model=model,
        train=TrainConfig(length=length, dtype="float32"),
        evaluation=EvaluationConfig(length=length, batch_size=2),
    )
    rows = np.random.default_rng(0).integers(1, VOCAB, (3, length + 1), dtype=np.int32)
    names = tuple("abc")
    documents = Documents("test", (0, 1, 2), names, rows[:, :-1], rows[:, 1:])
    axes = ("data", "seq", "model")
    mesh = jax.make_mesh((1, 1, 1), axes, (AxisType.Auto,) * 3, devices=jax.devices()[:1])
    return Bench(Model(model, VOCAB), config, mesh, documents)


def test_a_leak_is_found_in_its_group_and_nowhere_else():
    on = bench(LENGTH)
    params = jax.jit(on.model.init)(jax.random.key(0))
    session, instrument = Session(on, params, step=1), CausalityInstrument()
    subject = Subject(session, corpus=None, table={}, key={}, cache=None, kept=None)
    with jax.set_mesh(on.mesh):
        arrays = instrument.measure(subject)
    before = full_report()
    groups = tuple(
        dataclasses.replace(group, name=name)
        for group, name in zip(before.groups, ("first", "wrong", "last"), strict=False)
    )
    report = instrument.extend(dataclasses.replace(before, groups=groups), arrays, subject)
    assert (report.causality.position, report.causality.documents) == (11, 2)
    found = {group.name: group for group in report.causality.groups}
    assert found["first"].before == found["last"].before == 0
    assert found["wrong"].before > 0.01
    assert all(group.after > 0.1 for group in found.values())


@pytest.mark.parametrize(("length", "position"), [(2, 1), (3, 1), (4, 1), (10, 5), (8192, 4095)])
def test_the_change_starts_in_the_middle_and_at_no_chunk(length, position):
    assert CausalityInstrument().position(length) == position


def test_one_token_has_nothing_after_it():
    with pytest.raises(CannotRun, match="no middle"):
        CausalityInstrument().passes(bench(1), None)
