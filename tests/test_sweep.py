"""`python -m hybrid_lm.sweep`: what is run and what not, failures, signals, the table's numbers."""

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hybrid_lm import config as configs
from hybrid_lm import report as reports
from hybrid_lm.errors import UserError
from hybrid_lm.model import ModelConfig
from hybrid_lm.pattern import Plan
from hybrid_lm.results import LEFT_TO_EVALUATE, NOT_ASKED_FOR, Instrument, NotRun
from hybrid_lm.sweep import __main__ as command
from hybrid_lm.sweep import schedule, swaps
from hybrid_lm.sweep.runs import Run
from hybrid_lm.sweep.schedule import device_slots, run_all
from hybrid_lm.sweep.swaps import swapped_group
from tests.handmade import LENGTH, SPANS, nats_of, report_of, write_run

STUDY = """
from dataclasses import replace
from hybrid_lm import config as configs
from hybrid_lm.config import Sweep
from hybrid_lm.sweep import swaps

def sweep():
    base = configs.load("quickstart")
    base = replace(
        base,
        train=replace(base.train, steps=4),
        evaluation=replace(base.evaluation, length=300),
    )
    return Sweep({"base": base, **swaps(base, "linear")}, seeds=(0, 1))
"""
POINTS = ("base", "early-as-linear", "middle-as-linear", "deep-as-linear")
SHIFTS = dict(zip(POINTS, (0.0, 3.0, 6.0, -3.0), strict=True))  # nats per octave of a document


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.py"
    path.write_text(STUDY)
    return path


@pytest.fixture
def call(monkeypatch, run_main):
    monkeypatch.setattr(command.jax.config, "update", lambda *setting: None)
    return partial(run_main, command)


def write_runs(study, directory):
    """All runs of the study, finished; the second seed is worse by 0.3 nats per octave."""
    for name, config in configs.load_sweep(str(study)).points.items():
        for seed in (0, 1):
            train = dataclasses.replace(config.train, seed=seed)
            write_run(
                directory / f"{name}-seed{seed}",
                report_of(nats_of(seed) + SHIFTS[name] + 0.3 * seed),
                config=dataclasses.replace(config, train=train),
            )


def test_swaps_replace_the_mixers_of_one_group():
    mixers = configs.load("quickstart").model.mixers
    base = configs.Config(ModelConfig("a: attn*2; b: (mamba, attn)*2; c: linear*3", mixers))
    points = swaps(base, "linear")
    assert {name: point.model.layers for name, point in points.items()} == {
        "a-as-linear": "a: linear*2; b: (mamba, attn)*2; c: linear*3",
        "b-as-linear": "a: attn*2; b: linear*4; c: linear*3",
    }
    assert [swapped_group(base, point) for point in points.values()] == ["a", "b"]
    assert swapped_group(base, base) is None
    longer = dataclasses.replace(base.train, steps=base.train.steps + 1)
    assert swapped_group(base, dataclasses.replace(points["a-as-linear"], train=longer)) is None
    with pytest.raises(UserError, match="unknown mixer 'lineer'; did you mean 'linear'"):
        swaps(base, "lineer")


def test_the_points_of_the_placement_study_differ_in_the_place_of_attention_alone():
    study = configs.load_sweep("placement")
    stacks = {}
    for name, config in study.points.items():
        plan = Plan.parse(config.model.layers, config.model.mixers)
        keys = [key for group in plan.groups for key in group.unit * group.repeats]
        stacks[name] = (len(keys), [i for i, key in enumerate(keys) if key == "attn"])
        layers = study.points["none"].model.layers
        model = dataclasses.replace(config.model, layers=layers)
        assert dataclasses.replace(config, model=model) == study.points["none"]
    assert stacks == {
        "none": (12, []),
        "early": (12, [0, 1]),
        "middle": (12, [5, 6]),
        "spread": (12, [3, 8]),
        "late": (12, [10, 11]),
    }


