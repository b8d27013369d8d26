"""Which laws `make test` runs: all of them, on the default of one mixer of every kind."""

import pytest

from tests.laws.cases import Case

# Softmax attention, and the sum over keys with a decay that Mamba-2 and linear attention share.
# Compiling all laws for all mixers takes far longer than a developer waits: the others are left to
# `make test-thorough`.
OFTEN = ("attention", "mamba2")


@pytest.hookimpl(tryfirst=True)  # before items are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
        if isinstance(case, Case) and (case.is_variant or case.config.key not in OFTEN):
            item.add_marker(pytest.mark.thorough)
