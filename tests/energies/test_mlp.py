"""The MLP energy against NumPy, its growth, and its context."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from flax import linen as nn

from stein_jax.energies import MLP


def numpy_energy(params, x, context=(), *, confinement=1.0):
  layers = params["params"]
  hidden = np.concatenate([np.ravel(x), np.ravel(context)])
  for i in range(len(layers)):
    layer = layers[f"Dense_{i}"]
    hidden = hidden @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    if i < len(layers) - 1:
      hidden = np.logaddexp(hidden, 0)
  return 0.5 * confinement * np.sum(np.square(x)) + hidden.item()


@pytest.mark.parametrize(
  ("shape", "widths", "double"),
  [
    ((), (3,), False),
    ((2, 3), (), True),
    ((3,), (4, 5), True),
    ((1, 2, 1), (2,), False),
  ],
)
def test_energy_equals_numpy(shape, widths, double):
  with jax.enable_x64(double):
    dtype = np.float64 if double else np.float32
    x = np.random.default_rng(0).normal(size=shape).astype(dtype)
    energy = MLP(widths=widths, confinement=0.3)
    params = jax.jit(energy.init)(jax.random.key(0), x)
    got = jax.jit(energy.apply)(params, x)
  assert got.shape == ()
  assert got.dtype == dtype
  assert len(params["params"]) == len(widths) + 1
  want = numpy_energy(params, x, confinement=0.3)
  np.testing.assert_allclose(got, want, rtol=1e-12 if double else 1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", [nn.softplus, nn.tanh, nn.silu])
def test_the_quadratic_term_dominates_far_from_the_origin(activation):
  # E/(½r²) tends to the confinement, so exp(−E) is integrable.
  energy = MLP(widths=(8, 8), activation=activation, confinement=2.0)
  params = jax.jit(energy.init)(jax.random.key(0), jnp.zeros(3))
  params = jax.tree.map(lambda leaf: 5 * leaf, params)
  directions = 1e6 * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])
  energies = jax.jit(jax.vmap(energy.apply, in_axes=(None, 0)))(params, directions)
  np.testing.assert_allclose(energies / 1e12, np.ones(6), rtol=1e-2)


def test_the_density_can_be_normalised():
  energy = MLP(widths=(4,), confinement=0.5)
  with jax.enable_x64(True):
    params = jax.jit(energy.init)(jax.random.key(0), np.zeros(1))
    density = jax.jit(lambda x: jnp.exp(-energy.apply(params, x)))
    near, _ = scipy.integrate.quad(density, -30, 30)
    everywhere, _ = scipy.integrate.quad(density, -np.inf, np.inf)
  assert 0 < near < np.inf
  np.testing.assert_allclose(near, everywhere, rtol=1e-6)


def test_integer_labels_and_one_hot_vectors_agree():
  energy = MLP(widths=(6,), num_classes=4)
  x = np.array([[0.5, -1.0]], np.float32)
  params = jax.jit(energy.init)(jax.random.key(0), x, 0)
  got = jax.vmap(energy.apply, in_axes=(None, None, 0))(params, x, jnp.arange(4))
  one_hot = np.eye(4, dtype=np.float32)
  want = [numpy_energy(params, x, context) for context in one_hot]
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for context, energy_of_class in zip(one_hot, want):
    np.testing.assert_allclose(
      energy.apply(params, x, context), energy_of_class, rtol=1e-5
    )
  assert len(np.unique(np.round(want, 4))) == 4  # the context matters


def test_a_context_vector_needs_no_classes():
  energy = MLP(widths=(6,))
  x, context = np.ones(2, np.float32), np.array([0.3, -0.2, 2.0], np.float32)
  params = jax.jit(energy.init)(jax.random.key(0), x, context)
  got = energy.apply(params, x, context)
  np.testing.assert_allclose(got, numpy_energy(params, x, context), rtol=1e-5)


def test_contexts_that_do_not_fit_are_errors():
  x, key = jnp.zeros(2), jax.random.key(0)
  with pytest.raises(ValueError, match="needs a context"):
    MLP(num_classes=3).init(key, x)
  with pytest.raises(ValueError, match="needs num_classes"):
    MLP().init(key, x, 1)
  with pytest.raises(ValueError, match=r"\(4,\).*num_classes=3"):
    MLP(num_classes=3).init(key, x, jnp.zeros(4))
  with pytest.raises(ValueError, match="confinement must be a finite number above 0"):
    MLP(confinement=0.0)


@pytest.mark.parametrize("base", ["isotropic", "diagonal", "full"])
def test_with_a_base_the_energy_is_that_of_z(base):
  data = 4 + 3 * np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
  energy = MLP(widths=(5,), confinement=0.7, base=base)
  params = energy.init_from_data(jax.random.key(0), data)
  theta = dict(jax.tree.map(np.asarray, params["params"]))
  moments = theta.pop("base", None)
  z = data.astype(np.float64)
  if base == "diagonal":
    z = (z - moments["mean"]) / np.exp(moments["log_scale"])
  elif base == "full":
    z = (z - moments["mean"]) @ moments["whitening"].T
  want = [numpy_energy({"params": theta}, point, confinement=0.7) for point in z]
  got = jax.jit(jax.vmap(energy.apply, (None, 0)))(params, data)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  # The network is that of `init`.
  start = energy.init(jax.random.key(0), data[0])["params"]
  for name, layer in theta.items():
    np.testing.assert_array_equal(layer["kernel"], start[name]["kernel"])


def test_features_are_the_last_hidden_layer():
  rng = np.random.default_rng(0)
  data = 4 + 3 * rng.normal(size=(50, 2)).astype(np.float32)
  energy = MLP(widths=(5, 4), num_classes=3, base="diagonal")
  params = energy.init_from_data(jax.random.key(0), data, 1)
  theta = params["params"]
  z = (data[0] - theta["base"]["mean"]) / np.exp(theta["base"]["log_scale"])
  hidden = np.concatenate([z, [0.0, 0.0, 1.0]])
  for name in ("Dense_0", "Dense_1"):
    kernel, bias = theta[name]["kernel"], theta[name]["bias"]
    hidden = np.logaddexp(hidden @ np.asarray(kernel) + np.asarray(bias), 0)
  got = energy.features(params, data[0], 2)
  assert got.shape == (4,)
  np.testing.assert_allclose(got, hidden, rtol=1e-4)
  batch = jax.jit(jax.vmap(energy.features, (None, 0, 0)))(
    params, data[:3], jnp.array([2, 0, 1])
  )
  np.testing.assert_allclose(batch[0], got, rtol=1e-5)
  assert np.isfinite(
    jax.grad(lambda p: energy.features(p, data[0], 2).sum())(params)["params"]["base"][
      "log_scale"
    ]
  ).all()
