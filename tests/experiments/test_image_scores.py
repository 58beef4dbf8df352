"""Scores of pictures on data whose scores are known, and the table of figure 2."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from experiments import classifier
from experiments.pictures import image_scores
from experiments.shared import data
from stein_jax import evaluation

TINY = image_scores.Recipe(
  num_steps=60, depth=8, width=0.25, batch_size=16, learning_rate=0.05, augment=False
)


@pytest.fixture(scope="module", autouse=True)
def _quick_compilation():
  """A few steps of tiny networks take longer to compile well than to run."""
  name = "jax_disable_most_optimizations"
  before = jax.config.values[name]
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


def coloured(n, seed, classes=3):
  """Noisy 8×8 pictures, in each of which one of the colours is brighter."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % classes
  images = rng.integers(0, 120, (n, 8, 8, 3))
  images[np.arange(n), :, :, labels] += 120
  return images.astype(np.uint8), labels


def train(images, labels, folder, recipe=TINY, **options):
  return image_scores.train_resnet(
    images, labels, recipe=recipe, cache_dir=folder, progress=False, **options
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("classifiers")


@pytest.fixture(scope="module")
def fitted(folder):
  return train(*coloured(96, 0), folder, name="coloured")


# --- training ---------------------------------------------------------------------


def test_learns_what_can_be_told_apart(fitted):
  assert image_scores.accuracy(fitted, *coloured(300, 1)) > 0.95
  images, _ = coloured(501, 2)
  p = fitted.probabilities(images)
  np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
  # batch norm's running statistics: an answer does not depend on its neighbours
  np.testing.assert_allclose(fitted.probabilities(images[:7]), p[:7], atol=1e-5)
  assert fitted.features(images[:7]).shape == (7, 16)


class Small(nn.Module):
  """A dense layer with batch norm: quick to compile."""

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Dense(3)(images.reshape(len(images), -1))
    return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)


@pytest.fixture
def batch():
  images, labels = coloured(16, 0)
  return {"x": jnp.asarray(images / 255.0, jnp.float32), "context": jnp.asarray(labels)}


def begin(rule, batch):
  variables = Small().init(jax.random.key(0), batch["x"])
  return variables, rule.init(jax.random.key(1), variables, batch)


def test_a_step_is_that_of_gradient_descent_with_momentum_and_weight_decay(batch):
  recipe = TINY._replace(num_steps=4, weight_decay=0.1, momentum=0.8)
  rule = image_scores.residual_classification(
    Small(), image_scores.optimizer(recipe), augment=False
  )
  variables, state = begin(rule, batch)

  def loss(params):
    x = batch["x"].reshape(16, -1) @ params["Dense_0"]["kernel"]
    mean, variance = x.mean(axis=0), x.var(axis=0)
    norm = params["BatchNorm_0"]
    z = (x - mean[None]) / jnp.sqrt(variance + 1e-5)[None] * norm["scale"][None]
    log_p = jax.nn.log_softmax(z + norm["bias"][None])
    moments = {"mean": mean, "var": variance}
    return -log_p[jnp.arange(16), batch["context"]].mean(), moments

  # the bias of the dense layer is 0 at the start, and batch norm leaves it there
  params, stats = variables["params"], variables["batch_stats"]["BatchNorm_0"]
  velocity = jax.tree.map(jnp.zeros_like, params)
  gradient_fn = jax.jit(jax.value_and_grad(loss, has_aux=True))
  for step in range(3):
    state, metrics = jax.jit(rule.update)(jax.random.key(2), state, batch)
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


def test_the_accuracy_in_the_metrics_is_the_share_of_right_answers(batch):
  rule = image_scores.residual_classification(Small(), optax.sgd(0.0), augment=False)
  variables, state = begin(rule, batch)
  logits, _ = Small().apply(variables, batch["x"], train=True, mutable=["batch_stats"])
  answers = np.asarray(logits).argmax(axis=1)
  some_right = np.where(np.arange(16) < 5, answers, (answers + 1) % 3)
  key = jax.random.key(0)
  _, metrics = rule.update(key, state, batch | {"context": some_right})
  assert metrics["accuracy"] == pytest.approx(5 / 16)


