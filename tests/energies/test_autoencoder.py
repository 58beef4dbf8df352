"""The autoencoder energies (24) and (25): sizes, norms, margins and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.special import log_softmax

from stein_jax import energies
from stein_jax.energies import Autoencoder, JointAutoencoder, Layer
from stein_jax.energies.autoencoder import NORMALIZATIONS, _transposed
from stein_jax.networks.layers import convolution
from tests import quick

SMALL = (Layer(6, 3), Layer(6, 2, 2), Layer(5, 4, 4))


def picture(*shape, seed=0, dtype=np.float32):
  return np.random.default_rng(seed).uniform(-1, 1, size=shape).astype(dtype)


def made(energy, *context, dtype=np.float32, scale=3.0):
  """An energy's parameters, made larger than they start so that all of it matters."""
  x = picture(8, 8, 3, dtype=dtype)
  params = energy.init(jax.random.key(0), x, *context)
  noise = np.random.default_rng(1)
  return jax.tree.map(
    lambda p: jnp.asarray(scale * p + 0.1 * noise.normal(size=p.shape), dtype), params
  )


def num_parameters(energy, size, *context):
  x = jax.ShapeDtypeStruct((size, size, 3), jnp.float32)
  shapes = jax.eval_shape(energy.init, jax.random.key(0), x, *context)
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_the_authors_networks_have_as_many_parameters_as_theirs():
  kernels = [
    27 * 128,
    4 * 128 * 128,
    9 * 128 * 256,
    16 * 256 * 256,
    9 * 256 * 512,
    16 * 512**2,
  ]
  tied = num_parameters(Autoencoder(normalization="none"), 32)
  biases = 2 * (128 + 128 + 256 + 256 + 512) + 512 + 3
  assert tied == sum(kernels) + biases
  free = num_parameters(Autoencoder(normalization="none", tied=False), 32)
  assert free == 2 * sum(kernels) + biases
  celeb_a = num_parameters(Autoencoder(energies.CELEB_A_LAYERS), 64)
  assert 2.8e6 < celeb_a < 2.83e6  # the paper has about 2.5 million
  joint = num_parameters(JointAutoencoder(Autoencoder()), 32, jnp.int32(0))
  assert joint == num_parameters(Autoencoder(), 32) + 513 * 10


@pytest.mark.parametrize("norm", ["l2", "l1_l2"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_energy_is_the_norm_of_what_is_not_given_back(norm, tied):
  energy = Autoencoder(SMALL, norm=norm, tied=tied)
  params, x = made(energy), picture(8, 8, 3, seed=2)
  back = np.asarray(energy.apply(params, x, method="reconstruct"), np.float64)
  assert back.shape == x.shape
  assert np.abs(back).max() <= 1
  missing = np.abs(x - back)
  want = np.sqrt(np.sum(missing**2))
  want += np.sqrt(np.sum(missing)) if norm == "l1_l2" else 0
  np.testing.assert_allclose(energy.apply(params, x), want, rtol=1e-4)


def test_a_picture_given_back_whole_has_energy_near_zero_and_a_gradient():
  energy = Autoencoder(SMALL)
  params = energy.init(jax.random.key(0), jnp.zeros((8, 8, 3)))
  reconstruct = jax.jit(lambda x: energy.apply(params, x, method="reconstruct"))
  x = jnp.zeros((8, 8, 3))
  for _ in range(200):
    x = reconstruct(x)
  assert energy.apply(params, x) < 2e-3
  assert jnp.isfinite(jax.grad(energy.apply, argnums=1)(params, x)).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  "normalization", quick.only(["weight", "none"], NORMALIZATIONS)
)
def test_gradients_are_those_of_finite_differences(normalization):
  energy = Autoencoder(SMALL, normalization=normalization)
  order = 2 if normalization == "group" else 1
  params, x = made(energy, dtype=np.float64), picture(8, 8, 3, dtype=np.float64)
  check_grads(
    jax.jit(energy.apply),
    (params, jnp.asarray(x)),
    order=order,
    modes=["rev"],
    eps=1e-6,
  )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("margin", quick.only([0.01], [0.01, 8.0]))
def test_joint_gradients_are_those_of_finite_differences(margin):
  energy = JointAutoencoder(Autoencoder(SMALL), 4, margin)
  label = jnp.int32(2)
  params = made(energy, label, dtype=np.float64)
  x = jnp.asarray(picture(8, 8, 3, dtype=np.float64))
  check_grads(
    jax.jit(lambda p, x: energy.apply(p, x, label)),
    (params, x),
    order=1,
    modes=["fwd", "rev"],
    eps=1e-5,
  )


def test_a_label_counts_above_the_margin_only():
  label = jnp.int32(1)
  joint = JointAutoencoder(Autoencoder(SMALL), 4, 1.0)
  params, x = made(joint, label), picture(8, 8, 3, seed=3)
  alone = {"params": params["params"]["autoencoder"]}
  plain = Autoencoder(SMALL)
  logits = np.asarray(joint.apply(params, x, method="logits"), np.float64)
  cross_entropies = -log_softmax(logits)
  assert cross_entropies.min() < 1 < cross_entropies.max()
  rest = float(plain.apply(alone, x))
  for y, cross_entropy in enumerate(cross_entropies):
    want = rest + max(cross_entropy, 1.0)
    np.testing.assert_allclose(joint.apply(params, x, jnp.int32(y)), want, rtol=1e-5)
  easy, hard = (int(f(cross_entropies)) for f in (np.argmin, np.argmax))
  gradient = jax.grad(joint.apply, argnums=1)
  of_rest = jax.grad(plain.apply, argnums=1)(alone, x)
  np.testing.assert_allclose(gradient(params, x, jnp.int32(easy)), of_rest, rtol=1e-5)
  assert not np.allclose(gradient(params, x, jnp.int32(hard)), of_rest, rtol=1e-2)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_picture_s_energy_does_not_depend_on_its_batch(normalization):
  energy = Autoencoder(SMALL, normalization=normalization)
  params, x = made(energy), picture(5, 8, 8, 3)
  batch = jax.vmap(energy.apply, in_axes=(None, 0))(params, x)
  for one, of_batch in zip(x, batch):
    np.testing.assert_allclose(energy.apply(params, one), of_batch, rtol=1e-5)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("size", "stride", "extent"), [(3, 1, 5), (4, 4, 8), (5, 4, 9)]
)
def test_the_decoder_s_layers_are_transposes(size, stride, extent):
  x = picture(extent, extent, 2, dtype=np.float64)
  kernel = picture(size, size, 2, 3, seed=1, dtype=np.float64)
  forward = convolution(x[None], jnp.asarray(kernel), (stride, stride))[0]
  y = picture(*forward.shape, seed=2, dtype=np.float64)
  back = _transposed(jnp.asarray(y), jnp.asarray(kernel), stride, x.shape[:2])
  np.testing.assert_allclose(np.sum(forward * y), np.sum(x * back), rtol=1e-12)


