"""The files of numbers: one line per step, cut back where a run resumes."""

import dataclasses
import io
import json
import logging
import struct

import pytest
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event, SessionLog

from hybrid_lm.metrics import MetricsLog, Row
from hybrid_lm.progress import Progress, log_to
from hybrid_lm.report import write_events
from hybrid_lm.throughput import Stopwatch
from tests.test_report import REPORT

# 3 pixels wide, 2 high: the signature and the start of the header are all that is read.
PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 3, 2)


class Directory:
    def __init__(self, path):
        self.metrics, self.tensorboard = path / "metrics.jsonl", path / "tensorboard"


def row(step):
    return Row(step, 1.0 / step, 2.0, 3e-4, 100 * step, 5e3, 6.5, 0.25)


def events(directory):
    """The TensorBoard events of all files, oldest first (length, check sum, data, check sum)."""
    found = []
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + size]))
            content = content[16 + size :]
    return found


def test_lines_after_the_resumed_step_are_dropped_and_so_is_half_a_line(tmp_path):
    directory = Directory(tmp_path)
    log = MetricsLog(directory, 0)
    for step in range(1, 6):
        log.write(row(step), {"groups/early": 0.5})
    log.close()
    with directory.metrics.open("a") as file:
        file.write('{"step": 6, "lo')
    log = MetricsLog(directory, 3)
    log.write(row(4), {})
    log.close()
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[1] == {
        **{"step": 2, "loss": 0.5, "grad_norm": 2.0, "learning_rate": 3e-4, "tokens": 200},
        **{"tokens_per_s": 5e3, "step_ms": 6.5, "mfu": 0.25},
    }
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_tensorboard_gets_scalars_norms_and_the_report_and_forgets_later_steps(tmp_path):
    directory = Directory(tmp_path)
    log = MetricsLog(directory, 7)
    log.write(row(8), {"groups/early": 0.5})
    scalars, images = {"group/early/knockout_nats": 0.125}, {"figure/exits": PNG}
    log.board.add_report(8, scalars, "| the | table |", images)
    log.close()
    found = events(directory.tensorboard)
    starts = [e for e in found if e.session_log.status == SessionLog.START]
    assert [start.step for start in starts] == [8]
    values = {v.tag: (e.step, v) for e in found for v in e.summary.value}
    assert values["train/loss"][0] == 8
    assert values["train/loss"][1].simple_value == 0.125
    assert values["grad_norm/groups/early"][1].simple_value == 0.5
    assert values["group/early/knockout_nats"][1].simple_value == 0.125
    (text,) = [v for tag, (_, v) in values.items() if tag.startswith("report")]
    assert text.tensor.string_val[0] == b"| the | table |"
    image = values["figure/exits"][1].image
    assert (image.width, image.height, image.encoded_image_string) == (3, 2, PNG)


def test_an_evaluation_replaces_the_events_of_the_one_before(tmp_path):
    for step in (3000, 4000):
        write_events(dataclasses.replace(REPORT, step=step), tmp_path)
    found = {v.tag: (e.step, v) for e in events(tmp_path / "tensorboard") for v in e.summary.value}
    assert {step for step, _ in found.values()} == {4000}
    assert found["eval/bits_per_byte"][1].simple_value == pytest.approx(REPORT.bits_per_byte)
    images = {tag for tag, (_, value) in found.items() if value.HasField("image")}
    assert images == {"figure/positions", "figure/knockout", "figure/exits"}


def test_pauses_do_not_count_as_training(monkeypatch):
    # Two steps of 2 s, an evaluation, a third step; then one of 1 s.
    clock = iter([0.0, 2.0, 4.0, 1000.0, 1002.0, 1003.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    watch.start()
    watch.step_done(100)
    watch.step_done(100)
    watch.start()
    watch.step_done(100)
    assert watch.rate() == (50.0, 2000.0)
    watch.step_done(30)
    assert watch.rate() == (30.0, 1000.0)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_shows_the_numbers_on_a_terminal_and_in_a_log(is_terminal):
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=150)
    with log_to(console):
        with Progress(console, step=0, steps=100, evaluate_every=40) as progress:
            progress.evaluating(3, 7)
            progress.step(50)
            progress.row(row(50))
        logging.getLogger("hybrid_lm.anything").info("a line")
    printed = console.file.getvalue()
    assert "a line" in printed
    for text in ("50/100", "5,000 tokens/s", "MFU 25.0%", "0:00:00 left", "evaluation in 30"):
        assert text in printed
