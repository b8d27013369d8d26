"""A sweep of real runs, stopped, killed and started again, ends as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hybrid_lm.errors import UserError
from hybrid_lm.run_dir import RunDir
from tests import runs

pytestmark = pytest.mark.thorough

STEPS = 24
SWEEP = """

def sweep():
    from dataclasses import replace
    from hybrid_lm.config import Sweep

    lin = config()
    attn = replace(lin, model=replace(lin.model, layers="all: attn"))
    broken = replace(lin, mesh=replace(lin.mesh, data=999))
    return Sweep({"lin": lin, "broken": broken, "attn": attn}, lengths=(48,))
"""


def environment(root):
    return os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(root / "xdg"),
    }


def start(study, directory):
    return subprocess.Popen(
        [
            *(sys.executable, "-W", "error", "-m", "hybrid_lm.sweep", "--config", str(study)),
            *("--sweep-dir", str(directory), "--parallel", "2"),
        ],
        env=environment(study.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(process, run_dir, step):
    while process.poll() is None:
        if len(runs.losses(run_dir)) >= step:
            return
        time.sleep(0.002)
    raise AssertionError(process.communicate())


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(study, its directory, what the last sweep printed): stopped, killed, then finished."""
    root = tmp_path_factory.mktemp("sweep")
    study = runs.write_config(root)
    study.write_text(study.read_text() + SWEEP)
    directory = root / "runs"

    process = start(study, directory)
    wait_for_step(process, directory / "lin-seed0", 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode in (0, 1), errors  # 1 if the broken point came first
    assert "stopped; the same command goes on from there" in errors
    assert 3 <= len(runs.losses(directory / "lin-seed0")) < STEPS

    process = start(study, directory)
    wait_for_step(process, directory / "attn-seed0", 1)
    process.kill()
    process.communicate()

    process = start(study, directory)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    return study, directory, printed


def test_losses_are_those_of_the_command_by_itself(swept):
    study, directory, _ = swept
    alone = study.parent / "alone"
    options = ("--config", f"{study}:lin", "--train.seed", "0", "--run-dir", str(alone))
    subprocess.run(
        [sys.executable, "-m", "hybrid_lm.train", *options],
        env=environment(study.parent),
        check=True,
        capture_output=True,
    )
    assert runs.losses(directory / "lin-seed0") == runs.losses(alone)
    for point in ("lin", "attn"):
        run = RunDir(directory / f"{point}-seed0")
        assert [step for step, _ in runs.losses(run.path)] == list(range(1, STEPS + 1))
        assert run.reported_step() == run.reported_step("report-length48") == STEPS


def test_a_failed_point_is_in_the_table_and_the_others_are_compared(swept):
    _, directory, printed = swept
    message = "mesh data=999 seq=1 model=1 does not fit 1 device(s)"
    assert f"broken-seed0: step 0 of {STEPS}, failed: {message}" in " ".join(printed.split())
    record = json.loads((directory / "sweep.json").read_text())
    assert [run["name"] for run in record["unfinished"]] == ["broken-seed0"]
    assert [table["length"] for table in record["tables"]] == [32, 48]
    for table in record["tables"]:
        lin, attn = table["points"]
        assert (lin["name"], attn["name"]) == ("lin", "attn")
        assert attn["difference"]["delta_nll"] == pytest.approx(attn["nll"] - lin["nll"])
        assert attn["difference"]["documents"] == table["documents"]


def test_what_is_done_is_not_done_again(swept):
    study, directory, _ = swept
    kept = {
        path: path.stat().st_mtime_ns
        for point in ("lin", "attn")
        for path in (directory / f"{point}-seed0").rglob("*")
    }
    process = start(study, directory)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert "lin-seed0: done" in errors
    with pytest.raises(UserError):
        RunDir(directory / "broken-seed0")