def test_a_step_sees_augmented_pictures_where_it_is_to(batch):
  plain, augmenting = (
    image_scores.residual_classification(Small(), optax.sgd(1.0), augment=augment)
    for augment in (False, True)
  )
  _, state = begin(plain, batch)
  key = jax.random.key(3)
  own, metrics = augmenting.update(key, state, batch)
  seen = batch | {"x": image_scores.augmented(key, batch["x"])}
  expected, expected_metrics = plain.update(key, state, seen)
  assert metrics["loss"] == pytest.approx(float(expected_metrics["loss"]))
  for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, atol=1e-5)
  _, metrics = plain.update(key, state, batch)
  assert metrics["loss"] != pytest.approx(float(expected_metrics["loss"]), rel=1e-3)


@pytest.mark.parametrize("augment", [False, True])
def test_the_recipe_says_whether_to_augment(augment, batch):
  network, rule = image_scores._rule(TINY._replace(augment=augment), 3)
  variables = jax.eval_shape(network.init, jax.random.key(0), batch["x"])
  key = jax.random.key(0)
  state = jax.eval_shape(rule.init, key, variables, batch)
  draws = "random_bits" in str(jax.make_jaxpr(rule.update)(key, state, batch))
  assert draws == augment


def test_augmented_pictures_are_shifted_and_half_of_them_mirrored():
  images = np.arange(1, 11 * 11 + 1, dtype=np.float32).reshape(1, 11, 11, 1)
  seen = image_scores.augmented(jax.random.key(0), jnp.asarray(images.repeat(600, 0)))
  counts = {}
  for image in np.asarray(seen)[..., 0]:
    # the middle of what was padded is always within
    steps = {image[5, 6] - image[5, 5], image[5, 5] - image[5, 4]}
    assert steps in ({1.0}, {-1.0})
    mirrored = steps == {-1.0}
    row, column = divmod(int(image[5, 5]) - 1, 11)
    source = images[0, ..., 0][:, ::-1] if mirrored else images[0, ..., 0]
    place = row - 5, (5 - column if mirrored else column - 5)
    window = np.pad(source, 4)[4 + place[0] : 15 + place[0], 4 + place[1] :][:, :11]
    np.testing.assert_array_equal(image, window)
    counts[place, mirrored] = counts.get((place, mirrored), 0) + 1
  for axis in (0, 1):
    assert {place[axis] for place, _ in counts} == set(range(-4, 5))
  share = sum(n for (_, mirrored), n in counts.items() if mirrored) / 600
  assert share == pytest.approx(0.5, abs=0.1)


def test_kept_and_trained_again_for_other_data_recipes_and_seeds(
  fitted, folder, monkeypatch
):
  images, labels = coloured(96, 0)

  def fail(*args, **kwargs):
    raise AssertionError("trained again")

  monkeypatch.setattr(classifier.training, "fit", fail)
  again = train(images, labels, folder, name="coloured")
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
      train(x, y, folder, **{"name": "coloured", **options})


def test_a_broken_file_is_named(fitted, tmp_path):
  (tmp_path / fitted.path.name).write_bytes(fitted.path.read_bytes()[:500])
  with pytest.raises(ValueError, match="is no saved classifier"):
    train(*coloured(96, 0), tmp_path, name="coloured")


def test_any_name_makes_a_file_s_name(tmp_path):
  path = classifier.cache_path("A/B: C w/o D", ("x",), (np.zeros(3),), tmp_path)
  assert path.parent == tmp_path
  assert " " not in path.name


def test_what_cannot_be_learned_from_is_refused(tmp_path):
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
  return data.Dataset(
    "coloured",
    "made here",
    *(images[rows] for rows in split),
    *(labels[rows] if labelled else None for rows in split),
  )


def test_the_judge_learns_from_all_that_is_not_test(fitted, tmp_path):
  options = {"recipe": TINY, "cache_dir": tmp_path, "progress": False}
  judge = image_scores.judge(dataset(), **options)
  for own, other in zip(jax.tree.leaves(judge.params), jax.tree.leaves(fitted.params)):
    np.testing.assert_array_equal(own, other)
  images, labels = dataset().test, dataset().test_labels
  right = judge.probabilities(images).argmax(axis=1) == labels
  assert judge.test_accuracy == right.mean()
  with pytest.raises(ValueError, match="needs labels"):
    image_scores.judge(dataset(labelled=False), **options)


# --- accuracies -------------------------------------------------------------------


class Constant(nn.Module):
  """Always the same answer."""

  answer: int

  def __call__(self, images):
    logits = jnp.zeros(10).at[self.answer].set(1.0)
    return jnp.tile(logits, (len(images), 1))


