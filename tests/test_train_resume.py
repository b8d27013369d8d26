"""A run that is killed, stopped or complete goes on exactly as if nothing had happened."""

import json
import random
import signal
import time

import pytest

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
