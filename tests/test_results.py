"""report.json: its committed schema, and reports of before and after a new key."""

import copy
import json

import jsonschema
import pytest

from hybrid_lm.results import Report
from hybrid_lm.results.schema import PATH, schema_text
from tests.test_report import REPORT

SCHEMA = json.loads(PATH.read_text(encoding="utf-8"))


def test_the_committed_schema_is_that_of_the_dataclasses():
    assert PATH.read_text(encoding="utf-8") == schema_text(), (
        "run python -m hybrid_lm.results.schema"
    )
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_a_report_keeps_to_the_schema():
    record = REPORT.to_json()
    jsonschema.validate(record, SCHEMA)
    for path, value in [(["nll"], "low"), (["groups", 0, "knockout", "ci95"], [0.1])]:
        wrong = copy.deepcopy(record)
        place = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, SCHEMA)


def test_a_report_without_the_instruments_and_one_with_unknown_keys_can_be_read():
    record = REPORT.to_json()
    new = ["document_nats", "document_bytes", "seeds", "versions", "entry_nll", "lens_entry_nll"]
    new += ["correction", "shapley", "token_classes", "scoring", "instruments", "not_run"]
    for key in new:
        del record[key]
    for group in record["groups"]:
        del group["knockout"]["adjusted_p"]
        for key in ("exit_gain", "knockout_mean", "control", "field", "lens", "shapley"):
            del group[key]
    jsonschema.validate(record, SCHEMA)
    assert Report.from_json(record) == REPORT
    assert Report.from_json(record | {"of_a_later_version": 1}) == REPORT
