"""Training steps, compared with PyTorch, with their multiplications, and each other.

  python -m experiments.benchmarks.training

Every number is a ratio of medians over calls made in turn, on one CPU core (--cores),
in float32. The RBM has 784 visible and 10 hidden units and batches of 100. In PyTorch
the same SteinCD step is run eagerly, with autograd. The lower bound is the time of the
step's matrix products at the machine's matrix rate. `pip install -e '.[peers]'`
installs PyTorch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from experiments.benchmarks import timing
from experiments.shared import settings, summaries, tables, workdirs
from stein_jax import (
  Algorithm,
  kernels,
  samplers,
  stein_cd,
  stein_cd_gradient,
  stein_score_matching_gradient,
  svgd_direction,
  training,
)
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.networks.layers import Deconv, convolution
from stein_jax.types import Array, Params

NUM_VISIBLE, NUM_HIDDEN, BATCH_SIZE, NUM_POINTS = 784, 10, 100, 10_000
STEP_SIZE = 0.1
NUM_STEPS = 500

TARGETS = {
  "PyTorch ÷ fit": "≥ 6",
  "fit ÷ its multiplications": "≤ 1.8",
  "shuffling, metrics and set-up ÷ step": "≤ 0.15",
  "Langevin noise ÷ step": "≤ 0.5",
  "regularised ÷ plain direction": "≤ 1.2",
  "exact Stein score matching ÷ forward difference, RBM": "≤ 1",
  "exact Stein score matching ÷ forward difference, autoencoder": "≤ 1.1",
  "exact Stein score matching ÷ forward difference, convolutions as products": "≤ 1.1",
}


class SmallAutoencoder(nn.Module):
  """½‖x − D(E(x))‖² of pictures [28, 28, 1], with convolutions and softplus.

  Attributes:
    by_products: whether convolutions are computed as matrix products, as stein_jax
      does, which is faster in a compiled loop on a CPU; else as flax does, which is
      faster in a single call.
  """

  by_products: bool

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """The energy of one picture."""

    def down(features: int) -> nn.Module:
      own = convolution if self.by_products else None
      return nn.Conv(features, (5, 5), strides=2, conv_general_dilated=own)

    def up(features: int) -> nn.Module:
      if self.by_products:
        return Deconv(features)
      return nn.ConvTranspose(features, (5, 5), (2, 2))

    code = nn.softplus(down(16)(nn.softplus(down(8)(x[None]))))
    return 0.5 * jnp.square(x[None] - up(1)(nn.softplus(up(8)(code)))).sum()


@dataclasses.dataclass(frozen=True)
class Settings(timing.Repeated):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.benchmarks.training"

  workdir: str = settings.like(
    workdirs.Run, "workdir", default="runs/benchmarks/training"
  )
  repeats: int = settings.like(timing.Repeated, "repeats", default=15)


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  timing.use_cores(own.cores)
  workdirs.check(own)
  rate = timing.matrix_rate(own.repeats)
  seconds: dict[str, timing.Times] = {}
  for label, functions in (
    ("SteinCD step", _training(own.cores)),
    ("Langevin", _langevin()),
    ("directions", _directions()),
    ("score matching", _score_matching()),
  ):
    seconds |= timing.interleaved(
      functions,
      repeats=own.repeats,
      progress=own.progress,
      label=label,
    )
  median = {name: time.median for name, time in seconds.items()}
  floor = NUM_STEPS * _operations() / (rate * 1e9)
  ratios = {
    "PyTorch ÷ fit": median["PyTorch"] / median["fit"] if "PyTorch" in median else None,
    "fit ÷ its multiplications": median["fit"] / floor,
    "shuffling, metrics and set-up ÷ step": median["fit"] / median["updates"] - 1,
    "Langevin noise ÷ step": median["noise"] / median["Langevin"],
    "regularised ÷ plain direction": median["regularised"] / median["plain"],
    "exact Stein score matching ÷ forward difference, RBM": (
      median["exact, RBM"] / median["forward, RBM"]
    ),
    "exact Stein score matching ÷ forward difference, autoencoder": (
      median["exact, autoencoder"] / median["forward, autoencoder"]
    ),
    "exact Stein score matching ÷ forward difference, convolutions as products": (
      median["exact, products"] / median["forward, products"]
    ),
  }
  workdirs.prepare(own)
  summary = summaries.write(
    own,
    {
      "gigaflops": rate,
      "operations": _operations(),
      "num_steps": NUM_STEPS,
      "seconds": {name: time._asdict() for name, time in seconds.items()},
      "ratios": ratios,
    },
  )
  print(markdown(summary))


def _data() -> np.ndarray:
  """Random pixels 0 to 255, in images of MNIST's size."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, size=(NUM_POINTS, NUM_VISIBLE), dtype=np.uint8)


