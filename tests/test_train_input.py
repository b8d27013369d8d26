"""Input that cannot be used: one clear line, exit code 2, nothing written, before any training."""

import json
import logging

import pytest

from hybrid_lm import compilation_cache, train
from hybrid_lm import config as configs
from hybrid_lm.data.prepare import prepare
from hybrid_lm.errors import exit_on_user_error
from hybrid_lm.run_dir import RunDir
from tests import runs


@pytest.fixture(scope="module")
def config_path(tmp_path_factory):
    return runs.write_config(tmp_path_factory.mktemp("input"))


@pytest.fixture
def command(config_path, monkeypatch, capsys):
    """Run the command; (exit code, standard output, standard error)."""
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)

    def run(*options):
        args = ["--config", str(config_path), *map(str, options)]
        code = 0
        try:
            exit_on_user_error(lambda: train.main(args))
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def refused(result, message):
    code, printed, errors = result
    assert code == 2
    assert printed == ""
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.layers", "a: lim*2"], "unknown mixer 'lim'; did you mean 'lin'?"),
        (["--model.layers", "a: lin*2, (lin"], "expected ')'"),
        (["--model.mixers.lin.heads", "3"], "heads 3 does not divide width 16"),
        (["--data.source", "no/such/place"], "no such file or directory"),
        (["--mesh.data", "3"], "2 rows at a time (train.batch_size / train.accumulate)"),
        (["--mesh.data", "9"], "does not fit 8 device(s)"),
        (["--train.length", "0"], "train.length is 0"),
        (["--train.stops", "5"], "unknown option '--train.stops'; did you mean --train.steps?"),
        (["--evaluation.length", "100000"], "validation split has 0 document(s) of at least"),
        (["--train.implementation.ssd", "cuda"], "--train.implementation.ssd"),
        (["--model.layers", "a: attn", "--train.implementation.attention", "cudnn"], "cannot run"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_run_exists(command, tmp_path, options, message):
    refused(command("--run-dir", tmp_path / "run", *options), message)
    assert list(tmp_path.iterdir()) == []


def test_a_caret_points_at_an_unknown_mixer(command, tmp_path):
    options = ("--run-dir", tmp_path / "run", "--model.layers", "a: lin*2, lim")
    *_, pattern, caret = refused(command(*options), "unknown mixer").splitlines()
    assert pattern[caret.index("^") :] == "lim"


def test_an_empty_corpus_is_refused(command, tmp_path):
    (tmp_path / "empty").mkdir()
    result = command("--run-dir", tmp_path / "run", "--data.source", tmp_path / "empty")
    refused(result, "no .txt, .jsonl or .parquet file")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_directory_with_other_things_in_it_is_refused(command, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(command("--run-dir", tmp_path), "exists and is no run directory")
    refused(command("--run-dir", tmp_path / "thesis.tex"), "exists and is no run directory")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.fixture
def existing(config_path, tmp_path):
    config = configs.load(str(config_path))
    return RunDir.create(tmp_path / "run", config, prepare(config.data))


def content(run_dir):
    return {path: path.read_bytes() for path in run_dir.path.rglob("*") if path.is_file()}


def test_a_run_of_another_config_is_refused_naming_the_fields(command, existing):
    before = content(existing)
    options = ("--train.steps", "99", "--model.mixers.lin.heads", "4")
    message = (
        "another config: model.mixers.lin.heads is 2 there and 4 here; "
        "train.steps is 24 there and 99 here"
    )
    refused(command("--run-dir", existing.path, *options), message)
    assert content(existing) == before


def test_a_run_on_documents_that_have_changed_is_refused(command, existing):
    manifest = json.loads((existing.path / "corpus.json").read_text())
    manifest["splits"]["train"]["sha256"] = "0" * 64
    (existing.path / "corpus.json").write_text(json.dumps(manifest))
    before = content(existing)
    refused(command("--run-dir", existing.path), "was trained on other documents")
    assert content(existing) == before


def test_a_run_that_is_being_trained_is_refused(command, existing):
    with existing.locked():
        refused(command("--run-dir", existing.path), "another process is training this run")


def test_a_run_directory_holds_what_made_it(existing, config_path):
    config = configs.load(str(config_path))
    assert existing.config() == config
    assert existing.tokenizer().decode(existing.tokenizer().encode("ölçü")) == "ölçü"
    assert existing.reported_step() is None
    assert logging.getLogger("hybrid_lm").propagate
