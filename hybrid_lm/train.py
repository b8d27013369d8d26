"""Train a hybrid language model and report what every layer group buys.

    python -m hybrid_lm.train --config exp/NAME.py [--run-dir DIR] [--dry-run] [--OPTION VALUE ...]

Every field of the config is an option (--help lists them, with --config those of its mixers too).
The same command resumes a run that ended early.
"""

import logging
import sys
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from jax.sharding import Mesh
from rich.console import Console

from hybrid_lm import checkpoint, cli, compilation_cache, dry_run, hosts, report
from hybrid_lm import config as configs
from hybrid_lm.checkpoint import Position
from hybrid_lm.config import Config
from hybrid_lm.data.pipeline import train_batches
from hybrid_lm.data.prepare import prepare
from hybrid_lm.errors import UserError, exit_on_user_error
from hybrid_lm.evaluate import Evaluator
from hybrid_lm.metrics import MetricsLog
from hybrid_lm.model import Model, count
from hybrid_lm.nonfinite import NonFiniteError, dump, explain
from hybrid_lm.optimizer import make_optimizer
from hybrid_lm.progress import Progress, log_to
from hybrid_lm.recorder import Dispatched, NonFiniteStep, Recorder
from hybrid_lm.run_dir import RunDir, find_run
from hybrid_lm.step import Batch, abstract_batch, abstract_state, init_state, jitted_step
from hybrid_lm.stop import Interrupted, StopSignal
from hybrid_lm.throughput import peak

log = logging.getLogger("hybrid_lm.train")  # also as __main__