def test_accuracy_of_a_constant_is_how_frequent_it_is():
  images, _ = coloured(700, 0)
  labels = np.arange(700) % 7
  always = classifier.Classifier(Constant(3), {}, (8, 8, 3))
  assert image_scores.accuracy(always, images, labels) == pytest.approx(1 / 7)
  never = classifier.Classifier(Constant(9), {}, (8, 8, 3))
  assert image_scores.accuracy(never, images, labels) == 0


def test_duplicates_are_so_many_of_so_many_different_ones():
  rng = np.random.default_rng(0)
  images = rng.permutation(3000)[:, None, None, None].repeat(3, axis=3)
  labels = images[:, 0, 0, 0] % 10
  drawn, drawn_labels = image_scores.duplicates(images, labels)
  values, counts = np.unique(drawn[:, 0, 0, 0], return_counts=True)
  assert len(values) == 500
  assert set(counts) == {100}
  np.testing.assert_array_equal(drawn_labels, drawn[:, 0, 0, 0] % 10)
  again, _ = image_scores.duplicates(images, labels)
  np.testing.assert_array_equal(again, drawn)
  other, _ = image_scores.duplicates(images, labels, seed=1)
  assert set(other[:, 0, 0, 0]) != set(values)
  few, _ = image_scores.duplicates(images, labels, num_distinct=3000, copies=2)
  assert sorted(few[:, 0, 0, 0]) == sorted([*range(3000), *range(3000)])
  for wrong in ({"num_distinct": 3001}, {"num_distinct": 0}, {"copies": 0}):
    with pytest.raises(ValueError, match="must"):
      image_scores.duplicates(images, labels, **wrong)


def test_accuracy_by_training_set_tells_true_labels_from_false_ones(folder):
  images, labels = coloured(96, 0)
  more, more_labels = coloured(144, 2)
  sets = {
    "true": (images, labels),
    "each one's neighbour": (images, (labels + 1) % 3),
    "two of three": (more[more_labels < 2], more_labels[more_labels < 2]),
  }
  found = image_scores.accuracy_by_training_set(
    sets, coloured(300, 1), recipe=TINY, cache_dir=folder, progress=False
  )
  assert list(found) == list(sets)
  assert found["true"] > 0.95
  assert found["each one's neighbour"] < 0.05
  assert found["two of three"] == pytest.approx(2 / 3, abs=0.05)


def test_a_set_that_will_not_do_is_refused_before_the_first_training(
  folder, monkeypatch
):
  def fail(*args, **kwargs):
    raise AssertionError("trained")

  monkeypatch.setattr(classifier.training, "fit", fail)
  images, labels = coloured(96, 0)
  for name, wrong, message in (
    ("floats", (images / 255, labels), "floats: images must be"),
    ("large", (images.repeat(2, axis=1), labels), "large: pictures of shape"),
    ("few", (images[:8], labels[:8]), "few: 8 images are fewer"),
  ):
    with pytest.raises(ValueError, match=message):
      image_scores.accuracy_by_training_set(
        {"fresh": coloured(96, 9), name: wrong},
        coloured(30, 1),
        recipe=TINY,
        cache_dir=folder,
      )


# --- scores -----------------------------------------------------------------------


def test_scores_are_those_of_evaluation_on_the_same_draws():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (60, 4, 4, 3), np.uint8)
  p = rng.dirichlet(np.ones(5), size=60)
  features, real = rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + 1
  found = image_scores.scores(
    images, probabilities=p, features=features, real_features=real
  )
  expected = {
    "inception_score": evaluation.inception_score(p),
    "label_entropy": evaluation.label_entropy(p),
    "frechet_distance": evaluation.frechet_distance(features, real),
    "kernel_inception_distance": evaluation.kernel_inception_distance(features, real),
    "mean_pairwise_distance": evaluation.mean_pairwise_distance(images / 255),
  }
  for name, estimate in expected.items():
    assert found[name] == pytest.approx(estimate.value, rel=1e-5)
    assert found[f"{name}_standard_error"] > 0
  precision, recall = evaluation.precision_and_recall(real, features)
  assert (found["precision"], found["recall"]) == (precision, recall)


