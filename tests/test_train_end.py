"""How a run that goes wrong ends, in this process."""

import jax
import numpy as np
import pytest

from hybrid_lm import compilation_cache, train
from hybrid_lm.mixers import Linear
from tests import runs


@pytest.fixture(autouse=True)
def quick_compilation():
    """Tiny programs take far longer to compile than to run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_a_step_that_is_not_finite_exits_1_and_keeps_its_batch(tmp_path, monkeypatch, capsys):
    """Of a mixer that cannot pack, whose rows hold one document each."""
    monkeypatch.setattr(compilation_cache, "enable", lambda: None)
    monkeypatch.setattr(Linear, "packable", False)
    run_dir = tmp_path / "run"
    command = ["--config", str(runs.write_config(tmp_path)), "--run-dir", str(run_dir)]
    with pytest.raises(SystemExit) as stop:
        train.main([*command, "--optimizer.learning-rate", "1e38"])
    errors = capsys.readouterr().err
    assert stop.value.code == 1
    assert "rows are not packed" in errors
    assert "step 1 is not finite" in errors
    assert "first not finite: the update at learning rate 2e+37" in errors
    assert "groups/all" in errors
    assert runs.rows(run_dir) == []
    assert list((run_dir / "checkpoints").iterdir()) == []
    with np.load(run_dir / "nonfinite-step-1-process-0.npz") as batch:
        assert batch["tokens_BL"].shape == (4, 32)
        assert batch["segment_ids_BL"].max() == 1
