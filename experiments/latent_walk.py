"""Walks through a generator's noise: figure 3, and interpolation.

  python -m experiments.latent_walk --run=runs/celeb_a/steingan/seed_0

The walk of the paper is ξ ← ξ + 0.01 · Uniform[−1, 1], kept within [−1, 1]; pictures
are taken every --stride of its steps. The interpolation goes straight from one draw of
ξ to the next. In --workdir it leaves walk.png and interpolation.png, a strip for each
of --rows starts, and walk.gif.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from PIL import Image

from experiments.pictures import image_generators, image_models
from experiments.shared import common, plots
from stein_jax.types import Array, Key


def main(argv: list[str]) -> None:
  common.refuse_arguments(argv)
  values = flags.FLAGS
  common.positive("step_size")
  if not values.run:
    sys.exit(
      "--run: name a folder that experiments.images left, WORKDIR/METHOD/seed_0."
    )
  trained = image_generators.load(Path(values.run))
  workdir = Path(values.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  start_key, walk_key = jax.random.split(jax.random.key(values.seed))
  starts = image_models.NOISE_FN(start_key, values.rows)
  labels = trained.labels(values.rows, seed=values.seed)
  walked = walk(walk_key, starts, num_steps=values.steps, step_size=values.step_size)
  paths = {
    "walk": walked[:: values.stride],
    "interpolation": interpolation(starts, num_pictures=values.pictures),
  }
  strips = {name: _pictures(trained, path, labels) for name, path in paths.items()}
  for name, pictures in strips.items():  # [pictures, rows, h, w, c]
    places = np.linspace(0, len(pictures) - 1, values.pictures).round().astype(int)
    shown = pictures[places].swapaxes(0, 1) / 255
    plots.image_strips(
      workdir / f"{name}.png", shown, title=f"{trained.about['label']}: {name}"
    )
  _animate(workdir / "walk.gif", strips["walk"])
  print(f"Pictures: {workdir}")


def walk(key: Key, start: Array, *, num_steps: int, step_size: float) -> Array:
  """ξ ← ξ + step_size · Uniform[−1, 1], reflected at the ends of [−1, 1].

  Args:
    key: a PRNG key.
    start: ξ, `[n, d]`, in [−1, 1].
    num_steps: how often.
    step_size: below 1.

  Returns:
    The path, `[num_steps + 1, n, d]`, its start included.

  Source: Liu & Wang (2017), figure 3.
  """

  def step(xi: Array, key: Key) -> tuple[Array, Array]:
    xi = xi + step_size * jax.random.uniform(key, xi.shape, xi.dtype, -1.0, 1.0)
    xi = jnp.where(xi > 1, 2 - xi, jnp.where(xi < -1, -2 - xi, xi))
    return xi, xi

  path = jax.lax.scan(step, start, jax.random.split(key, num_steps))[1]
  return jnp.concatenate([start[None], path])


def interpolation(points: Array, *, num_pictures: int) -> Array:
  """Straight ways from every point to the next one, and from the last to the first.

  Args:
    points: ξ, `[n, d]`.
    num_pictures: of each way, its ends included.

  Returns:
    `[num_pictures, n, d]`.
  """
  share = jnp.linspace(0, 1, num_pictures)[:, None, None]
  ends = jnp.roll(points, -1, axis=0)
  return (1 - share) * points[None] + share * ends[None]


def _pictures(
  trained: image_generators.Trained, path: Array, labels: np.ndarray | None
) -> np.ndarray:
  """uint8 pictures `[steps, rows, h, w, c]` of noise `[steps, rows, d]`."""
  steps, rows, d = path.shape
  made = trained.pictures(
    steps * rows,
    noise=path.reshape(-1, d),
    labels=None if labels is None else np.tile(labels, steps),
  )
  return made.reshape(steps, rows, *made.shape[1:])


def _animate(path: Path, pictures: np.ndarray) -> None:
  """An endless GIF, there and back, of pictures `[steps, rows, h, w, c]`."""
  frames = np.concatenate([pictures, pictures[-2:0:-1]])
  steps, rows, h, w, c = frames.shape
  frames = frames.swapaxes(1, 2).reshape(steps, h, rows * w, c)
  images = [Image.fromarray(frame) for frame in frames]
  images[0].save(path, save_all=True, append_images=images[1:], duration=60, loop=0)


def _define_flags() -> None:
  flags.DEFINE_string("run", None, "The folder of a trained generator.")
  flags.DEFINE_integer("rows", 4, "Starts.", lower_bound=1)
  flags.DEFINE_integer("pictures", 12, "Pictures of a strip.", lower_bound=2)
  flags.DEFINE_integer("steps", 2000, "Steps of the walk.", lower_bound=2)
  flags.DEFINE_integer("stride", 20, "Steps between its pictures.", lower_bound=1)
  flags.DEFINE_float("step_size", 0.01, "Of the walk, the paper's.", upper_bound=1.0)
  flags.DEFINE_integer("seed", 0, "Of the starts and the walk.", lower_bound=0)
  flags.DEFINE_string("workdir", "runs/latent_walk", "Where the pictures go.")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
