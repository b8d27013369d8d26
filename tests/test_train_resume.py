"""A run that is killed, stopped or complete goes on exactly as if nothing had happened."""

import json
import random
import signal
import socket
import time

import pytest

from hybrid_lm import compilation_cache, train
from tests import runs

STEPS = 24


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return runs.write_config(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def uninterrupted(config):
    run_dir = config.parent / "uninterrupted"
    printed, errors = runs.start(config, run_dir).communicate(timeout=240)
    assert "without it" in printed, errors
    assert [step for step, _ in runs.losses(run_dir)] == list(range(1, STEPS + 1))
    return run_dir


def wait_for_step(process, run_dir, step):
    while process.poll() is None:
        if len(runs.losses(run_dir)) >= step:
            return
        time.sleep(0.002)
    raise AssertionError(process.communicate())


def test_killed_at_any_step_it_repeats_every_loss_bit_for_bit(config, uninterrupted):
    """Checkpoints follow one another so closely that a kill may fall into one."""
    run_dir = config.parent / "killed"
    steps = sorted(random.Random(0).sample(range(3, STEPS - 4), 2))
    for step in steps:
        process = runs.start(config, run_dir)
        wait_for_step(process, run_dir, step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert len(runs.losses(run_dir)) >= step
    process = runs.start(config, run_dir)
    printed, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "resuming" in errors
    assert runs.losses(run_dir) == runs.losses(uninterrupted)
    assert [r["tokens"] for r in runs.rows(run_dir)] == [
        r["tokens"] for r in runs.rows(uninterrupted)
    ]
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"22", "24"}
    report = json.loads((run_dir / "report" / "report.json").read_text())
    whole = json.loads((uninterrupted / "report" / "report.json").read_text())
    assert report["nll"] == whole["nll"]
    assert report["step"] == STEPS
    assert f"step {STEPS}" in printed


def test_a_signal_saves_and_exits_0_and_the_run_goes_on(config, uninterrupted):
    run_dir = config.parent / "signalled"
    process = runs.start(config, run_dir, "--train.checkpoint-every", "1000")
    wait_for_step(process, run_dir, 5)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    done = len(runs.losses(run_dir))
    assert 5 <= done < STEPS
    assert f"stopped and saved after step {done}; the same command goes on" in errors
    assert (run_dir / "checkpoints" / str(done)).is_dir()
    assert runs.losses(run_dir) == runs.losses(uninterrupted)[:done]


def test_a_complete_run_prints_its_table_again(config, uninterrupted, monkeypatch, capsys):
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    train.main(["--config", str(config), "--run-dir", str(uninterrupted)])
    printed, errors = capsys.readouterr()
    assert "without it" in printed
    assert f"is complete: {STEPS} steps" in errors
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


@pytest.mark.thorough
def test_two_processes_train_stop_together_and_go_on(config):
    """A signal to one of them saves and ends both."""
    run_dir = config.parent / "two"
    options = ("--mesh.data", "-1", "--train.steps", "150", "--evaluation.every", "1000")
    options += ("--train.checkpoint-every", "1000")

    def start_two():
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
        return [
            runs.start(
                config, run_dir, *options, env=dict(zip(names, (address, "2", str(i)), strict=True))
            )
            for i in range(2)
        ]

    first, second = start_two()
    wait_for_step(first, run_dir, 5)
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    done = len(runs.losses(run_dir))
    assert 5 <= done < 150
    assert (run_dir / "checkpoints" / str(done)).is_dir()
    first, second = start_two()
    printed, errors = first.communicate(timeout=240)
    second.communicate()
    assert f"resuming {run_dir} after step {done}" in errors
    assert "without it" in printed
    assert [step for step, _ in runs.losses(run_dir)] == list(range(1, 151))