def _rbm() -> tuple[GaussianBernoulliRBM, Params]:
  rbm = GaussianBernoulliRBM(NUM_HIDDEN)
  return rbm, rbm.init(jax.random.key(0), jnp.zeros(NUM_VISIBLE))


def _batch() -> Array:
  return training.unit_interval(jnp.asarray(_data()[:BATCH_SIZE]))


def _algorithm() -> Algorithm:
  rbm, _ = _rbm()
  return stein_cd(
    rbm.apply, kernels.rbf(), optax.adam(3e-4, b1=0.5), step_size=STEP_SIZE
  )


def _operations() -> int:
  """Floating-point operations of a SteinCD step's matrix products.

  They are: the distances and K V; for the scores y = Bᵀx + c and the product with its
  transposed Jacobian; for the energies of the batch and of the moved batch y and the
  gradient in B.
  """
  m, d, num_hidden = BATCH_SIZE, NUM_VISIBLE, NUM_HIDDEN
  return 2 * (2 * m * m * d + 6 * m * d * num_hidden)


def _training(cores: int) -> dict[str, Callable[[], Any]]:
  """`NUM_STEPS` steps: in `fit` as a user calls it, in a bare scan, and in PyTorch."""
  algorithm, (_, params), batch = _algorithm(), _rbm(), _batch()
  data, key = jnp.asarray(_data()), jax.random.key(0)

  def fit() -> Any:
    return training.fit(
      key,
      algorithm,
      params,
      data,
      num_steps=NUM_STEPS,
      batch_size=BATCH_SIZE,
      log_every=100,
      progress=False,
    ).state

  # Consecutive rows as batches: no shuffling, no metrics, no work on the host.
  @jax.jit
  def updates(state: Any, data: Array) -> Any:
    def step(state: Any, inputs: tuple[Array, Array]) -> tuple[Any, None]:
      first, key = inputs[0] * BATCH_SIZE % NUM_POINTS, inputs[1]
      batch = training.unit_interval(data[first + jnp.arange(BATCH_SIZE)])
      return algorithm.update(key, state, batch)[0], None

    keys = jax.random.split(key, NUM_STEPS)
    return jax.lax.scan(step, state, (jnp.arange(NUM_STEPS), keys))[0]

  start = algorithm.init(key, params, batch)
  functions: dict[str, Callable[[], Any]] = {
    "fit": fit,
    "updates": lambda: updates(start, data),
  }
  if timing.peer("torch"):
    functions["PyTorch"] = _torch_training(params, np.asarray(_data()), cores)
  return functions


