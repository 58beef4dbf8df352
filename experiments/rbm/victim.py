"""A small training run in a process of its own, for experiments.endurance to kill.

It prints a line when the first steps are done. At the end the last state is in the
folder's final.npz.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.rbm import methods
from experiments.rbm.runs import Setup
from experiments.rbm.settings import Rules
from experiments.shared import logs
from stein_jax import Algorithm, kernels, stein_gan, svgd, training
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.training.files import open_atomically

VISIBLE, HIDDEN = 16, 4
RBM = GaussianBernoulliRBM(HIDDEN)
EVAL_EVERY = 10
"""Steps between the lines that are printed, and between checkpoints."""

ALGORITHMS = (*methods.METHODS, "svgd", "stein_gan")


def data() -> np.ndarray:
  """Two clusters of points."""
  rng = np.random.default_rng(0)
  side = rng.integers(0, 2, size=(400, 1)) * 2.0 - 1
  return (side + rng.normal(size=(400, VISIBLE))).astype(np.float32)


def linear(params: Any, stats: Any, noise: Any, context: Any) -> tuple[Any, Any]:
  """A generator: x = Wξ + w."""
  return noise @ params["weights"] + params["mean"][None], stats


def problem(name: str) -> tuple[Algorithm, Any]:
  """An algorithm and the parameters that it starts with."""
  optimizer = optax.adam(1e-3)
  params = RBM.init(jax.random.key(1), jnp.zeros(VISIBLE))
  if name == "svgd":
    score = partial(RBM.score, params)
    return svgd(score, kernels.rbf(), optimizer), jnp.asarray(data()[:50])
  if name == "stein_gan":
    generator = {"weights": 0.1 * jnp.eye(4, VISIBLE), "mean": jnp.zeros(VISIBLE)}
    noise_fn = partial(_noise, size=4)
    algorithm = stein_gan(
      RBM.apply, linear, noise_fn, kernels.rbf(), optimizer, optax.adam(1e-3), mix=0.5
    )
    return algorithm, {"energy": params, "generator": generator}
  rules = Rules(langevin_steps=(1,))
  (run,) = methods.runs([name], RBM, rules)
  return run.build(Setup(rules, optimizer)), params


def _noise(key: jax.Array, num_samples: int, *, size: int) -> jax.Array:
  return jax.random.normal(key, (num_samples, size))


def main(name: str, folder: Path, num_steps: int) -> None:
  """Trains, and writes the last state."""
  logs.quiet_checkpoints()
  algorithm, params = problem(name)

  def observe(step: int, state: Any) -> None:
    if step:
      print(step, flush=True)

  state, _ = training.fit(
    jax.random.key(0),
    algorithm,
    params,
    data(),
    num_steps=num_steps,
    batch_size=50,
    log_every=5,
    eval_every=EVAL_EVERY,
    checkpoint_every=EVAL_EVERY,
    observe=observe,
    workdir=folder,
    progress=False,
  )
  with open_atomically(folder / "final.npz") as file:
    np.savez(file, *(np.asarray(leaf) for leaf in jax.tree.leaves(state)))


def start() -> None:
  """Runs what the program's arguments say: algorithm, folder, number of steps."""
  try:
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
  except (OSError, ValueError, training.WorkdirInUse) as error:
    sys.exit(str(error))
