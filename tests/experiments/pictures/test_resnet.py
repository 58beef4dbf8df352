"""Training of ResNets, compared with steps by hand; and where they are saved."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments.pictures import resnet, scores
from experiments.shared import classifiers, datasets
from tests.experiments.pictures.resnets import TINY, coloured, train

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.mark.slow
def test_a_resnet_learns_to_classify(fitted):
  assert classifiers.accuracy(fitted, *coloured(300, 1)) > 0.95
  images, _ = coloured(501, 2)
  p = fitted.probabilities(images)
  np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
  # batch norm uses running statistics: other images do not change an answer
  np.testing.assert_allclose(fitted.probabilities(images[:7]), p[:7], atol=1e-5)
  assert fitted.features(images[:7]).shape == (7, 16)


class Small(nn.Module):
  """A dense layer with batch norm, which compiles quickly."""

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Dense(3)(images.reshape(len(images), -1))
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


@pytest.fixture
def batch():
  images, labels = coloured(16, 0)
  return {"x": jnp.asarray(images / 255.0, jnp.float32), "context": jnp.asarray(labels)}


def initial(algorithm, batch):
  variables = Small().init(jax.random.key(0), batch["x"])
  return variables, algorithm.init(jax.random.key(1), variables, batch)


def test_a_step_is_that_of_gradient_descent_with_momentum_and_weight_decay(batch):
  recipe = TINY._replace(num_steps=4, weight_decay=0.1, momentum=0.8)
  algorithm = resnet.residual_classification(
    Small(), resnet.optimizer(recipe), augment=False
  )
  variables, state = initial(algorithm, batch)

  def loss(params):
    x = batch["x"].reshape(16, -1) @ params["Dense_0"]["kernel"]
    mean, variance = x.mean(axis=0), x.var(axis=0)
    norm = params["BatchNorm_0"]
    z = (x - mean[None]) / jnp.sqrt(variance + 1e-5)[None] * norm["scale"][None]
    log_p = jax.nn.log_softmax(z + norm["bias"][None])
    moments = {"mean": mean, "var": variance}
    return -log_p[jnp.arange(16), batch["context"]].mean(), moments

  # The dense layer's bias stays 0: batch norm cancels it.
  params, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
  velocity = jax.tree.map(jnp.zeros_like, params)
  gradient_fn = jax.jit(jax.value_and_grad(loss, has_aux=True))
  for step in range(3):
    state, metrics = jax.jit(algorithm.update)(jax.random.key(2), state, batch)
    (value, moments), gradient = gradient_fn(params)
    assert metrics["loss"] == pytest.approx(float(value), rel=1e-4)
    rate = 0.05 * (1 + math.cos(math.pi * step / 4)) / 2
    velocity = jax.tree.map(
      lambda v, g, w: 0.8 * v + g + 0.1 * w, velocity, gradient, params
    )
    params = jax.tree.map(lambda w, v, rate=rate: w - rate * v, params, velocity)
    stats = {name: 0.9 * stats[name] + 0.1 * moments[name] for name in stats}
  for tree, expected in (
    (state.params, params),
    (state.batch_stats["BatchNorm_0"], stats),
  ):
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for own, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected)):
      np.testing.assert_allclose(own, other, atol=2e-5)


def test_the_accuracy_in_the_metrics_is_the_fraction_of_right_answers(batch):
  algorithm = resnet.residual_classification(Small(), optax.sgd(0.0), augment=False)
  variables, state = initial(algorithm, batch)
  logits, _ = Small().apply(variables, batch["x"], train=True, mutable=["batch_stats"])
  answers = np.asarray(logits).argmax(axis=1)
  some_right = np.where(np.arange(16) < 5, answers, (answers + 1) % 3)
  key = jax.random.key(0)
  _, metrics = algorithm.update(key, state, batch | {"context": some_right})
  assert metrics["accuracy"] == pytest.approx(5 / 16)


def test_a_step_learns_from_augmented_images_if_asked_to(batch):
  plain, augmenting = (
    resnet.residual_classification(Small(), optax.sgd(1.0), augment=augment)
    for augment in (False, True)
  )
  _, state = initial(plain, batch)
  key = jax.random.key(3)
  own, metrics = augmenting.update(key, state, batch)
  seen = batch | {"x": resnet.augmented(key, batch["x"])}
  expected, expected_metrics = plain.update(key, state, seen)
  assert metrics["loss"] == pytest.approx(float(expected_metrics["loss"]))
  for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  _, metrics = plain.update(key, state, batch)
  assert metrics["loss"] != pytest.approx(float(expected_metrics["loss"]), rel=1e-3)


@pytest.mark.parametrize("augment", [False, True])
def test_the_recipe_says_whether_to_augment(augment, batch):
  network, algorithm = resnet._network_and_algorithm(TINY._replace(augment=augment), 3)
  variables = jax.eval_shape(network.init, jax.random.key(0), batch["x"])
  key = jax.random.key(0)
  state = jax.eval_shape(algorithm.init, key, variables, batch)
  draws = "random_bits" in str(jax.make_jaxpr(algorithm.update)(key, state, batch))
  assert draws == augment


def test_augmented_images_are_shifted_and_half_of_them_mirrored():
  images = np.arange(1, 11 * 11 + 1, dtype=np.float32).reshape(1, 11, 11, 1)
  seen = resnet.augmented(jax.random.key(0), jnp.asarray(images.repeat(600, 0)))
  counts = {}
  for image in np.asarray(seen)[..., 0]:
    # the pixels around the centre are never padding
    steps = {image[5, 6] - image[5, 5], image[5, 5] - image[5, 4]}
    assert steps in ({1.0}, {-1.0})
    mirrored = steps == {-1.0}
    row, column = divmod(int(image[5, 5]) - 1, 11)
    source = images[0, ..., 0][:, ::-1] if mirrored else images[0, ..., 0]
    shift = row - 5, (5 - column if mirrored else column - 5)
    window = np.pad(source, 4)[4 + shift[0] : 15 + shift[0], 4 + shift[1] :][:, :11]
    np.testing.assert_array_equal(image, window)
    counts[shift, mirrored] = counts.get((shift, mirrored), 0) + 1
  for axis in (0, 1):
    assert {shift[axis] for shift, _ in counts} == set(range(-4, 5))
  share = sum(n for (_, mirrored), n in counts.items() if mirrored) / 600
  assert share == pytest.approx(0.5, abs=0.1)


def test_a_resnet_is_loaded_or_trained_again_for_other_data_recipes_and_seeds(
  fitted, classifier_dir, monkeypatch
):
  images, labels = coloured(96, 0)

  def fail(*args, **kwargs):
    raise AssertionError("trained again")

  monkeypatch.setattr(classifiers.training, "fit", fail)
  again = train(images, labels, classifier_dir, name="coloured")
  assert again.path == fitted.path
  assert "coloured" in again.path.name
  for own, kept in zip(jax.tree.leaves(again.params), jax.tree.leaves(fitted.params)):
    np.testing.assert_array_equal(own, kept)
  others = [
    ((images, labels), {"refit": True}),
    ((images, labels), {"seed": 1}),
    ((images, labels), {"recipe": TINY._replace(weight_decay=0.0)}),
    ((images, labels), {"num_classes": 4}),
    ((images, (labels + 1) % 3), {}),
    (coloured(96, 1), {}),
  ]
  for (x, y), options in others:
    with pytest.raises(AssertionError, match="trained again"):
      train(x, y, classifier_dir, **{"name": "coloured", **options})


def test_a_saved_file_that_cannot_be_read_is_named(fitted, tmp_path):
  (tmp_path / fitted.path.name).write_bytes(fitted.path.read_bytes()[:500])
  with pytest.raises(OSError, match="is not a saved classifier"):
    train(*coloured(96, 0), tmp_path, name="coloured")


def test_a_name_with_any_characters_gives_a_file_name(tmp_path):
  path = classifiers.cache_path("A/B: C w/o D", ("x",), (np.zeros(3),), tmp_path)
  assert path.parent == tmp_path
  assert " " not in path.name


def test_wrong_images_and_labels_are_errors(tmp_path):
  images, labels = coloured(32, 0)
  cases = [
    (images / 255, labels, "uint8"),
    (images[..., 0], labels, r"\[n, h, w, c\]"),
    (images, labels[:-1], "32 integers"),
    (images, labels.astype(float), "32 integers"),
    (images, labels - 1, "from 0"),
    (images[:15], labels[:15], "15 images are fewer than a batch of 16"),
  ]
  for x, y, message in cases:
    with pytest.raises(ValueError, match=message):
      train(x, y, tmp_path)
  with pytest.raises(ValueError, match="from 0 to 1, got 0 to 2"):
    train(images, labels, tmp_path, num_classes=2)


def dataset(labelled=True):
  images, labels = coloured(108, 0)
  images[:96], labels = coloured(96, 0)[0], labels.astype(np.int32)
  split = [slice(0, 80), slice(80, 96), slice(96, 108)]
  return datasets.Dataset(
    "coloured",
    "made here",
    *(images[rows] for rows in split),
    *(labels[rows] if labelled else None for rows in split),
  )


def test_the_reference_resnet_learns_from_all_images_but_the_test_images(
  fitted, tmp_path
):
  options = {"recipe": TINY, "cache_dir": tmp_path, "progress": False}
  reference = resnet.reference_resnet(dataset(), **options)
  for own, other in zip(
    jax.tree.leaves(reference.params), jax.tree.leaves(fitted.params)
  ):
    np.testing.assert_array_equal(own, other)
  images, labels = dataset().test, dataset().test_labels
  right = reference.probabilities(images).argmax(axis=1) == labels
  assert reference.test_accuracy == right.mean()
  with pytest.raises(ValueError, match="needs labels"):
    resnet.reference_resnet(dataset(labelled=False), **options)


def test_scores_in_the_view_of_a_resnet(fitted):
  images, _ = coloured(90, 4)
  real = fitted.features(coloured(90, 5)[0])
  found = scores.scores_in_view_of(fitted, images, real)
  assert found == scores.scores(
    images,
    probabilities=fitted.probabilities(images),
    features=fitted.features(images),
    real_features=real,
  )
  assert 2.5 < found["inception_score"] <= 3
