"""Checkpoints of a run: written in the background, read from the newest that is intact."""

import gc
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint.experimental.v1 as ocp
from jax.sharding import Mesh

from hybrid_lm import hosts
from hybrid_lm.errors import UserError
from hybrid_lm.model import Model, Params
from hybrid_lm.run_dir import RunDir
from hybrid_lm.sharding import shardings
from hybrid_lm.step import TrainState

log = logging.getLogger(__name__)


class Position(NamedTuple):
    """How far a run has come, beside the state.

    Attributes:
        step: updates so far.
        tokens: tokens trained on, padding left out.
        data: state of this process's data iterator; None at the start.
    """

    step: int
    tokens: int
    data: Any


class Writer:
    """Saves checkpoints of a run in the background and keeps the latest ``keep``.

    A checkpoint appears under its step's number when it is whole; what a killed process has left
    half-written is removed.
    """

    def __init__(self, run_dir: RunDir, keep: int):
        latest: Any = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            str(run_dir.checkpoints.resolve()),
            preservation_policy=latest,
            cleanup_tmp_directories=True,
        )

    def save(self, state: TrainState, position: Position) -> None:
        """Start to save, after the end of an earlier save; the state may be donated right away."""
        items = _items(state)
        metadata: dict[str, Any] = {
            "tokens": position.tokens,
            "data": hosts.gather(position.data),
            "checksums": _checksums(items),
        }
        self._checkpointer.save_checkpointables_async(
            position.step, items, force=True, custom_metadata=metadata
        )

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._checkpointer.close()


def restore(run_dir: RunDir, like: TrainState) -> tuple[TrainState, Position] | None:
    """The newest intact checkpoint; None where there is none at all.

    ``like`` gives shapes and shardings. Checkpoints newer than it, which cannot be read, are put
    aside under another name, and the log says so.

    Raises:
        UserError: if none is intact, or the newest is of another architecture.
    """
    if not _steps(run_dir):
        return None
    step, restored, metadata = _newest_intact(run_dir, _items(like), like.params)
    data = metadata["data"]
    if len(data) != jax.process_count():
        raise UserError(
            f"{run_dir.path} was trained by {len(data)} process(es), which share the documents; "
            f"it cannot go on with {jax.process_count()}"
        )
    if hosts.is_first():
        for damaged in _steps(run_dir):
            if damaged > step:
                _put_aside(run_dir.checkpoints / str(damaged))
    state = TrainState(
        restored["params"],
        restored["optimizer"],
        jax.device_put(jnp.int32(step), like.step.sharding),
        jax.device_put(jnp.bool(True), like.finite.sharding),
    )
    return state, Position(step, metadata["tokens"], data[jax.process_index()])


def load_params(run_dir: RunDir, model: Model, mesh: Mesh) -> tuple[Params, int]:
    """Parameters of the newest intact checkpoint, sharded over ``mesh``, and its step.

    The log says so if it is not the newest.

    Raises:
        UserError: if there is none, none is intact, or the newest is of another architecture.
    """
    if not _steps(run_dir):
        raise UserError(f"{run_dir.path} has no checkpoint yet; train it first")
    shapes = model.abstract_params()
    like = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings(model.axes, shapes, mesh),
    )
    step, restored, _ = _newest_intact(run_dir, {"params": like}, like)
    return restored["params"], step


def _items(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "optimizer": state.opt_state}


def _checksums(items: dict[str, Any]) -> dict[str, int]:
    """Sum of the bits of every item; the storage format itself has no checksum of arrays."""
    return {name: int(jax.device_get(sum_of_bits(item))) for name, item in items.items()}


@jax.jit
def sum_of_bits(tree: Any) -> jax.Array:
    """Sum modulo 2^32 of all leaves (of 32 bits an entry) as unsigned words."""
    words = [jax.lax.bitcast_convert_type(leaf, jnp.uint32) for leaf in jax.tree.leaves(tree)]
    return sum((jnp.sum(word, dtype=jnp.uint32) for word in words), start=jnp.uint32(0))


def _steps(run_dir: RunDir) -> list[int]:
    """Steps of the finished checkpoints, newest first; names that are no number are not."""
    if not run_dir.checkpoints.is_dir():
        return []
    names = (path.name for path in run_dir.checkpoints.iterdir())
    return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _newest_intact(
    run_dir: RunDir, like: dict[str, Any], like_params: Params
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Step, items and metadata of the newest checkpoint that can be read whole."""
    damaged = []
    for step in _steps(run_dir):
        path = (run_dir.checkpoints / str(step)).resolve()
        with _quiet():
            try:
                restored, metadata = _read(path, like, like_params)
            except UserError:
                raise
            except Exception as error:  # of many kinds, by what is damaged
                damaged.append(f"checkpoint {step} is damaged ({_first_line(error)})")
            else:
                if damaged:
                    log.warning("%s; using checkpoint %d", "; ".join(damaged), step)
                return step, restored, metadata
            gc.collect()  # what the libraries did not finish complains when it goes
    raise UserError(f"{run_dir.checkpoints} holds no intact checkpoint: {'; '.join(damaged)}")


def _read(
    path: Path, like: dict[str, Any], like_params: Params
) -> tuple[dict[str, Any], dict[str, Any]]:
    metadata = ocp.checkpointables_metadata(str(path))
    custom: Any = metadata.custom_metadata
    stored = metadata.metadata.get("params")
    if not custom or stored is None:
        raise ValueError("its metadata cannot be read")
    _require_architecture(path, stored, like_params)
    restored = ocp.load_checkpointables(str(path), like)
    for name, checksum in _checksums(restored).items():
        if checksum != custom["checksums"][name]:
            raise ValueError(f"checksum of {name} differs")
    return restored, custom


def _require_architecture(path: Path, stored: Any, like: Params) -> None:
    """Raise `UserError` naming the first parameter that differs."""
    there, here = _shapes(stored), _shapes(like)
    for name in [*here, *there]:
        if there.get(name) != here.get(name):
            raise UserError(
                f"{path} is of another architecture: {name} is {there.get(name, 'absent')} there "
                f"and {here.get(name, 'absent')} in this model"
            )


def _shapes(tree: Any) -> dict[str, list[int]]:
    return {
        jax.tree_util.keystr(key, simple=True, separator="/"): list(leaf.shape)
        for key, leaf in jax.tree.leaves_with_path(tree)
    }


def _put_aside(path: Path) -> None:
    os.rename(path, tempfile.mkdtemp(prefix=f"{path.name}.damaged-", dir=path.parent))


def _first_line(error: Exception) -> str:
    """The start of an error and of what caused it, short enough for one line."""
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    lines = str(root).strip().splitlines() or [type(root).__name__]
    return lines[0].split(" [")[0][:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the libraries print about an error that we report in one line.

    They log it, leave coroutines unfinished, and call back into event loops that are closed.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    hook = sys.unraisablehook
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda unraisable: None
    try:
        with warnings.catch_warnings(category=RuntimeWarning, action="ignore"):
            yield
    finally:
        sys.unraisablehook = hook
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