def test_pictures_in_order_of_class_score_as_in_any_order(monkeypatch):
  monkeypatch.setattr(image_scores, "COMPARED", 300)
  rng = np.random.default_rng(0)
  labels = np.arange(1000) // 100
  features = np.eye(10)[labels] + 0.01 * rng.normal(size=(1000, 10))
  images = np.full((1000, 2, 2, 3), 25, np.uint8) * labels[:, None, None, None]
  images = images.astype(np.uint8)
  p = np.eye(10)[labels]
  for order in (np.arange(1000), np.arange(1000).reshape(10, 100).T.reshape(-1)):
    found = image_scores.scores(
      images[order], probabilities=p[order], features=features[order],
      real_features=np.eye(10)[labels] + 0.01 * rng.normal(size=(1000, 10)),
    )  # fmt: skip
    # 10 even classes give 10; blocks of one class each would tell of a large error
    assert found["inception_score"] == pytest.approx(10)
    assert found["inception_score_standard_error"] < 0.3
    # first rows of sorted pictures would be of three classes only
    assert found["recall"] > 0.7
    assert abs(found["kernel_inception_distance"]) < 0.02
    assert found["mean_pairwise_distance"] > 0.5


def test_frechet_distance_takes_equal_numbers():
  rng = np.random.default_rng(0)
  features, real = rng.normal(size=(2000, 30)), rng.normal(size=(100, 30))
  images = np.zeros((2000, 1, 1, 3), np.uint8)
  images[::2] = 255
  found = image_scores.scores(
    images, probabilities=np.full((2000, 2), 0.5), features=features,
    real_features=real,
  )["frechet_distance"]  # fmt: skip
  equal, unequal = (
    evaluation.frechet_distance(features[:n], real).value for n in (100, 2000)
  )
  assert abs(found - equal) < abs(found - unequal)


def test_scores_of_a_network_s_view(fitted):
  images, _ = coloured(90, 4)
  real = fitted.features(coloured(90, 5)[0])
  found = image_scores.scores_of(images, fitted, real)
  assert found == image_scores.scores(
    images,
    probabilities=fitted.probabilities(images),
    features=fitted.features(images),
    real_features=real,
  )
  assert 2.5 < found["inception_score"] <= 3


def test_scores_of_other_pictures_are_refused():
  arrays = {
    "probabilities": np.full((20, 2), 0.5),
    "features": np.zeros((20, 2)),
    "real_features": np.zeros((20, 2)),
  }
  with pytest.raises(ValueError, match="uint8"):
    image_scores.scores(np.zeros((20, 2, 2, 3)), **arrays)
  with pytest.raises(ValueError, match="19 images need as many rows"):
    image_scores.scores(np.zeros((19, 2, 2, 3), np.uint8), **arrays)


# --- the table --------------------------------------------------------------------


def cells(table):
  """The header and the rows below the rule."""
  lines = [line.split("|")[1:-1] for line in table.split("\n")]
  header, _, *rows = [[cell.strip() for cell in line] for line in lines]
  return header, rows


def test_the_table_of_nothing_has_the_paper_s_numbers_and_dashes():
  header, lines = cells(image_scores.figure2_table({}))
  assert header == [
    "", "Real Training Set", "500 Duplicate", "DCGAN", "SteinGAN", "SteinGAN w/o kernel"
  ]  # fmt: skip
  assert lines[0] == ["inception score, Inception network", *["–"] * 5]
  paper = ["11.237", "11.100", "6.581", "6.711", "6.243"]
  assert lines[1] == ["… in the paper", *paper]
  assert lines[-2] == ["testing accuracy", *["–"] * 5]
  assert lines[-1][1:] == [
    "92.58 %", "44.96 %", "44.78 %", "61.09 %", "60.50 %"
  ]  # fmt: skip


def test_the_table_shows_what_was_measured_where_it_belongs():
  table = image_scores.figure2_table(
    {
      "SteinGAN": {
        "inception_score": 7.12345, "frechet_distance": 12.345,
        "kernel_inception_distance": 0.0123, "testing_accuracy": 0.6,
        "precision": 0.5,
      },
      "SteinGAN, mix": {"imagenet_inception_score": 6.5},
    }
  )  # fmt: skip
  header, lines = cells(table)
  assert header[-1] == "SteinGAN, mix"
  by_label = {line[0]: line[1:] for line in lines}
  dash = "–"
  assert by_label["inception score, our classifier"] == [dash] * 3 + ["7.123", *"––"]
  assert by_label["Fréchet distance, our classifier"][3] == "12.35"
  assert by_label["kernel distance, our classifier"][3] == "0.012"
  assert by_label["testing accuracy"] == [dash] * 3 + ["60.00 %", *"––"]
  assert by_label["inception score, Inception network"] == [dash] * 5 + ["6.500"]
  assert by_label["… in the paper"][5] == dash
