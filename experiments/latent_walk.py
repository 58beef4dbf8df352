"""A random walk through a generator's noise (figure 3), and interpolations.

  python -m experiments.latent_walk --run=runs/celeb_a/steingan/seed_0

The paper's walk is ξ ← ξ + 0.01 · Uniform[−1, 1], kept within [−1, 1]; every --stride
of its steps is shown. The interpolation goes along straight lines from one random ξ to
the next. It writes to --workdir: walk.png and interpolation.png, with a strip of images
for each of --rows starting points, and walk.gif.
"""

import dataclasses
import io
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.pictures import models, saved_generators
from experiments.shared import folders, plots, settings, workdirs
from experiments.shared.settings import setting
from stein_jax.training.files import write_atomically
from stein_jax.types import Array, Key


@dataclasses.dataclass(frozen=True)
class Settings(settings.Settings):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.latent_walk"

  run: str | None = setting(None, "The folder of a trained generator.")
  rows: int = setting(4, "The number of starting points.", at_least=1)
  pictures: int = setting(12, "The number of images in a strip.", at_least=2)
  steps: int = setting(2000, "The number of steps of the walk.", at_least=2)
  stride: int = setting(20, "Steps between two images of the walk.", at_least=1)
  step_size: float = setting(
    0.01, "The step size of the walk; the default is the paper's.", above=0, at_most=1
  )
  seed: int = setting(
    0,
    "Seed of the starting points and the walk.",
    at_least=0,
    at_most=settings.MAX_SEED,
  )
  workdir: str = setting("runs/latent_walk", "Where the images are written.")

  def __post_init__(self) -> None:
    super().__post_init__()
    object.__setattr__(self, "workdir", folders.resolved(self.workdir))


def main(own: Settings) -> None:
  if not own.run:
    settings.wrong_usage(
      "--run: give a folder that experiments.images wrote, WORKDIR/METHOD/seed_0."
    )
  workdir = Path(own.workdir)
  workdirs.check_usable(workdir)
  trained = saved_generators.load(Path(own.run))
  workdir.mkdir(parents=True, exist_ok=True)
  start_key, walk_key = jax.random.split(jax.random.key(own.seed))
  starts = models.NOISE_FN(start_key, own.rows)
  labels = trained.labels(own.rows, seed=own.seed)
  walked = walk(walk_key, starts, num_steps=own.steps, step_size=own.step_size)
  paths = {
    "walk": walked[:: own.stride],
    "interpolation": interpolation(starts, num_images=own.pictures),
  }
  strips = {name: _images(trained, path, labels) for name, path in paths.items()}
  for name, images in strips.items():  # [steps, rows, h, w, c]
    indices = np.linspace(0, len(images) - 1, own.pictures).round().astype(int)
    plots.image_strips(
      workdir / f"{name}.png",
      images[indices].swapaxes(0, 1) / 255,
      title=f"{trained.about['label']}: {name}",
    )
  write_atomically(workdir / "walk.gif", _gif(strips["walk"]))
  print(f"Images: {workdir}")


def walk(key: Key, start: Array, *, num_steps: int, step_size: float) -> Array:
  """ξ ← ξ + step_size · Uniform[−1, 1], reflected at −1 and at 1.

  Args:
    key: a PRNG key.
    start: ξ, `[n, d]`, in [−1, 1].
    num_steps: the number of steps.
    step_size: at most 1.

  Returns:
    The path, `[num_steps + 1, n, d]`; it begins with `start`.

  Source: Liu & Wang (2017), figure 3.
  """

  def step(xi: Array, key: Key) -> tuple[Array, Array]:
    xi = xi + step_size * jax.random.uniform(key, xi.shape, xi.dtype, -1.0, 1.0)
    xi = jnp.where(xi > 1, 2 - xi, jnp.where(xi < -1, -2 - xi, xi))
    return xi, xi

  path = jax.lax.scan(step, start, jax.random.split(key, num_steps))[1]
  return jnp.concatenate([start[None], path])


def interpolation(points: Array, *, num_images: int) -> Array:
  """Straight lines from every point to the next one, and from the last to the first.

  Args:
    points: ξ, `[n, d]`.
    num_images: the number of points on each line, its ends included.

  Returns:
    `[num_images, n, d]`.
  """
  fraction = jnp.linspace(0, 1, num_images)[:, None, None]
  ends = jnp.roll(points, -1, axis=0)
  return (1 - fraction) * points[None] + fraction * ends[None]


def _images(
  trained: saved_generators.Trained, path: Array, labels: np.ndarray | None
) -> np.ndarray:
  """uint8 images `[steps, rows, h, w, c]` of noise `[steps, rows, d]`."""
  steps, rows, d = path.shape
  images = trained.sample(
    steps * rows,
    noise=path.reshape(-1, d),
    labels=None if labels is None else np.tile(labels, steps),
  )
  return images.reshape(steps, rows, *images.shape[1:])


def _gif(images: np.ndarray) -> bytes:
  """An endless animation of images `[steps, rows, h, w, c]`, forwards and backwards."""
  frames = np.concatenate([images, images[-2:0:-1]])
  steps, rows, h, w, c = frames.shape
  frames = frames.swapaxes(1, 2).reshape(steps, h, rows * w, c)
  first, *others = [Image.fromarray(frame) for frame in frames]
  file = io.BytesIO()
  first.save(
    file, format="gif", save_all=True, append_images=others, duration=60, loop=0
  )
  return file.getvalue()


if __name__ == "__main__":
  settings.run(main, Settings)
