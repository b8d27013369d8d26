"""The tuned lens on a model that holds its prediction where the unembedding does not look."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

from hybrid_lm.instruments import suite
from hybrid_lm.instruments.bench import Bench
from hybrid_lm.instruments.documents import Documents
from hybrid_lm.instruments.lens import LensInstrument
from hybrid_lm.model import Model
from tests.byhand import VOCAB, Delay, copying_model, memory_corpus, repeating_documents

LENGTH, PERIOD = 256, 70
CORPUS = memory_corpus(
    {
        "train": repeating_documents(12, LENGTH + 1, seed=0, period=PERIOD),
        "validation": repeating_documents(4, LENGTH + 1, seed=1, period=PERIOD),
    }
)


def test_what_the_unembedding_cannot_read_a_trained_map_can(tmp_path, monkeypatch):
    config, _, _ = copying_model()
    mixers = {"copy": Delay(distance=PERIOD - 1), "turn": Delay(distance=1)}
    layers = "copying: copy; turning: turn"
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, layers=layers, mixers=mixers),
        train=dataclasses.replace(config.train, length=64),
    )
    model = Model(config.model, VOCAB)
    params = model.init(jax.random.key(0))
    params["embedding"] = jnp.eye(VOCAB)
    turned = jnp.roll(jnp.eye(VOCAB), 1, axis=1)
    params["groups"]["copying"]["0"]["mixer"]["out"] = 4.0 * turned[None]
    mesh = jax.make_mesh((1, 1, 1), ("data", "seq", "model"), (AxisType.Auto,) * 3)
    documents = Documents.choose(CORPUS, "validation", length=LENGTH, limit=None)
    bench = Bench(model, config, mesh, documents)
    lens = LensInstrument(steps=150, learning_rate=0.3)
    monkeypatch.setattr(suite, "INSTRUMENTS", (lens,))

    def run(directory):
        kept = tmp_path / "kept"
        return suite.run(
            bench, CORPUS, params, step=1, names=["lens"], directory=directory, kept=kept
        )

    report = run(tmp_path / "first")
    copying, turning = report.groups
    assert report.entry_nll > 5
    assert copying.exit_nll > 5
    assert report.lens_entry_nll > math.log(31)  # nothing about the next token is there yet
    # 69 of 256 tokens have nothing to copy, at ln 31 = 3.4 nats or more.
    assert copying.lens.exit_nll < 2
    assert turning.lens.exit_nll == pytest.approx(report.nll)
    gains = sum(group.lens.gain for group in report.groups)
    assert gains == pytest.approx(report.lens_entry_nll - report.nll)
    monkeypatch.setattr(LensInstrument, "_trained", None)  # the maps are kept with the run
    again = run(tmp_path / "second")
    assert again.groups[0].lens == copying.lens
