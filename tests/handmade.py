"""Finished runs written by hand, with reports whose numbers are chosen."""

import dataclasses
import json

import numpy as np

from hybrid_lm import config as configs
from hybrid_lm import report as reports
from hybrid_lm.metrics import Row
from hybrid_lm.octaves import octaves
from tests.test_report import make_report

LENGTH, DOCUMENTS = 300, 6
SPANS = octaves(LENGTH)


def report_of(nats, **changes):
    """A report with the given NLL sums [documents][octaves]."""
    nats = np.asarray(nats)
    return dataclasses.replace(
        make_report(LENGTH, LENGTH),
        documents=len(nats),
        nll=float(nats.sum() / nats.shape[0] / LENGTH),
        step=4,
        document_nats=tuple(map(tuple, nats.tolist())),
        document_indices=tuple(range(len(nats))),
        document_names=tuple(map(str, range(len(nats)))),
        **changes,
    )


def nats_of(seed, shift=0.0):
    widths = np.array([end - start for start, end in SPANS])
    return np.random.default_rng(seed).normal(2 + shift, 0.1, (DOCUMENTS, len(SPANS))) * widths


def write_run(
    path,
    report,
    *,
    config=None,
    losses=(3.0, 2.0),
    tokens=100,
    step_ms=10.0,
    bytes_per_token=2,
    report_name="report",
):
    """A run of two steps per loss, with one report."""
    path.mkdir(parents=True)
    config = config or configs.load("quickstart")
    (path / "config.json").write_text(json.dumps(configs.to_json(config)))
    split = {"tokens": 110, "documents": 10, "bytes": 100 * bytes_per_token}
    (path / "corpus.json").write_text(json.dumps({"splits": {"train": split}}))
    rows = [
        Row(2 * i, loss, 1.0, 1e-3, tokens * i, 2e3 * tokens / step_ms, step_ms, 0.1)
        for i, loss in enumerate(losses, start=1)
    ]
    lines = [json.dumps(dataclasses.asdict(row)) for row in rows]
    (path / "metrics.jsonl").write_text("\n".join([*lines, lines[-1][:9]]))
    reports.write(report, path / report_name)
    return path