def test_a_finished_study_prints_its_table_and_runs_nothing(study, tmp_path, call, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(schedule.subprocess, "Popen", refuse)
    write_runs(study, tmp_path / "runs")
    code, printed, error = call("--config", study, "--sweep-dir", tmp_path / "runs")
    assert code == 0, error
    record = json.loads((tmp_path / "runs" / "sweep.json").read_text())
    (table,) = record["tables"]
    assert table["length"] == LENGTH
    assert [row["name"] for row in table["points"]] == list(POINTS)
    for row in table["points"]:
        assert row["seeds"] == [0, 1]
        by_seed = [
            (nats_of(seed) + SHIFTS[row["name"]] + 0.3 * seed).sum(axis=1).mean() / LENGTH
            for seed in (0, 1)
        ]
        assert row["nll_by_seed"] == pytest.approx(by_seed)
        assert row["nll"] == pytest.approx(np.mean(by_seed))
        assert [group["knockout_nll"] for group in row["groups"]] == [0.412, 10.5, -0.0004]
        if row["name"] == "base":
            assert row["difference"] is None
            continue
        # Seeds and documents all agree, so that the intervals are of width 0.
        expected = SHIFTS[row["name"]] * len(SPANS) / LENGTH
        assert row["difference"]["delta_nll"] == pytest.approx(expected)
        assert row["difference"]["ci95"] == pytest.approx([expected, expected])
        assert row["difference"]["win_rate"] == float(expected < 0)
        assert f"{expected:+.4f} ± 0.0000" in printed
        assert [bucket["delta_nll"] for bucket in row["difference"]["buckets"]] == pytest.approx(
            [SHIFTS[row["name"]] / (end - start) for start, end in SPANS]
        )
    assert [swap["group"] for swap in table["swaps"]] == ["early", "middle", "deep"]
    (ranks,) = table["rank_correlations"]  # 0.412, 10.5, -0.0004 rank as 3, 6, -3 do
    assert (ranks["instrument"], ranks["swaps"], ranks["rho"]) == ("knock-out (skip)", 3, 1.0)
    assert ranks["p_value"] == pytest.approx(1 / 3)
    line = "knock-out (skip) and the cost of the swap: +1.00 over 3 swaps (p = 0.33)"
    assert line in " ".join(printed.split())
    markdown = (tmp_path / "runs" / "sweep.md").read_text()
    assert line in markdown
    assert f"by position](sweep-length{LENGTH}.png)" in markdown
    figure = (tmp_path / "runs" / f"sweep-length{LENGTH}.png").read_bytes()
    assert figure.startswith(b"\x89PNG")
    assert max(map(len, printed.splitlines()[:-1])) <= 100


def test_another_baseline_and_fewer_seeds(study, tmp_path, call):
    write_runs(study, tmp_path / "runs")
    options = ("--config", study, "--sweep-dir", tmp_path / "runs")
    assert call(*options, "--baseline", "deep-as-linear", "--seeds", "1")[0] == 0
    record = json.loads((tmp_path / "runs" / "sweep.json").read_text())
    assert (record["baseline"], record["seeds"]) == ("deep-as-linear", [1])
    base = record["tables"][0]["points"][0]
    assert base["difference"]["delta_nll"] == pytest.approx(3 * len(SPANS) / LENGTH)
    assert base["difference"]["seeds"] == 1
    (swap,) = record["tables"][0]["swaps"]  # the others differ from it in two groups
    assert (swap["point"], swap["group"]) == ("base", "deep")
    assert record["tables"][0]["rank_correlations"] == []


def test_a_dry_run_says_what_is_done_and_writes_nothing(study, tmp_path, call):
    config = configs.load(f"{study}:early-as-linear")
    write_run(tmp_path / "runs" / "early-as-linear-seed0", report_of(nats_of(0)), config=config)
    begun = write_run(tmp_path / "runs" / "base-seed0", report_of(nats_of(0)), losses=[3.0])
    config = configs.load(f"{study}:base")
    (begun / "config.json").write_text(json.dumps(configs.to_json(config)))
    (begun / "report" / "report.json").unlink()
    before = sorted(tmp_path.rglob("*"))
    options = ("--config", study, "--sweep-dir", tmp_path / "runs", "--dry-run")
    code, printed, _ = call(*options, "--only", "base,early-as-linear", "--train.batch-size", 2)
    assert code == 0
    text = " ".join(printed.split())
    assert "0 at step 2, 1 left" in text
    assert "0 done, 1 left" in text
    assert "deep-as-linear" not in text
    tokens = 4 * 2 * config.train.length
    assert f"4 runs, 1 done; {2.5 * tokens:,.0f} of {4 * tokens:,} tokens left" in text
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "base,deap"], "no point 'deap'"),
        (["--baseline", "bsae"], "no point 'bsae'; did you mean 'base'?"),
        (["--seeds", "0,x"], "--seeds '0,x'"),
        (["--seeds", "1,1"], "seeds (1, 1)"),
        (["--parallel", "0"], "--parallel is 0"),
        (["--paralel", "2"], "did you mean --parallel?"),
        (["--train.stesp", "2"], "did you mean --train.steps?"),
        (["--train.seed", "2"], "given with --seeds"),
        (["--run-dir", "x"], "unknown option '--run-dir'"),
        (["--train.steps", "0"], "train.steps is 0"),
        (["--dry-run", "--data.source", "no/such/place"], "no such file or directory"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(study, tmp_path, call, options, message):
    code, printed, error = call("--config", study, "--sweep-dir", tmp_path / "runs", *options)
    assert (code, printed) == (2, "")
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_study_is_refused(study, tmp_path, call):
    unknown = tmp_path / "unknown.py"
    unknown.write_text(study.read_text().replace("seeds=", 'instruments=("knokout",), seeds='))
    for args, message in [
        ([], "no --config"),
        (["--config", "quickstart"], "no attribute 'sweep'"),
        (["--config", "quikstart"], "did you mean 'quickstart'?"),
        (["--config", unknown], "no instrument 'knokout'"),
    ]:
        code, _, error = call(*args)
        assert code == 2
        assert message in error


def test_what_comes_next(study, tmp_path):
    """Training, then every length with the instruments, unless they ran or say why they cannot."""
    config = configs.load(f"{study}:base")
    path = tmp_path / "base-seed0"
    run = Run("base", 0, config, path, ("--config", "x"), (LENGTH, 600), ("knockout", "shapley"))
    assert run.next_command()[1:] == ["-m", "hybrid_lm.train", "--config", "x"]
    nats = nats_of(0)
    left = tuple(NotRun(name, LEFT_TO_EVALUATE) for name in ("knockout", "shapley"))
    write_run(path, report_of(nats, not_run=left), config=config)
    evaluate = ["-m", "hybrid_lm.evaluate", str(path), "--length", "300"]
    assert run.next_command()[1:] == [*evaluate, "--only", "table,knockout,shapley"]
    ran = (Instrument("knockout", "caveat", "protocol"),)
    half = report_of(nats, instruments=ran, not_run=(NotRun("shapley", NOT_ASKED_FOR),))
    reports.write(half, path / "report")
    assert run.next_command()[1:] == [*evaluate, "--only", "table,knockout,shapley"]
    whole = report_of(nats, instruments=ran, not_run=(NotRun("shapley", "more than 6 groups"),))
    reports.write(whole, path / "report")
    assert run.next_command()[5] == "600"
    reports.write(whole, path / "report-length600")
    assert run.next_command() is None
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=6))
    assert "hybrid_lm.train" in dataclasses.replace(run, config=longer).next_command()


