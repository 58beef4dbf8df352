"""PyTorch's CD against ours; skipped where PyTorch is not installed."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.rbm import torch_peer, torch_training
from stein_jax import contrastive_loss
from stein_jax.energies import GaussianBernoulliRBM


@pytest.fixture
def torch():
  pytest.importorskip("torchebm")
  return pytest.importorskip("torch")


def problem(dtype):
  """Seven points of six numbers, and a random RBM."""
  rng = np.random.default_rng(0)
  B, b, c, x = (rng.normal(size=s) for s in ((6, 3), 6, 3, (7, 6)))
  params = {name: v.astype(dtype) for name, v in {"B": B, "b": b, "c": c}.items()}
  return params, x.astype(dtype)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", torch_peer.KINDS)
def test_the_peer_has_our_energy(torch, kind):
  params, x = problem(np.float64)
  model = torch_peer._rbm(kind, params)
  with torch.no_grad():
    theirs = model(torch.tensor(x)).numpy()
  apply = jax.vmap(GaussianBernoulliRBM(3).apply, (None, 0))
  np.testing.assert_allclose(theirs, apply({"params": params}, x), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", torch_peer.KINDS)
@pytest.mark.parametrize("k", [1, 2])
def test_the_peer_takes_our_steps(torch, kind, k):
  """Three updates over the end of an epoch, against our loss, optax and NumPy."""
  params, data = problem(np.float64)
  settings = torch_peer.Settings(k, 0.3, batch_size=3, learning_rate=0.01, adam_b1=0.5)
  peer = torch_peer.Peer(kind, params, data, settings, seed=5)
  peer.train(2)
  peer.train(1)

  generator = torch.Generator().manual_seed(5)
  rbm = GaussianBernoulliRBM(3)
  optimizer = optax.adam(0.01, b1=0.5)
  ours = {"params": jax.tree.map(jnp.asarray, params)}
  opt_state = optimizer.init(ours)
  for step in range(3):
    if step % 2 == 0:  # seven points make two batches of three
      order = torch.randperm(7, generator=generator).numpy()
    batch = data[order[3 * (step % 2) :][:3]]
    x, (B, b, c) = batch, (np.asarray(ours["params"][name]) for name in "Bbc")
    for _ in range(k):
      z = torch.randn((3, 6), dtype=torch.float64, generator=generator).numpy()
      score = b + np.tanh(x @ B + c) @ B.T - x
      x = x + 0.3 * score + np.sqrt(0.6) * z
    gradient = jax.grad(contrastive_loss)(ours, rbm.apply, batch, x)
    for name, parameter in peer._model.named_parameters() if step == 2 else ():
      np.testing.assert_allclose(
        parameter.grad.numpy(), gradient["params"][name], rtol=1e-6, atol=1e-9
      )
    updates, opt_state = optimizer.update(gradient, opt_state)
    ours = optax.apply_updates(ours, updates)
  for name, theirs in peer.params().items():
    np.testing.assert_allclose(theirs, ours["params"][name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("kind", torch_peer.KINDS)
def test_a_peer_is_timed_and_evaluated_exactly(torch, kind):
  rbm = GaussianBernoulliRBM(3)
  x = jax.random.uniform(jax.random.key(0), (40, 6))
  split = torch_training.Split(rbm, x[:30], x[30:])
  settings = torch_peer.Settings(1, batch_size=10)
  histories = {
    seed: torch_training.train_peer(
      "CD-1", kind, seed, settings, split, num_steps=5, eval_every=2, progress=False
    )
    for seed in (0, 1)
  }
  init_key, _ = jax.random.split(jax.random.key(1))
  start = rbm.init_from_data(init_key, x[:30])  # as experiments.mnist_rbm begins
  expected = rbm.log_likelihood(start, x[30:]).mean()
  assert histories[1].log_likelihood[0] == pytest.approx(float(expected), abs=1e-4)
  assert histories[1].steps == [0, 2, 4, 5]
  assert len(histories[1].ms) == 3
  result = torch_training.method_of(histories)
  ms = [ms for history in histories.values() for ms in history.ms[1:]]
  assert result["ms_per_step"] == pytest.approx(np.median(ms))
  assert result["curve"]["seconds"][-1] == pytest.approx(5 * np.median(ms) / 1000)
  assert len(set(result["curve"]["mean"])) == 4
  assert result["curve"]["sd"][0] > 0


def test_a_missing_package_is_an_error_that_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(ImportError, match=r"pip install -e '\.\[peers\]'"):
    torch_peer.versions()
