"""Document-tight: a packed row equals its documents run apart, in values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws.cases import (
    Case,
    cases,
    documents,
    packed_context,
    packed_rows,
    parameters,
    random_x,
    run,
)
from tests.numerics import assert_close, jit

BATCH, LENGTH = 3, 30
CASES = [case for case in cases() if case.config.packable]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_packed_rows_equal_their_documents_run_apart(case: Case):
    rng = np.random.default_rng(1)
    packed_ids_BL = packed_rows(rng, BATCH, LENGTH)
    spans = documents(packed_ids_BL)
    params = parameters(case.config)

    def apart(rows_BLx):
        """One document per row, zeros behind it."""
        cut = np.zeros((len(spans), *rows_BLx.shape[1:]), rows_BLx.dtype)
        for document, (row, start, stop) in enumerate(spans):
            cut[document, : stop - start] = rows_BLx[row, start:stop]
        return cut

    def together(rows_BLx):
        """Empty rows below, so that one program does both."""
        return np.pad(rows_BLx, [(0, len(spans) - BATCH)] + [(0, 0)] * (rows_BLx.ndim - 1))

    @jit
    def gradients(params, x_BLD, weight_BLD, ctx):
        def loss(params, x_BLD):
            y_BLD, _ = run(case.config, params, x_BLD, ctx)
            return jnp.sum(y_BLD * weight_BLD), y_BLD

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x_BLD)

    x_BLD = np.asarray(random_x(rng, BATCH, LENGTH))
    weight_BLD = np.asarray(random_x(rng, BATCH, LENGTH)) * (packed_ids_BL > 0)[..., None]
    single_ids = apart(packed_ids_BL > 0)
    (dparams, dx_BLD), y_BLD = gradients(
        params, together(x_BLD), together(weight_BLD), packed_context(together(packed_ids_BL))
    )
    (dparams_apart, dx_apart), y_apart = gradients(
        params, apart(x_BLD), apart(weight_BLD), packed_context(single_ids)
    )
    inside = single_ids[..., None]
    assert_close(apart(np.asarray(y_BLD)), y_apart * inside, 1e-9)
    assert_close(apart(np.asarray(dx_BLD)), dx_apart * inside, 1e-9)
    assert not np.asarray(dx_BLD)[together(packed_ids_BL) == 0].any()
    assert_close(dparams, dparams_apart, 1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_another_document_changes_no_bit(case: Case):
    rng = np.random.default_rng(2)
    segment_ids_BL = packed_rows(rng, BATCH, LENGTH)
    ctx = packed_context(segment_ids_BL)
    params = parameters(case.config)
    outputs = jax.jit(lambda x_BLD: run(case.config, params, x_BLD, ctx)[0])
    x_BLD = np.asarray(random_x(rng, BATCH, LENGTH))
    y_BLD = np.asarray(outputs(x_BLD))
    assert np.isfinite(y_BLD).all()
    for row, start, stop in documents(segment_ids_BL):
        other_BLD = np.asarray(random_x(rng, BATCH, LENGTH)) * np.float32(1e4)
        others = np.ones((BATCH, LENGTH, 1), bool)
        others[row, start:stop] = False
        changed_y_BLD = np.asarray(outputs(np.where(others, other_BLD, x_BLD)))
        np.testing.assert_array_equal(changed_y_BLD[row, start:stop], y_BLD[row, start:stop])