def test_runs_of_another_config_are_left_alone(study, tmp_path, call):
    write_runs(study, tmp_path / "runs")
    options = ("--config", study, "--sweep-dir", tmp_path / "runs", "--train.batch-size", 1)
    code, _, error = call(*options)
    assert code == 2
    assert "train.batch_size is 2 there and 1 here; name another directory with --swe" in error
    assert not (tmp_path / "runs" / "sweep.md").exists()


@dataclasses.dataclass
class Script:
    """Stands for a run: Python programs, one after the other; each is done if it exits with 0."""

    name: str
    directory: Path
    programs: list[str]

    @property
    def log(self):
        return self.directory / f"{self.name}.log"

    def next_command(self):
        for i, program in enumerate(self.programs):
            done = self.directory / f"{self.name}.{i}"
            if not done.exists():
                finish = f"open({str(done)!r}, 'w').close()"
                return [sys.executable, "-S", "-c", f"{program}\n{finish}"]
        return None


def run_scripts(scripts, parallel=1, on_poll=lambda working: None):
    return run_all(scripts, device_slots(parallel), on_poll=on_poll)


@pytest.fixture
def quick_polls(monkeypatch):
    monkeypatch.setattr(schedule, "POLL_S", 0.01)


def test_a_failed_run_stops_no_other(tmp_path, quick_polls):
    """Its last error line is kept; a second sweep tries it again and nothing else."""
    fails = "import sys; print('error: no such corpus'); print('more'); sys.exit(2)"
    scripts = [
        Script("bad", tmp_path, ["print('once')", fails]),
        Script("worse", tmp_path, ["raise ValueError('line')"]),
        Script("killed", tmp_path, ["import os; os.kill(os.getpid(), 9)"]),
        Script("silent", tmp_path, ["import os; os._exit(0)"]),
        Script("good", tmp_path, ["print('a')", "print('b')"]),
    ]
    errors, stopped = run_scripts(scripts)
    assert not stopped
    assert errors == {
        "bad": "no such corpus",
        "worse": "ValueError: line",
        "killed": "ended by SIGKILL",
        "silent": "ended before its end, with exit code 0",
    }
    assert scripts[-1].log.read_text() == "a\nb\n"
    assert run_scripts(scripts)[0].keys() == errors.keys()
    assert scripts[-1].log.read_text() == "a\nb\n"
    assert scripts[0].log.read_text().count("once") == 1


