"""Type aliases, and the pair of pure functions that every algorithm is."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import chex
import jax

Array = jax.Array
Key: TypeAlias = chex.PRNGKey
Numeric: TypeAlias = chex.Numeric
"""A number: Python's, NumPy's or a scalar array."""

# A chex.ArrayTree, but mypy would not let a union be indexed like a dict.
PyTree = Any
Params = PyTree
"""The parameters θ (or η) of a model: any pytree of arrays."""

Particles = PyTree
"""Points `[n, ...]`: an array, or a pytree of arrays that share their leading axis."""

Batch = PyTree
"""`[m, ...]`, or a dict `{"x": [m, ...], "context": [m, ...]}` if there are labels."""

ReferenceLike = Batch | Callable[[Key], Batch] | None
"""More data for a kernel's sums: points, or a function of a key that draws them."""

Metrics = dict[str, Array]
"""Named scalars that describe one update."""

Precision = str | None
"""Of products on accelerators: "highest", "high", "default", or None for JAX's own."""

Exchange = Literal["all_gather", "ring"]
"""How devices get each other's particles; see `Direction`."""

EnergyFn = Callable[..., Array]
"""`energy_fn(params, x)` or `energy_fn(params, x, context)` -> E(x) of one point."""

ScoreFn = Callable[..., PyTree]
"""`score_fn(x)` -> ∇ₓ log p(x) of one point, shaped like x."""

LogDensityFn = Callable[..., Array]
"""`log_density_fn(x)` -> log p(x) of one point, up to a constant."""

LogPartitionFn = Callable[..., Array]
"""`log_partition_fn(params)` -> log Z(θ), or `log_partition_fn(key, params)` -> an
estimate of it.
"""

GenerateFn = Callable[[Params, PyTree, PyTree, PyTree], tuple[Particles, PyTree]]
"""`generate_fn(params, stats, noise, context) -> (samples, stats)`.

All samples of a batch at once. `stats` are the running statistics of batch norm; a
generator without them passes an empty tree through.
"""

NoiseFn = Callable[[Key, int], PyTree]
"""`noise_fn(key, m)` -> ξ, `[m, ...]`."""


class HasSamples(Protocol):
  """What samples can be drawn from, such as a `stein_jax.densities.Density`."""

  def sample(self, key: Key, num_samples: int, /) -> Particles:
    """Samples, `[num_samples, ...]`."""


class InitFn(Protocol):
  """`init(key, params, batch) -> state`."""

  def __call__(self, key: Key, params: Params, batch: Batch, /) -> Any:
    """Returns the state before the first update."""


class UpdateFn(Protocol):
  """`update(key, state, batch) -> (state, metrics)`."""

  def __call__(self, key: Key, state: Any, batch: Batch, /) -> tuple[Any, Metrics]:
    """Returns the state after one update, and scalars that describe it."""


class Algorithm(NamedTuple):
  """A learning algorithm as two pure functions, in the manner of optax and blackjax.

  `init(key, params, batch) -> state` and `update(key, state, batch) -> (state,
  metrics)` have one signature for all algorithms, so one training loop serves them
  all. A state is a NamedTuple of arrays with a field `params` or `particles`; a field
  called `particles` is the one that is sharded over devices.
  """

  init: InitFn
  update: UpdateFn