@dataclass(frozen=True)
class Options:
    """What to run, and where to keep it."""

    run: Annotated[Config, tyro.conf.arg(name="")]
    config: str
    """Python file whose config() is the run: a path, or a name in experiments/. FILE:POINT is a
    point of its sweep()."""
    run_dir: str | None = None
    """Directory of the run. None: runs/NAME for experiments/NAME.py, and for a point of it
    runs/NAME/POINT-seedN."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the plan, its costs and the implementations; nothing is prepared or written."""
    distributed: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """This is one of several processes that train together; JAX finds the others on a cluster that
    it knows, or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""


def parse(args: list[str]) -> Options:
    """Options of the command line on top of those of the config file that it names."""
    name = cli.take(args, "--config")
    if name is not None:
        default = Options(run=configs.load(name), config=name)
        return cli.parse(Options, args, default=default, description=__doc__ or "")
    if {"--help", "-h"} & set(args):
        cli.parse(Options, ["--help"], description=__doc__ or "")
    raise UserError("no --config; for a first run: --config exp/quickstart.py")


def require_divisible(config: Config, mesh: Mesh) -> None:
    """Raise `UserError` where rows or positions cannot be shared out evenly over the mesh."""
    rows = config.train.batch_size // config.train.accumulate
    data, seq, processes = mesh.shape["data"], mesh.shape["seq"], jax.process_count()
    if rows % data:
        raise UserError(
            f"{rows} rows at a time (train.batch_size / train.accumulate) cannot be shared by "
            f"{data} device(s) of mesh.data"
        )
    if config.train.length % seq:
        raise UserError(
            f"train.length {config.train.length} cannot be shared by {seq} devices of mesh.seq"
        )
    if data % processes:
        raise UserError(f"mesh.data {data} is no multiple of the {processes} processes")


def train(options: Options, console: Console) -> None:
    """Train to the end or to a signal; resume where the run directory holds a run.

    Raises:
        UserError: for a config, corpus or run directory that cannot be used.
        NonFiniteError: for a step that is not finite.
    """
    # ---------------------------------------------------------------------- config, run directory
    config = options.run
    steps, dtype = config.train.steps, config.train.dtype
    run_path = Path(options.run_dir or configs.run_path(options.config, config))
    run_dir = find_run(run_path)
    if run_dir is not None:
        run_dir.require_config(config)
    mesh = config.mesh.build()
    require_divisible(config, mesh)
    Model(config.model, vocab_size=1)  # what cannot be built fails before the data is prepared

    # -------------------------------------------------------------------- data, model, evaluation
    corpus = prepare(config.data)
    if run_dir is not None:
        run_dir.require_corpus(corpus)
    model = Model(config.model, corpus.vocab_size)
    evaluator = Evaluator(model, corpus, config, mesh)
    can_pack = all(
        config.model.mixers[key].packable for group in model.plan.groups for key in group.unit
    )
    if config.data.pack and not can_pack:
        log.info("rows are not packed: a mixer of the pattern cannot keep documents apart")
    batches = train_batches(
        corpus,
        length=config.train.length,
        batch_size=config.train.batch_size // jax.process_count(),
        pack=config.data.pack and can_pack,
        max_segments=config.data.max_segments,
        seed=config.train.seed,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )
    if run_dir is not None and run_dir.reported_step() == steps:
        log.info("%s is complete: %d steps", run_path, steps)
        if hosts.is_first():
            Console().print(report.render(report.read(run_dir.report_dir)))
        return

    with ExitStack() as stack:
        # ---------------------------------------------------------------------------------- program
        stop = stack.enter_context(StopSignal())
        device_peak = peak(mesh, dtype)
        stack.enter_context(jax.set_mesh(mesh))
        optimizer = make_optimizer(config.optimizer, steps, model.decays)
        state_like = abstract_state(model, optimizer, mesh)
        batch_like = abstract_batch(config, mesh)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state_like)
        # What cannot run here fails before a run directory is made.
        traced = jitted_step(model, optimizer, config, state_like).trace(state_like, batch_like)

        # ----------------------------------------------------------------------------------- state
        if run_dir is None:
            if hosts.is_first():
                RunDir.create(run_path, config, corpus)
            hosts.wait_for_all("run directory")
            run_dir = RunDir(run_path)
        if hosts.is_first():
            stack.enter_context(run_dir.locked())
        restored = checkpoint.restore(run_dir, state_like)
        if restored is None:
            init = jax.jit(lambda key: init_state(model, optimizer, key), out_shardings=shardings)
            state, position = init(jax.random.key(config.train.seed)), Position(0, 0, None)
        else:
            state, position = restored
            batches.set_state(position.data)
            log.info("resuming %s after step %d", run_path, position.step)
        log.info("compiling the training step")
        started = time.perf_counter()
        train_step = traced.lower().compile()
        seconds = time.perf_counter() - started
        log.info("%s: %s parameters, compiled in %.0f s", run_path, count(state.params), seconds)
        log.info("MFU is of %.4g FLOP/s: %s", device_peak.flops_per_s, device_peak.origin)

        # ---------------------------------------------------------------------------- what is kept
        step = saved_step = position.step
        writer = checkpoint.Writer(run_dir, config.train.keep_checkpoints)
        stack.enter_context(closing(writer))
        metrics_log = None
        if hosts.is_first():
            metrics_log = stack.enter_context(closing(MetricsLog(run_dir, step)))
        evaluate_every = config.evaluation.every
        progress = Progress(console, step=step, steps=steps, evaluate_every=evaluate_every)
        stack.enter_context(progress)
        recorder = Recorder(
            metrics_log,
            progress,
            tokens=position.tokens,
            log_every=config.train.log_every,
            steps=steps,
            # The backward pass takes twice the forward pass; what it recomputes does not count.
            flops_per_token=3 * model.flops_per_token(config.train.length, dtype),
            peak_flops_per_s=device_peak.flops_per_s,
        )

        def place(batch: dict[str, np.ndarray]) -> Batch:
            """This process's rows as its part of the batch of all processes."""
            return {
                key: jax.make_array_from_process_local_data(like.sharding, batch[key])
                for key, like in batch_like.items()
            }

        def on_progress(done: int, total: int) -> None:
            progress.evaluating(done, total)
            stop.raise_if_asked()

        # ------------------------------------------------------------------------------------ loop
        while True:
            stopping = stop.asked(step)
            is_due = step == steps or (step > 0 and step % evaluate_every == 0)
            evaluating = is_due and run_dir.reported_step() != step
            saving = stopping or evaluating or step % config.train.checkpoint_every == 0
            try:
                if saving:
                    recorder.flush()
                if saving and step > saved_step:
                    writer.save(state, Position(step, recorder.tokens, batches.get_state()))
                    saved_step = step
                if evaluating and not stopping:
                    results = evaluator.run(state.params, step=step, on_progress=on_progress)
                    if metrics_log is not None:
                        report.to_board(results, metrics_log.board)
                        report.write(results, run_dir.report_dir)
                        Console().print(report.render(results))
                if stopping or step == steps:
                    break
                recorder.begin()
                step += 1
                batch = next(batches)
                placed = place(batch)
                with jax.transfer_guard("disallow"):
                    state, metrics = train_step(state, placed)
                    recorder.add(Dispatched(step, batch, metrics))
            except Interrupted:
                break
            except NonFiniteStep as failed:
                where = explain(model, config, state.params, place(failed.batch), failed)
                kept = dump(run_dir, failed.step, failed.batch)
                latest = f"of step {saved_step}" if saved_step else "still to come"
                raise NonFiniteError(
                    f"{where}\nthe batch is in {kept}; the latest checkpoint is {latest}"
                ) from failed

    # ----------------------------------------------------------------------------------------- end
    if step < steps or run_dir.reported_step() != steps:
        log.info("stopped and saved after step %d; the same command goes on from there", step)


def main(args: list[str] | None = None) -> None:
    """Run the command line ``args`` (None: this process's own)."""
    options = parse(cli.arguments() if args is None else args)
    hosts.connect(options.distributed)
    compilation_cache.enable()
    console = Console(stderr=True, quiet=not hosts.is_first())
    with log_to(console):
        if options.dry_run:
            Console().print(dry_run.describe(options.run, options.run.mesh.build()))
            return
        try:
            train(options, console)
        except NonFiniteError as error:
            log.error("%s", error)
            sys.exit(1)


if __name__ == "__main__":
    exit_on_user_error(main)
