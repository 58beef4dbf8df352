"""Densities of which everything is known, from which a student learns by samples."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from experiments.shared import embedded
from stein_jax import densities, maximum_likelihood, training
from stein_jax.densities import Density
from stein_jax.energies import GaussianBernoulliRBM


def random_rbm(
  key: jax.Array, num_visible: int, num_hidden: int, weight_scale: float
) -> Density:
  """The mixture of Gaussians that a random RBM is, with unit covariances.

  B ~ N(0, weight_scale²), b ~ N(0, 1), c = −Bᵀb + N(0, ¼). Without −Bᵀb nearly all the
  weight would be on one component.
  """
  weight_key, visible_key, hidden_key = jax.random.split(key, 3)
  B = weight_scale * jax.random.normal(weight_key, (num_visible, num_hidden))
  b = jax.random.normal(visible_key, (num_visible,))
  c = 0.5 * jax.random.normal(hidden_key, (num_hidden,)) - b @ B
  params = {"params": {"B": B, "b": b, "c": c}}
  return densities.of_rbm(GaussianBernoulliRBM(num_hidden), params)


def of_digits(pixel_noise: float) -> Density:
  """The mixture of 2¹⁰ Gaussians that an RBM fitted to digits is.

  Exact maximum likelihood on the 5 000 embedded digits. Only the number of the
  components' standard deviation is changed afterwards.

  Args:
    pixel_noise: that standard deviation; the fitted RBM has 1.
  """
  rbm = GaussianBernoulliRBM(10)
  images = jnp.asarray(embedded.digits()[0]).reshape(5000, -1)
  data = training.unit_interval(images)
  rule = maximum_likelihood(rbm.apply, rbm.log_partition, optax.adam(1e-3))
  start = rbm.init_from_data(jax.random.key(0), data)
  fit = training.fit(
    jax.random.key(1), rule, start, images, num_steps=5000, progress=False
  )
  return densities.of_rbm(rbm, fit.state.params, pixel_noise=pixel_noise)


TRUTHS: dict[str, Callable[[], Density]] = {
  "two_modes_2": lambda: densities.two_modes(2, separation=6.0),
  "two_modes_10": lambda: densities.two_modes(10, separation=6.0),
  "two_modes_50": lambda: densities.two_modes(50, separation=6.0),
  "mixture_10": lambda: random_rbm(jax.random.key(2), 10, 5, 0.5),
  "mixture_50": lambda: random_rbm(jax.random.key(0), 50, 6, 0.35),
  "gmm40_128": lambda: densities.gmm40(128),
  "ica_10": lambda: densities.independent_components(10),
  "flow_10": lambda: densities.affine_coupling_flow(jax.random.key(0), 10),
  "digits": lambda: of_digits(1.0),
  "digits_narrow": lambda: of_digits(0.5),
}
"""name -> the truth. The number is d, that of digits 784.

Two modes have the weights 1:3 and are 6 standard deviations apart. Mixtures are random
RBMs of 2⁵ and 2⁶ components.
"""