def test_a_run_directory_that_cannot_be_read_stops_no_other(tmp_path, quick_polls):
    class Unreadable(Script):
        def next_command(self):
            raise UserError("report.json cannot be read")

    good = Script("good", tmp_path, ["print('ran')"])
    errors, _ = run_scripts([Unreadable("bad", tmp_path, []), good])
    assert errors == {"bad": "report.json cannot be read"}
    assert good.log.read_text() == "ran\n"


def test_several_at_a_time(tmp_path, quick_polls):
    scripts = [Script(str(i), tmp_path, ["import time; time.sleep(0.2)"]) for i in range(4)]
    working = []
    errors, _ = run_scripts(scripts, 2, lambda runs: working.append([run.name for run in runs]))
    assert errors == {}
    assert max(map(len, working)) == 2
    assert ["2", "3"] in [sorted(names) for names in working]


def test_each_of_several_has_a_gpu(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert device_slots(1) == [{}]
    assert device_slots(2) == [{"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    with pytest.raises(UserError, match=r"--parallel 4, but 3 GPU\(s\)"):
        device_slots(4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_slots(4) == [{}] * 4


def test_a_process_that_outlived_an_earlier_sweep_is_waited_for(tmp_path, quick_polls):
    """Its end is what the waiting one sees: it does not do the same again."""
    program = "import time; print('up', flush=True); time.sleep(0.5)"
    script = Script("outlived", tmp_path, [program, "print('next')"])
    with script.log.open("ab") as output:
        fcntl.flock(output, fcntl.LOCK_EX)
        outlived = subprocess.Popen(script.next_command(), stdout=output, stderr=output)
    errors, _ = run_scripts([script])
    assert outlived.wait(timeout=10) == 0
    assert errors == {}
    assert script.log.read_text() == "up\nnext\n"


def test_a_signal_is_passed_on_and_nothing_more_is_started(tmp_path, quick_polls):
    saves = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(print('saved')))\n"
    saves += "print('up', flush=True); time.sleep(60)"
    scripts = [Script("first", tmp_path, [saves]), Script("second", tmp_path, ["print('ran')"])]

    def stop_when_up():
        while not scripts[0].log.exists() or "up" not in scripts[0].log.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_up).start()
    errors, stopped = run_scripts(scripts)
    assert (errors, stopped) == ({}, True)
    assert "saved" in scripts[0].log.read_text()
    assert not scripts[1].log.exists()
