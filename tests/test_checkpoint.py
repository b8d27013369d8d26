"""Checkpoints: what is read is what was saved, or what was saved before it, or an error."""

import dataclasses
import functools
import logging
import os
import shutil

import jax
import numpy as np
import pytest

from hybrid_lm import checkpoint, hosts
from hybrid_lm.checkpoint import Position, Writer
from hybrid_lm.config import Config, OptimizerConfig
from hybrid_lm.errors import UserError
from hybrid_lm.mixers import Linear
from hybrid_lm.model import Model, ModelConfig
from hybrid_lm.optimizer import make_optimizer
from hybrid_lm.run_dir import RunDir
from hybrid_lm.sharding import MeshConfig
from hybrid_lm.step import abstract_state

# Reads that a failed load leaves under way report to its closed event loop, from threads of C++.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

VOCAB = 11
CONFIG = Config(ModelConfig("early: lin; deep: lin*2", {"lin": Linear(heads=2)}, 8, 8))


def model_and_like(config=CONFIG, **mesh):
    model = Model(config.model, VOCAB)
    optimizer = make_optimizer(OptimizerConfig(), 10, model.decays)
    mesh = MeshConfig(**({"data": 1} | mesh)).build()
    return model, mesh, abstract_state(model, optimizer, mesh)


@functools.cache
def random_numbers(seed):
    """A state of random numbers, the optimizer's counters included."""
    _, _, like = model_and_like()
    rng = np.random.default_rng(seed)
    state = jax.tree.map(lambda leaf: (99 * rng.random(leaf.shape)).astype(leaf.dtype), like)
    return state._replace(step=np.int32(seed), finite=np.bool_(True))


def random_state(seed, like):
    return jax.tree.map(
        lambda x, leaf: jax.device_put(x, leaf.sharding), random_numbers(seed), like
    )


def data_state(step):
    return {"next": step, "nested": [1, {"none": None}]}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints 1 to 4, of which the last two were to be kept."""
    path = tmp_path_factory.mktemp("saved") / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    _, _, like = model_and_like()
    writer = Writer(RunDir(path), keep=2)
    for step in range(1, 5):
        writer.save(random_state(step, like), Position(step, 10 * step, data_state(step)))
    writer.close()
    return path


@pytest.fixture
def run_dir(saved, tmp_path):
    """The same, to be spoiled."""
    return RunDir(shutil.copytree(saved, tmp_path / "run"))


def files(directory):
    return {
        path.relative_to(directory): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def assert_state(state, step):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), random_numbers(step))


def test_the_newest_comes_back_bit_for_bit_and_only_so_many_are_kept(run_dir):
    assert {path.name for path in run_dir.checkpoints.iterdir()} == {"3", "4"}
    model, mesh, like = model_and_like()
    state, position = checkpoint.restore(run_dir, like)
    assert_state(state, 4)
    assert position == Position(4, 40, data_state(4))
    params, step = checkpoint.load_params(run_dir, model, mesh)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_it_comes_back_on_another_mesh(run_dir):
    _, _, like = model_and_like(data=2, model=2)
    state, _ = checkpoint.restore(run_dir, like)
    assert_state(state, 4)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(like), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state))


def damage_by_truncation(path):
    os.truncate(path, path.stat().st_size // 2)


def damage_by_a_flipped_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [damage_by_truncation, pytest.param(damage_by_a_flipped_bit, marks=pytest.mark.thorough)],
)
def test_any_damaged_file_means_the_one_before_or_no_difference(run_dir, damage, caplog):
    _, _, like = model_and_like()
    newest = run_dir.checkpoints / "4"
    fell_back = 0
    for name, content in files(newest).items():
        damage(newest / name)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "hybrid_lm"):
            state, position = checkpoint.restore(run_dir, like)
        assert_state(state, position.step)
        assert position.step in (3, 4)
        if position.step == 3:
            fell_back += 1
            assert "checkpoint 4 is damaged" in caplog.text
            assert "using checkpoint 3" in caplog.text
            (aside,) = run_dir.checkpoints.glob("4.damaged-*")
            aside.rename(newest)
        (newest / name).write_bytes(content)
    assert fell_back >= 5


def test_reading_parameters_leaves_a_damaged_checkpoint_where_it_is(run_dir, caplog):
    model, mesh, _ = model_and_like()
    biggest = max((run_dir.checkpoints / "4" / "params").rglob("*"), key=lambda p: p.stat().st_size)
    damage_by_a_flipped_bit(biggest)
    before = files(run_dir.path)
    with caplog.at_level(logging.WARNING, "hybrid_lm"):
        assert checkpoint.load_params(run_dir, model, mesh)[1] == 3
    assert "checkpoint 4 is damaged" in caplog.text
    assert files(run_dir.path) == before


def test_none_intact_is_an_error_and_nothing_is_touched(run_dir):
    for path in run_dir.checkpoints.glob("*/params/manifest.ocdbt"):
        damage_by_truncation(path)
    before = files(run_dir.path)
    _, _, like = model_and_like()
    with pytest.raises(UserError, match=r"no intact checkpoint: checkpoint 4 .*checkpoint 3 "):
        checkpoint.restore(run_dir, like)
    assert files(run_dir.path) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 16}, r"embedding is \[11, 8\] there and \[11, 16\] in this model"),
        ({"mlp_width": 0}, r"mlp/down is \[2, 8, 8\] there and absent in this model"),
        ({"layers": "early: lin; deep: lin*3"}, r"groups/deep/.* is \[2, .* and \[3, "),
    ],
)
def test_another_architecture_is_an_error_naming_the_parameter(run_dir, change, message):
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, **change))
    model, mesh, like = model_and_like(config)
    before = files(run_dir.path)
    with pytest.raises(UserError, match=message):
        checkpoint.restore(run_dir, like)
    with pytest.raises(UserError, match=message):
        checkpoint.load_params(run_dir, model, mesh)
    assert files(run_dir.path) == before


def test_what_a_killed_process_left_half_written_is_ignored_and_removed(run_dir):
    _, _, like = model_and_like()
    half = run_dir.checkpoints / "5.orbax-checkpoint-tmp"
    shutil.copytree(run_dir.checkpoints / "4", half)
    shutil.rmtree(half / "params")
    _, position = checkpoint.restore(run_dir, like)
    assert position.step == 4
    writer = Writer(run_dir, keep=2)
    writer.save(random_state(5, like), Position(5, 50, data_state(5)))
    writer.close()
    assert {path.name for path in run_dir.checkpoints.iterdir()} == {"4", "5"}
    state, _ = checkpoint.restore(run_dir, like)
    assert_state(state, 5)


def test_without_a_checkpoint_training_starts_and_evaluation_says_so(run_dir):
    shutil.rmtree(run_dir.checkpoints)
    model, mesh, like = model_and_like()
    assert checkpoint.restore(run_dir, like) is None
    with pytest.raises(UserError, match="no checkpoint yet"):
        checkpoint.load_params(run_dir, model, mesh)


def test_another_number_of_processes_cannot_share_the_documents_anew(run_dir, monkeypatch):
    _, _, like = model_and_like()
    monkeypatch.setattr(hosts, "gather", lambda value: [value, value])
    writer = Writer(run_dir, keep=2)
    writer.save(random_state(5, like), Position(5, 50, data_state(5)))
    writer.close()
    with pytest.raises(UserError, match=r"trained by 2 process\(es\).* go on with 1"):
        checkpoint.restore(run_dir, like)
