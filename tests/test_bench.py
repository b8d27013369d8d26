"""The bench of the mixers: programs compiled in other processes run in this one."""

import json
import math
import os
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest

from hybrid_lm.bench.mixers import MEASURES, Mixers
from hybrid_lm.bench.processes import in_processes
from hybrid_lm.bench.results import publish
from hybrid_lm.errors import UserError


@pytest.mark.thorough
def test_every_case_is_timed():
    rows = Mixers(width=16, lengths=(8, 16), dtype="float32", only=("conv",)).rows()
    assert [(row["mixer"], row["length"]) for row in rows] == [("conv", 8), ("conv", 16)]
    for row in rows:
        assert 0 < row["forward ms"] < math.inf
        assert 0 < row["forward + backward ms"] < math.inf


@pytest.mark.thorough
def test_what_a_process_refuses_is_said_here():
    with pytest.raises(UserError, match="divide the width 24"):
        Mixers(width=24, lengths=(8,), only=("gla",)).rows()


def test_an_unknown_mixer_is_named():
    with pytest.raises(UserError, match="no mixer 'glu'"):
        Mixers(only=("glu",)).rows()


def _fails_or_dies(case: str) -> str:
    if case == "dies":
        os._exit(1)
    if case == "fails":
        raise ValueError("of all things")
    return case


@pytest.mark.thorough
def test_what_fails_or_dies_stops_no_other():
    fine, failed, died, last = in_processes(
        _fails_or_dies, [("fine",), ("fails",), ("dies",), ("last",)]
    )
    assert (fine, last) == ("fine", "last")
    assert isinstance(failed, ValueError)
    assert isinstance(died, BrokenProcessPool)


def test_a_failed_program_is_told_in_its_row():
    row = Mixers(width=16, dtype="float32")._row("conv", 8, [], RuntimeError("RESOURCE_EXHAUSTED"))
    assert row == {"mixer": "conv", "length": 8} | dict.fromkeys(list(row)[2:], "out of memory")


def _row(mixer: str, length: int, ms: float | str) -> dict[str, object]:
    measures = {f"{measure} {unit}": ms for measure in MEASURES for unit in ("ms", "MiB")}
    return {"mixer": mixer, "length": length} | measures


def test_rows_are_added_to_those_of_the_same_device_and_settings(tmp_path: Path):
    form = Mixers(width=16).form()
    publish("bench", [_row("conv", 8, 1.0), _row("gla", 8, 2.0)], tmp_path, form)
    publish("bench", [_row("gla", 8, 0.5), _row("gla", 16, "failed")], tmp_path, form)
    kept = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert kept["rows"] == [_row("conv", 8, 1.0), _row("gla", 8, 0.5), _row("gla", 16, "failed")]
    text = (tmp_path / "bench.md").read_text(encoding="utf-8")
    assert "| mixer | 8 ms | 8 MiB | 16 ms | 16 MiB |" in text
    assert "| conv | 1 | 1 | – | – |" in text
    assert "| gla | 0.5 | 0.5 | failed | failed |" in text

    publish("bench", [_row("conv", 8, 3.0)], tmp_path, Mixers(width=32).form())
    kept = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert kept["rows"] == [_row("conv", 8, 3.0)]
