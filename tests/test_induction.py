"""The instruments on an induction head with weights set by hand: a layer that hands every token the
one before, and softmax attention from a token to what followed it earlier."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from hybrid_lm.instruments import suite
from hybrid_lm.instruments.bench import Bench
from hybrid_lm.instruments.documents import Documents
from hybrid_lm.instruments.field import FieldInstrument
from hybrid_lm.mixers import Attention
from hybrid_lm.model import Model
from tests.byhand import Delay, copying_model, memory_corpus

SYMBOLS, PERIOD, LENGTH = 81, 70, 512


def documents(count, seed):
    """A random order of different symbols, over and over."""
    rng = np.random.default_rng(seed)
    orders = [1 + rng.permutation(SYMBOLS - 1)[:PERIOD] for _ in range(count)]
    return [np.resize(order, LENGTH + 1).astype(np.int32) for order in orders]


CORPUS = memory_corpus(
    {"train": documents(4, seed=0), "validation": documents(4, seed=1)}, vocab_size=SYMBOLS
)


def induction_model():
    """The residual stream holds the token in its first half and the one before in its second."""
    config, _, _ = copying_model()
    mixers = {"shift": Delay(distance=1)}
    mixers["match"] = Attention(heads=1, head_dim=SYMBOLS + 1, rope_theta=None, qk_norm=False)
    width = 2 * (SYMBOLS + 1)
    model_config = dataclasses.replace(
        config.model,
        layers="idle: shift; induction: shift, match; last: shift",
        mixers=mixers,
        width=width,
    )
    config = dataclasses.replace(config, model=model_config)
    model = Model(config.model, SYMBOLS)
    params = model.init(jax.random.key(0))
    token, before = np.eye(width)[:, : width // 2], np.eye(width)[:, width // 2 :]
    params["embedding"] = jnp.asarray(np.eye(width)[:SYMBOLS], jnp.float32)
    shift, match = (params["groups"]["induction"][place]["mixer"] for place in "01")
    shift["out"] = jnp.asarray((token @ before.T)[None], jnp.float32)
    match["q"] = jnp.asarray(3.0 * token[None, :, None], jnp.float32)
    match["k"] = jnp.asarray(before[None, :, None], jnp.float32)
    match["v"] = jnp.asarray(token[None, :, None], jnp.float32)
    match["out"] = jnp.asarray(8.0 * token.T[None, None], jnp.float32)
    return config, model, params


@pytest.mark.thorough
def test_the_induction_head_is_found_with_its_distance(tmp_path, monkeypatch):
    config, model, params = induction_model()
    narrow = [
        FieldInstrument(narrowest=16) if instrument.name == "field" else instrument
        for instrument in suite.INSTRUMENTS
    ]
    monkeypatch.setattr(suite, "INSTRUMENTS", tuple(narrow))
    mesh = jax.make_mesh(
        (1, 1, 1), ("data", "seq", "model"), (AxisType.Auto,) * 3, devices=jax.devices()[:1]
    )
    chosen = Documents.choose(CORPUS, "validation", length=LENGTH, limit=None)
    report = suite.run(
        Bench(model, config, mesh, chosen),
        CORPUS,
        params,
        step=1,
        names=suite.chosen(None, lens=False),
        directory=tmp_path,
        kept=tmp_path,
    )
    idle, induction, last = report.groups
    assert report.buckets[-1].nll < 0.1
    for group in (idle, last):
        assert group.knockout.delta_nll == pytest.approx(0, abs=1e-6)
        assert group.shapley.value == pytest.approx(0, abs=1e-6)
        assert group.field.effective_context == 16
    assert induction.knockout.delta_nll > 3
    assert induction.knockout_mean.delta_nll > 1
    assert induction.shapley.value == pytest.approx(report.shapley.total)
    cost = {cut.width: cut.buckets[-1].delta_nll for cut in induction.field.widths}
    skipped = induction.knockout.buckets[-1].delta_nll
    # Not all that skipping costs: attention that finds nothing still outweighs the token itself.
    assert min(cost[16], cost[32]) > 0.6 * skipped
    # A token needs what is 70 before it, which 6 of the 64 of a block do not see.
    assert cost[64] == pytest.approx(cost[32] * 6 / 64, rel=0.3)
    assert abs(cost[128]) < 0.01
    assert induction.field.effective_context == 128
    classes = {found.name: found.groups[1].delta_nll for found in report.token_classes}
    assert classes["repeat <256"] > 3
    assert classes["repeat <256"] > 2 * classes["first occurrence"]
    sliding = [score for score in report.scoring if score.mode == "sliding"]
    assert all(score.delta_nll > 0.9 for score in sliding if score.length == 256)
