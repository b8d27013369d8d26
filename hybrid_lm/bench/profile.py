"""Where the time of a program goes: its kernels, timed by the profiler, by named scope."""

import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

_INSTRUCTION = re.compile(r'%?([\w.-]+) = [^\n]*metadata=\{[^}\n]*?op_name="([^"]*)"')


def scopes(hlo: str) -> dict[str, str]:
    """``op_name`` of every instruction of an HLO module's text that has one."""
    return dict(_INSTRUCTION.findall(hlo))


def part_of(op_name: str, parts: Sequence[str]) -> str | None:
    """The innermost of ``parts`` that the path ``op_name`` of scopes goes through; None: none."""
    words = re.findall(r"[\w-]+", op_name)
    return next((word for word in reversed(words) if word in parts), None)


def device_ms(
    compiled: Any, run: Callable[[], Any], parts: Sequence[str], calls: int
) -> dict[str | None, float]:
    """Milliseconds that the kernels of ``compiled`` take per call, by part (None: of no part).

    A kernel that the compiler made of several operations counts where the one it is named after
    does. Nothing on devices whose kernels the profiler does not record.

    Args:
        run: calls ``compiled`` ``calls`` times and waits for the result.
        parts: names of scopes (`jax.named_scope`).
    """
    names = scopes(compiled.as_text())
    total: dict[str | None, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as directory:
        with jax.profiler.trace(directory):
            run()
        for path in Path(directory).rglob("*.xplane.pb"):
            profile = jax.profiler.ProfileData.from_file(str(path))
            for plane in profile.planes:
                if not plane.name.startswith("/device:GPU"):
                    continue
                for line in plane.lines:
                    for event in line.events if line.name.startswith("Stream") else ():
                        operation = str(dict(event.stats).get("hlo_op", ""))
                        part = part_of(names.get(operation, ""), parts)
                        total[part] += event.duration_ns / 1e6 / calls
    return dict(total)
