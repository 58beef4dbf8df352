"""The critic's network against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.networks.critics import VectorMLP


@pytest.mark.usefixtures("x64")
def test_it_is_a_network_by_hand():
  critic = VectorMLP((4,), activation=jnp.tanh)
  x, context = np.random.default_rng(0).normal(size=(2, 3)), np.array([0.3, -1.0])
  params = critic.init(jax.random.key(0), x, context)
  first, last = (params["params"][f"Dense_{i}"] for i in range(2))
  hidden = np.tanh(np.concatenate([x.ravel(), context]) @ first["kernel"])
  want = (hidden @ last["kernel"]).reshape(2, 3)
  np.testing.assert_allclose(critic.apply(params, x, context), want, rtol=1e-12)


def test_shapes_and_types():
  x = jnp.ones((2, 3), jnp.float32)
  for critic in (VectorMLP(), VectorMLP(())):
    params = critic.init(jax.random.key(0), x)
    f = critic.apply(params, x)
    assert f.shape == x.shape
    assert f.dtype == x.dtype


def test_bad_input():
  with pytest.raises(ValueError, match="each of widths must be an integer of at least"):
    VectorMLP((4, 0))
  with pytest.raises(TypeError, match="activation must be a function such as"):
    VectorMLP(activation="silu")
  with pytest.raises(TypeError, match="x must be one array, got a dict"):
    VectorMLP().init(jax.random.key(0), {"a": jnp.ones(2)})
