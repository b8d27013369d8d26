"""The training step: one batch however it is cut and sharded, and nothing that is not finite."""

import dataclasses
import json
import math
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from hybrid_lm import mixers
from hybrid_lm.config import Config, OptimizerConfig, TrainConfig
from hybrid_lm.model import Model, ModelConfig
from hybrid_lm.nonfinite import dump, explain
from hybrid_lm.optimizer import learning_rate, make_optimizer, parts
from hybrid_lm.recorder import Dispatched, NonFiniteStep
from hybrid_lm.step import abstract_batch, abstract_state, context, init_state, make_step

VOCAB, ROWS, LENGTH, STEPS = 19, 4, 32, 8
GOLDEN = Path(__file__).parent / "golden" / "losses.json"

TINY = Config(
    model=ModelConfig(
        layers="early: lin; deep: lin",
        mixers={"lin": mixers.Linear(heads=2)},
        width=16,
        mlp_width=16,
    ),
    optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2),
    train=TrainConfig(steps=STEPS, length=LENGTH, batch_size=ROWS, dtype="float32", remat="none"),
)
ALL = dataclasses.replace(
    TINY,
    model=ModelConfig(
        layers="early: attn; deep: mamba, mamba2",
        mixers=TINY.model.mixers
        | {
            "attn": mixers.Attention(heads=2),
            "mamba": mixers.Mamba(state_size=4),
            "mamba2": mixers.Mamba2(state_size=8, head_dim=8),
        },
        width=16,
        mlp_width=16,
    ),
)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Tiny programs take far longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def padded_batch(seed):
    """Rows of which the later ones are mostly padding."""
    rng = np.random.default_rng(seed)
    used_B1 = np.linspace(LENGTH, 3, ROWS).astype(int)[:, None]
    place_BL = np.broadcast_to(np.arange(LENGTH), (ROWS, LENGTH))
    batch = {
        "tokens_BL": rng.integers(0, VOCAB, (ROWS, LENGTH)),
        "targets_BL": rng.integers(0, VOCAB, (ROWS, LENGTH)),
        "segment_ids_BL": place_BL < used_B1,
        "positions_BL": place_BL,
    }
    return {key: np.asarray(value, np.int32) for key, value in batch.items()}


class Trainer:
    """One compiled step and the state it starts from."""

    def __init__(self, config, mesh_shape=(1, 1, 1)):
        self.mesh = jax.make_mesh(
            mesh_shape,
            ("data", "seq", "model"),
            axis_types=(AxisType.Auto,) * 3,
            devices=jax.devices()[: math.prod(mesh_shape)],
        )
        self.config, self.model = config, Model(config.model, VOCAB)
        self.optimizer = make_optimizer(config.optimizer, STEPS, self.model.decays)
        self.state_like = abstract_state(self.model, self.optimizer, self.mesh)
        self.batch_like = abstract_batch(config, self.mesh)
        self.shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state_like)
        self._init = jax.jit(
            lambda key: init_state(self.model, self.optimizer, key), out_shardings=self.shardings
        )

    def lower(self):
        step = make_step(self.model, self.optimizer, self.config)
        jitted = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, None))
        with jax.set_mesh(self.mesh):
            return jitted.lower(self.state_like, self.batch_like)

    def init(self):
        with jax.set_mesh(self.mesh):
            return self._init(jax.random.key(0))

    def place(self, batch):
        return {key: jax.device_put(batch[key], self.batch_like[key].sharding) for key in batch}

    @cache  # noqa: B019 - as many as tests ask for
    def step(self):
        return self.lower().compile()

    def run(self, steps, batch=padded_batch):
        """Losses of the first steps, and the state after them."""
        state, losses = self.init(), []
        for i in range(steps):
            placed = self.place(batch(i))
            with jax.transfer_guard("disallow"):
                state, metrics = self.step()(state, placed)
            losses.append(float(metrics.loss))
        return losses, state


@pytest.fixture(scope="module")
def whole():
    return Trainer(TINY)


@pytest.fixture(scope="module")
def whole_run(whole):
    losses, state = whole.run(3)
    return losses, jax.device_get(state.params)