def test_bfloat16_computes_and_float32_is_kept():
  plain, half = Autoencoder(SMALL), Autoencoder(SMALL, dtype=jnp.bfloat16)
  params, x = made(plain), picture(8, 8, 3)
  start = half.init(jax.random.key(0), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {jnp.dtype("float32")}
  got = half.apply(params, x)
  assert got.dtype == jnp.float32
  assert got != plain.apply(params, x)
  np.testing.assert_allclose(got, plain.apply(params, x), rtol=0.02)


def test_features_are_the_code():
  joint = JointAutoencoder(Autoencoder(SMALL), 4)
  params, x = made(joint, jnp.int32(0)), picture(8, 8, 3)
  code = joint.apply(params, x, method="encode")
  assert code.shape == (1, 1, 5)
  np.testing.assert_array_equal(joint.features(params, x), code.ravel())
  alone = {"params": params["params"]["autoencoder"]}
  np.testing.assert_array_equal(Autoencoder(SMALL).features(alone, x), code.ravel())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"layers": ()}, "at least one layer"),
    ({"norm": "l3"}, "norm must be one of"),
    ({"normalization": "batch"}, "normalization must be one of"),
    ({"width": 0.0}, "width must be"),
  ],
)
def test_invalid_options_are_rejected(options, message):
  with pytest.raises(ValueError, match=message):
    Autoencoder(**options)


def test_a_label_that_is_none_is_noticed():
  joint = JointAutoencoder(Autoencoder(SMALL), 4)
  params, x = made(joint, jnp.int32(0)), picture(8, 8, 3)
  for label in (-1, 4):
    assert jnp.isnan(jax.jit(joint.apply)(params, x, jnp.int32(label)))
  with pytest.raises(ValueError, match="must be one integer, got shape"):
    joint.apply(params, x, 1.0)


def test_a_picture_of_other_channels_is_rejected():
  with pytest.raises(ValueError, match=r"must be \[height, width, 3\], got shape"):
    Autoencoder(SMALL).init(jax.random.key(0), jnp.zeros((8, 8, 1)))


def test_few_channels_are_normalised_together():
  energy = Autoencoder((Layer(5, 8, 8),))
  params = made(energy)
  x, y = picture(8, 8, 3), picture(8, 8, 3, seed=9)
  back = [energy.apply(params, z, method="reconstruct") for z in (x, y)]
  assert not np.allclose(*back, atol=1e-3)