def _torch_training(params: Params, data: np.ndarray, cores: int) -> Callable[[], Any]:
  """SteinCD by autograd, with the median of the distances, and fused Adam."""
  import torch

  torch.set_num_threads(max(1, cores))
  B, b, c = (
    torch.tensor(np.asarray(params["params"][name]), requires_grad=True)
    for name in ("B", "b", "c")
  )
  points = torch.tensor(data)
  optimizer = torch.optim.Adam((B, b, c), lr=3e-4, betas=(0.5, 0.999), fused=True)

  def energy(x: Any) -> Any:
    y = torch.addmm(c, x, B)
    return 0.5 * x.square().sum(1) - x @ b - y.logaddexp(-y).sum(1)

  def direction(x: Any) -> Any:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(energy(x).sum(), x)
    with torch.no_grad():
      centred = x - x.mean(dim=0)
      norms = centred.square().sum(dim=1)
      squared = torch.addmm(norms[None], centred, centred.T, alpha=-2)
      squared.add_(norms[:, None]).clamp_(min=0)
      i, j = torch.triu_indices(len(x), len(x), offset=1)
      h = squared[i, j].median() / np.log(len(x))
      k = squared.mul_(-1 / h).exp_()
      sums = k @ (-gradient - (2 / h) * centred)
      return (sums + (2 / h) * centred * k.sum(dim=1, keepdim=True)) / len(x)

  def steps() -> Any:
    order = torch.randperm(len(points))
    for step in range(NUM_STEPS):
      start = step * BATCH_SIZE % len(points)
      x = points[order[start : start + BATCH_SIZE]].float().mul_(1 / 255)
      moved = x + STEP_SIZE * direction(x)
      optimizer.zero_grad()
      ((energy(x) - energy(moved)).mean() / STEP_SIZE).backward()
      optimizer.step()
    return B.detach().numpy()

  return steps


def _langevin() -> dict[str, Callable[[], Any]]:
  """Ten Langevin steps, and the noise of ten."""
  (rbm, params), x = _rbm(), _batch()
  score = jax.tree_util.Partial(rbm.score, params)

  @jax.jit
  def noise(key: Array) -> Array:
    def zero(x: Array) -> Array:
      return jnp.zeros_like(x)

    return samplers.langevin(key, x, zero, num_steps=10, step_size=0.5)

  @jax.jit
  def chain(key: Array) -> Array:
    return samplers.langevin(key, x, score, num_steps=10, step_size=0.5)

  key = jax.random.key(0)
  return {"noise": lambda: noise(key), "Langevin": lambda: chain(key)}


def _directions() -> dict[str, Callable[[], Any]]:
  """The direction of a batch, and its regularised form on the RBM's features."""
  (rbm, params), x = _rbm(), _batch()
  scores = jax.vmap(functools.partial(rbm.score, params))(x)
  features = jax.tree_util.Partial(rbm.features, params)
  on_features = kernels.on_features(kernels.rbf("median_no_log"), features, affine=True)
  return {
    "plain": functools.partial(svgd_direction, x, scores, kernels.rbf()),
    "regularised": functools.partial(
      svgd_direction, x, scores, on_features, regularization=0.1
    ),
  }


def _score_matching() -> dict[str, Callable[[], Any]]:
  """The gradient of (15) for each model: exact, and by SteinCD's forward difference."""
  rbm, rbm_params = _rbm()
  pictures = _batch().reshape(-1, 28, 28, 1)
  models: dict[str, tuple] = {"RBM": (rbm.apply, rbm_params, _batch())}
  for name, by_products in (("autoencoder", False), ("products", True)):
    autoencoder = SmallAutoencoder(by_products)
    start = jax.jit(autoencoder.init)(jax.random.key(0), pictures[0])
    models[name] = (autoencoder.apply, start, pictures)
  functions: dict[str, Callable[[], Any]] = {}
  for name, (energy_fn, params, x) in models.items():
    functions[f"exact, {name}"] = functools.partial(
      stein_score_matching_gradient, params, energy_fn, x, kernels.rbf()
    )
    functions[f"forward, {name}"] = functools.partial(
      stein_cd_gradient, params, energy_fn, x, kernels.rbf(), step_size=STEP_SIZE
    )
  return functions


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  lines = [
    [name, "—" if value is None else f"{value:.3g}", TARGETS[name]]
    for name, value in summary["ratios"].items()
  ]
  table = tables.markdown(["", "measured", "target"], lines)
  step = 1e3 * summary["seconds"]["fit"]["median"] / summary["num_steps"]
  return (
    f"{table}\n\nA SteinCD step took {step:.3f} ms in `fit`, for "
    f"{summary['operations'] / 1e6:.1f} million operations; the matrix rate was "
    f"{summary['gigaflops']:.0f} GFLOP/s."
  )


if __name__ == "__main__":
  settings.run(main, Settings)