def assert_same_run(got, want):
    np.testing.assert_allclose(got[0], want[0], rtol=2e-6)
    # Adam's first steps are as large for a gradient that is nothing but rounding.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-4), jax.device_get(got[1]), want[1]
    )


@pytest.mark.parametrize(
    "mesh_shape", [pytest.param((1, 1, 1), marks=pytest.mark.thorough), (2, 2, 2)]
)
def test_parts_and_shards_of_a_batch_give_the_step_of_the_whole(whole_run, mesh_shape):
    """Though the parts hold different amounts of padding."""
    in_parts = dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, accumulate=2))
    cut_losses, cut_state = Trainer(in_parts, mesh_shape).run(3)
    assert_same_run((cut_losses, cut_state.params), whole_run)


def unpacked(config, **data):
    data = dataclasses.replace(config.data, **data)
    losses, state = Trainer(dataclasses.replace(config, data=data)).run(3)
    return losses, state.params


def test_rows_that_are_not_packed_train_without_knowing_where_their_padding_begins(whole_run):
    assert_same_run(unpacked(TINY, pack=False), whole_run)


@pytest.mark.thorough
def test_so_do_attention_and_both_mambas():
    losses, state = Trainer(ALL).run(3)
    assert_same_run(unpacked(ALL, max_segments=1), (losses, jax.device_get(state.params)))


def test_padding_goes_on_with_the_last_document_of_its_row():
    """No row has more runs of ids than kernels are promised."""
    config = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, max_segments=3))
    ids_BL = np.array([[1, 1, 2, 0], [1, 0, 0, 0], [1, 2, 3, 0]], np.int32)
    ctx = context(config, {"segment_ids_BL": ids_BL, "positions_BL": np.zeros_like(ids_BL)})
    want_BL = [[1, 1, 2, 2], [1, 1, 1, 1], [1, 2, 3, 3]]
    np.testing.assert_array_equal(ctx.segment_ids_BL, want_BL)
    assert ctx.max_segments == 3


def test_the_loss_is_the_mean_over_real_tokens(whole):
    """Logits that are all 0 cost ln V nats a token, and padding costs nothing."""
    state = whole.init()
    silent = state.params | {"embedding": jax.numpy.zeros_like(state.params["embedding"])}
    batch = padded_batch(0)
    state = jax.device_put(state._replace(params=silent), whole.shardings)
    _, metrics = whole.step()(state, whole.place(batch))
    assert int(metrics.tokens) == np.sum(batch["segment_ids_BL"] != 0)
    np.testing.assert_allclose(float(metrics.loss), math.log(VOCAB), rtol=1e-6)

    _, metrics = whole.step()(whole.init(), whole.place(batch))
    targets_BL = np.where(batch["segment_ids_BL"] != 0, batch["targets_BL"], 7)
    _, same = whole.step()(whole.init(), whole.place(batch | {"targets_BL": targets_BL}))
    assert float(same.loss) == float(metrics.loss)
    assert float(same.grad_norm) == float(metrics.grad_norm)


@pytest.mark.parametrize("part", ["embedding", "groups/deep"])
def test_a_step_that_is_not_finite_changes_nothing_and_names_its_origin(whole, part):
    state = whole.init()
    first = jax.tree.leaves(parts(state.params)[part])[0]
    poisoned = jax.tree.map(
        lambda leaf: leaf.at[(0,) * leaf.ndim].set(np.nan) if leaf is first else leaf, state.params
    )
    state = jax.device_put(state._replace(params=poisoned), whole.shardings)
    before = jax.device_get(state)
    batch = padded_batch(0)
    batch["tokens_BL"][:, 0] = 0
    state, metrics = whole.step()(state, whole.place(batch))
    assert not metrics.finite
    state, later = whole.step()(state, whole.place(padded_batch(1)))
    assert not later.finite
    after = jax.device_get(state)
    jax.tree.map(np.testing.assert_array_equal, after[:3], before[:3])
    assert not after.finite

    failed = NonFiniteStep(Dispatched(5, batch, metrics), jax.device_get(metrics))
    text = explain(whole.model, whole.config, state.params, whole.place(batch), failed)
    assert "step 5 is not finite: loss nan" in text
    assert f"first not finite: the parameters of {part}\n" in text
    assert all(name in text for name in ("groups/early", "groups/deep", "norm"))


