"""A distribution of which everything is known, and mixtures of such."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial, register_dataclass

from stein_jax import checks
from stein_jax.compiled import compiled
from stein_jax.types import Array, Key, LogDensityFn, Particles, PyTree


@partial(
  register_dataclass,
  data_fields=["log_density_fn", "sample_fn", "mode_masses", "modes_fn"],
  meta_fields=["name"],
)
@dataclasses.dataclass(frozen=True)
class Density:
  """A distribution whose log density is normalised and whose samples are exact.

  It is the truth that a learned energy is compared with, or a proposal.

  >>> import jax
  >>> from stein_jax import densities
  >>> density = densities.two_modes(2, weights=(0.25, 0.75))
  >>> x = density.sample(jax.random.key(0), 1000)
  >>> density.log_density(x).shape, density.score(x[0]).shape
  ((1000,), (2,))

  It is a pytree: its numbers are leaves, so that densities of one family are compiled
  once. `log_density_fn` and `score` can be passed wherever such a function is expected.

  Attributes:
    log_density_fn: x -> log p(x) of one point, normalised.
    sample_fn: (key, n) -> n exact samples, `[n, ...]`.
    name: for tables and error messages. Densities of different names are compiled
      separately.
    mode_masses: the probabilities of the K modes, `[K]`; None where there are none.
    modes_fn: x -> for each mode the probability that x comes from it, `[K]`. Its mean
      under the density is `mode_masses`.
  """

  log_density_fn: LogDensityFn
  sample_fn: Callable[[Key, int], Particles]
  name: str = "density"
  mode_masses: Array | None = None
  modes_fn: Callable[[PyTree], Array] | None = None

  def __post_init__(self) -> None:
    for name in ("log_density_fn", "sample_fn", "modes_fn"):
      fn = getattr(self, name)
      # Otherwise jit would take a function for data.
      if callable(fn) and jax.tree_util.all_leaves([fn]):
        object.__setattr__(self, name, Partial(fn))

  @property
  def score(self) -> Callable[[PyTree], PyTree]:
    """x -> ∇ₓ log p(x) of one point."""
    return Partial(_score, self.log_density_fn)

  @compiled()
  def log_density(self, points: Particles) -> Array:
    """log p of points `[n, ...]`, in nats: `[n]`."""
    return jax.vmap(self.log_density_fn)(points)

  def sample(self, key: Key, num_samples: int) -> Particles:
    """Exact samples, `[num_samples, ...]`.

    Raises:
      ValueError: num_samples is not an integer of at least 1.
    """
    checks.at_least_one("num_samples", num_samples)
    return _sample(self, key, num_samples=int(num_samples))

  @compiled()
  def modes(self, points: Particles) -> Array:
    """For points `[n, ...]` the probabilities that they come from each mode, `[n, K]`.

    Raises:
      ValueError: a density without modes.
    """
    if self.modes_fn is None:
      raise ValueError(f"the density {self.name} has no modes.")
    return jax.vmap(self.modes_fn)(points)


def _log_density(log_density_fn: LogDensityFn, x: PyTree) -> Array:
  return log_density_fn(x)


_score = jax.grad(_log_density, argnums=1)


def check_point(x: Array, dimension: int, name: str) -> None:
  """Raises ValueError unless x is one point of d numbers, which would broadcast."""
  if jnp.shape(x) != (dimension,):
    raise ValueError(
      f"a point of this {name} is [{dimension}], got shape {jnp.shape(x)}; "
      "log_density_fn and score take one point, log_density takes points [n, d]."
    )


@partial(jax.jit, static_argnames="num_samples")
def _sample(density: Density, key: Key, *, num_samples: int) -> Particles:
  return density.sample_fn(key, num_samples)


def of_components(
  joint: Callable[[PyTree], Array],
  sample_fn: Callable[[Key, int], Particles],
  name: str,
  masses: Array | None,
) -> Density:
  """The density Σₖ wₖ pₖ(x) of components.

  Args:
    joint: x -> log wₖ + log pₖ(x), `[K]`, as a pytree.
    sample_fn: (key, n) -> n samples.
    name: of the density.
    masses: wₖ, `[K]`, if the components count as modes.
  """
  modes_fn = None if masses is None else Partial(_softmax, joint)
  return Density(Partial(_logsumexp, joint), sample_fn, name, masses, modes_fn)


def _logsumexp(joint: Callable[[PyTree], Array], x: PyTree) -> Array:
  return jax.nn.logsumexp(joint(x))


def _softmax(joint: Callable[[PyTree], Array], x: PyTree) -> Array:
  return jax.nn.softmax(joint(x))


def mixture(densities: Sequence[Density], weights: Sequence[float]) -> Density:
  """Σₖ wₖ pₖ: for example a proposal made of a truth and a broad Gaussian.

  A mode that a model invents where the truth has no mass stays unseen with the truth
  alone as a proposal; the broad Gaussian sees it.

  Args:
    densities: at least one, of points of one shape.
    weights: positive numbers, which are divided by their sum.

  Raises:
    ValueError: no densities, another number of weights, weights that are not positive,
      or densities of points of different shapes.

  Returns:
    A Density whose modes are the densities.
  """
  densities = tuple(densities)
  if not densities or len(densities) != len(weights):
    raise ValueError(
      "a mixture needs at least one density, and one weight for each, got "
      f"{len(densities)} densities and {len(weights)} weights."
    )
  w = normalised_weights(weights)
  shapes = [
    jax.tree.map(
      lambda leaf: leaf.shape[1:],
      jax.eval_shape(lambda key, d=d: d.sample_fn(key, 1), jax.random.key(0)),
    )
    for d in densities
  ]
  if any(shape != shapes[0] for shape in shapes):
    raise ValueError(f"the densities must be of points of one shape, got {shapes}.")
  return of_components(
    Partial(_joint, densities, jnp.log(w)),
    Partial(_mixture_samples, densities, jnp.log(w)),
    " + ".join(density.name for density in densities),
    w,
  )


def weights_for(
  weights: Sequence[float] | Array | None, count: int, components: str
) -> Array:
  """`normalised_weights` of this many components; None: equal ones.

  Raises:
    ValueError: also another number of weights.
  """
  w = normalised_weights([1.0] * count if weights is None else weights)
  if len(w) != count:
    raise ValueError(
      f"there must be one weight for each of {count} {components}, got {len(w)}."
    )
  return w


def normalised_weights(weights: Sequence[float] | Array) -> Array:
  """Weights `[K]` divided by their sum.

  Raises:
    ValueError: they are not a vector of positive numbers.
  """
  values = np.asarray(weights, np.float64)
  if values.ndim != 1 or not len(values) or not (values > 0).all():
    raise ValueError(f"weights must be positive numbers, [K], got {weights!r}.")
  if not np.isfinite(values).all():
    raise ValueError(f"weights must be finite, got {weights!r}.")
  return jnp.asarray(values / values.sum(), jnp.result_type(float))


def _joint(densities: tuple[Density, ...], log_weights: Array, x: PyTree) -> Array:
  """log wₖ + log pₖ(x), `[K]`."""
  logs = jnp.stack([density.log_density_fn(x) for density in densities])
  return log_weights.astype(logs.dtype) + logs


def _mixture_samples(
  densities: tuple[Density, ...], log_weights: Array, key: Key, num_samples: int
) -> Particles:
  which_key, *keys = jax.random.split(key, 1 + len(densities))
  which = jax.random.categorical(which_key, log_weights, shape=(num_samples,))
  drawn = [d.sample_fn(key, num_samples) for d, key in zip(densities, keys)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)
  return jax.tree.map(lambda leaf: leaf[which, jnp.arange(num_samples)], stacked)
