"""Generate text: one pass over the prompt, then recurrent steps from the state it leaves.

The command ``python -m hybrid_lm.sample RUN_DIR --prompt TEXT`` continues a prompt.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.typing import DTypeLike

from hybrid_lm import compilation_cache
from hybrid_lm.checkpoint import load_params
from hybrid_lm.cli import arguments, parse
from hybrid_lm.errors import UserError, exit_on_user_error
from hybrid_lm.kernels.dispatch import Implementation
from hybrid_lm.mixers import Context
from hybrid_lm.model import Model, Params
from hybrid_lm.run_dir import RunDir
from hybrid_lm.sharding import MeshConfig


def generate(
    model: Model,
    params: Params,
    prompt_BL: jax.Array,
    *,
    tokens: int,
    temperature: float,
    top_k: int | None,
    key: jax.Array,
    dtype: DTypeLike,
    implementation: Implementation,
) -> jax.Array:
    """Draw ``tokens`` tokens after each prompt -> int32 [B, tokens].

    Args:
        prompt_BL: int32, the document-start token first.
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among so many likeliest tokens; None: among all.

    Raises:
        UserError: for an empty prompt or numbers out of range.
    """
    if prompt_BL.shape[1] < 1:
        raise UserError("the prompt is empty; it holds at least the document-start token")
    if tokens < 1:
        raise UserError(f"tokens {tokens} must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature {temperature} must be a number of at least 0")
    if top_k is not None and not 1 <= top_k <= model.vocab_size:
        raise UserError(f"top_k {top_k} must be from 1 to the {model.vocab_size} tokens there are")
    return _generate(
        model,
        tokens,
        top_k,
        temperature == 0,
        jnp.dtype(dtype),
        implementation,
        params,
        prompt_BL,
        temperature,
        key,
    )


@partial(jax.jit, static_argnums=range(6))
def _generate(
    model: Model,
    tokens: int,
    top_k: int | None,
    greedy: bool,
    dtype: jnp.dtype,
    implementation: Implementation,
    params: Params,
    prompt_BL: jax.Array,
    temperature: jax.Array,
    key: jax.Array,
) -> jax.Array:
    batch, prompt_length = prompt_BL.shape

    def run(tokens_BL: jax.Array, start: jax.Array | int, state):
        """Logits of the token after a row, and the state."""
        ctx = Context.of_documents(
            *tokens_BL.shape,
            start=start,
            dtype=dtype,
            implementation=implementation,
            max_segments=1,
            capacity=prompt_length + tokens,
        )
        output = model.apply(params, tokens_BL, ctx, state)
        return model.logits(params, output.exits[-1][:, -1:])[:, 0], output.state

    def draw(logits_BV: jax.Array, key: jax.Array) -> jax.Array:
        if greedy:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        if top_k is not None:
            least_B1 = jax.lax.top_k(logits_BV, top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
        return jax.random.categorical(key, logits_BV / temperature).astype(jnp.int32)

    def step(carry, step_and_key):
        state, token_B = carry
        step, key = step_and_key
        logits_BV, state = run(token_B[:, None], prompt_length + step, state)
        token_B = draw(logits_BV, key)
        return (state, token_B), token_B

    keys = jax.random.split(key, tokens)
    # Without room before the prompt, it is a row like any other, open to the kernels of training.
    logits_BV, state = run(prompt_BL, 0, model.initial_state(batch, dtype, capacity=0))
    first_B = draw(logits_BV, keys[0])
    _, later_TB = jax.lax.scan(step, (state, first_B), (jnp.arange(tokens - 1), keys[1:]))
    return jnp.concatenate([first_B[:, None], later_TB.T], axis=1)


@dataclass(frozen=True)
class Options:
    """The run, the prompt and how to draw."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run; its newest intact checkpoint is used."""
    prompt: str | None = None
    """Text to continue. None and no prompt_file: start a document."""
    prompt_file: Path | None = None
    """A UTF-8 file that holds the prompt instead."""
    tokens: int = 256
    """Tokens to generate; fewer if the document ends before."""
    temperature: float = 0.8
    """Divides the logits; 0 takes the likeliest token."""
    top_k: int | None = None
    """Draw among so many likeliest tokens. None: among all."""
    seed: int = 0
    """Of the draws."""


def main() -> None:
    """Print a prompt and its continuation by a run's newest checkpoint."""
    options = parse(Options, arguments(), description=__doc__ or "")
    compilation_cache.enable()
    text = _prompt(options)
    run_dir = RunDir(options.run_dir)
    config, tokenizer = run_dir.config(), run_dir.tokenizer()
    model = Model(config.model, tokenizer.vocab_size)
    mesh = MeshConfig().build()
    params, _ = load_params(run_dir, model, mesh)
    prompt_L = np.concatenate([[tokenizer.document_id], tokenizer.encode(text)])
    with jax.set_mesh(mesh):
        generated_BL = generate(
            model,
            params,
            jnp.asarray(prompt_L, jnp.int32)[None],
            tokens=options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            key=jax.random.key(options.seed),
            dtype=config.train.dtype,
            # A kernel that the run names for its rows may not take a single token and a cache.
            implementation=Implementation(),
        )
    continuation = jax.device_get(generated_BL)[0].tolist()
    if tokenizer.document_id in continuation:
        continuation = continuation[: continuation.index(tokenizer.document_id)]
    print(text + tokenizer.decode(continuation))


def _prompt(options: Options) -> str:
    if options.prompt is not None and options.prompt_file is not None:
        raise UserError("give --prompt or --prompt-file, not both")
    if options.prompt_file is None:
        return options.prompt or ""
    try:
        return options.prompt_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{options.prompt_file} cannot be read: {error}") from error


if __name__ == "__main__":
    exit_on_user_error(main)