def test_once_not_finite_no_later_step_is_applied(whole):
    """The step after it is under way before anyone has looked."""
    state = jax.device_get(whole.init())._replace(finite=np.bool_(False))
    after, metrics = whole.step()(
        jax.device_put(state, whole.shardings), whole.place(padded_batch(0))
    )
    assert math.isfinite(metrics.loss)
    assert not metrics.finite
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after), state)


def test_an_update_that_overflows_is_not_applied(whole):
    state = whole.init()
    clip, (adam, *rest) = state.opt_state
    huge = adam._replace(mu=jax.tree.map(lambda leaf: leaf + 1e38, adam.mu))
    state = jax.device_put(state._replace(opt_state=(clip, (huge, *rest))), whole.shardings)
    before = jax.device_get(state)
    after, metrics = whole.step()(state, whole.place(padded_batch(0)))
    assert math.isfinite(metrics.loss)
    assert math.isfinite(metrics.grad_norm)
    assert not math.isfinite(metrics.update_norm)
    assert not metrics.finite
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(after)[:3], before[:3])


def test_the_batch_of_a_failed_step_is_kept(tmp_path):
    class Directory:
        path = tmp_path

    batch = padded_batch(3)
    with np.load(dump(Directory(), 7, batch)) as kept:
        assert set(kept) == set(batch)
        for key in batch:
            np.testing.assert_array_equal(kept[key], batch[key])


def test_the_program_does_not_grow_with_repeats():
    def lines(pattern):
        model = dataclasses.replace(ALL.model, layers=pattern)
        return len(Trainer(dataclasses.replace(ALL, model=model)).lower().as_text().splitlines())

    # Counts that differ, as what two groups have in common is written once.
    assert lines("a: (mamba2, lin)*2; b: attn*3") == lines("a: (mamba2, lin)*7; b: attn*30")


def test_learning_rate_rises_to_its_peak_and_falls_to_its_end():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=4, final_fraction=0.1)
    rates = [float(learning_rate(config, 20)(count)) for count in range(20)]
    np.testing.assert_allclose(rates[:4], [0.125, 0.25, 0.375, 0.5])
    assert np.all(np.diff(rates[3:]) < 0)
    np.testing.assert_allclose(rates[11], 0.275, rtol=1e-6)  # half-way down
    np.testing.assert_allclose(rates[-1], 0.05, rtol=1e-6)
    short = [float(learning_rate(config, 2)(count)) for count in range(2)]
    np.testing.assert_allclose(short, rates[:2])


def test_weight_decay_spares_norms_biases_and_the_dynamics():
    """With no gradient, what decays shrinks and everything else stays."""
    model = Model(ALL.model, VOCAB)
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), model.abstract_params())
    optimizer = make_optimizer(config, STEPS, model.decays)
    zeros = jax.tree.map(np.zeros_like, params)
    updates, _ = jax.jit(optimizer.update)(zeros, optimizer.init(params), params)
    shrinking, spared = set(), set()
    for path, update in jax.tree.leaves_with_path(jax.device_get(updates)):
        (shrinking if np.any(update != 0) else spared).add((path[-1].key, update.ndim))
    assert min(ndim for name, ndim in shrinking if name != "embedding") == 3  # stacked matrices
    shrinking = {name for name, _ in shrinking}
    assert {"embedding", "q", "k", "v", "out", "up", "down", "x", "z"} <= shrinking
    dynamics = {"log_a", "step_bias", "skip"}
    assert shrinking.isdisjoint(dynamics | {"scale", "norm", "conv_bias", "conv_x_bias"})


def learnable_batch(seed):
    """Every target follows from its token."""
    batch = padded_batch(seed)
    return batch | {"targets_BL": (3 * batch["tokens_BL"] + 1) % VOCAB}


def golden_losses():
    return Trainer(ALL).run(STEPS, learnable_batch)[0]


def test_losses_are_those_on_record():
    """``python -m tests.test_train_step`` records new ones, where a change is meant to do so."""
    recorded = json.loads(GOLDEN.read_text())
    np.testing.assert_allclose(golden_losses(), recorded, rtol=1e-5)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_losses(), indent=1) + "\n")
    print(f"recorded in {GOLDEN}")
