"""Eight CPU devices in every test process, so that sharding is tested without accelerators."""

import os
import sys

# Tests compile for longer than they compute: generate code in one piece, barely optimised.
_FAST_COMPILE = "--xla_cpu_parallel_codegen_split_count=1 --xla_backend_optimization_level=1"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FAST_COMPILE}".strip()

import jax  # noqa: E402
import pytest  # noqa: E402

from hybrid_lm.errors import exit_on_user_error  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture
def float64():
    """Arithmetic in float64, for what is algebra: there, rounding hides nothing."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def browser():
    """Chromium, for tests marked `tests.browser.needs_browser`."""
    from playwright.sync_api import sync_playwright

    from tests.browser import CHROMIUM

    with sync_playwright() as playwright:
        # In a container there is neither a sandbox for root nor much shared memory.
        args = ["--no-sandbox", "--disable-dev-shm-usage"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=args)


@pytest.fixture
def opened(browser, pages):
    """Opens a page of the module's fixture ``pages``.

    What goes wrong in it, and what it loads, is in ``.trouble``.
    """
    contexts = []

    def open_page(name, width=1400, mode="light"):
        contexts.append(browser.new_context(viewport=dict(width=width, height=900)))
        tab = contexts[-1].new_page()
        tab.emulate_media(color_scheme=mode)
        tab.trouble = []
        address = (pages / f"{name}.html").as_uri()
        tab.on("console", lambda message: tab.trouble.append(message.text))
        tab.on("pageerror", lambda error: tab.trouble.append(str(error)))
        tab.on("request", lambda r: r.url == address or tab.trouble.append(r.url))
        tab.goto(address)
        tab.wait_for_selector("html[data-drawn]", state="attached")
        return tab

    yield open_page
    for context in contexts:
        context.close()


@pytest.fixture
def run_main(monkeypatch, capsys):
    """Run a command's main; (exit code, standard output, standard error)."""

    def run(command, *args):
        monkeypatch.setattr(sys, "argv", ["command", *map(str, args)])
        code = 0
        try:
            exit_on_user_error(command.main)
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run
