"""The JSON schema of ``report.json``: ``report_schema.json`` beside this file.

``python -m hybrid_lm.results.schema`` writes it anew from the dataclasses.
"""

import json
from pathlib import Path

from hybrid_lm.results.report import adapter

PATH = Path(__file__).with_name("report_schema.json")


def schema_text() -> str:
    """What the file must hold (JSON Schema, draft 2020-12)."""
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(draft | adapter().json_schema(mode="serialization"), indent=2) + "\n"


if __name__ == "__main__":
    PATH.write_text(schema_text(), encoding="utf-8")
