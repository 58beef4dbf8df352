"""The benchmarks run, their ratios are right, and bad input is named."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import (
  devices,
  features,
  images,
  likelihood,
  startup,
  svgd,
  timing,
)
from experiments.benchmarks import training as training_benchmark
from stein_jax import kernels, svgd_direction
from tests import binaries


def run(module, *arguments):
  result = binaries.run(f"benchmarks.{module}", "--noprogress", *arguments)
  assert result.returncode == 0, result.stderr
  return result


def summary_of(workdir):
  return json.loads((workdir / "summary.json").read_text())


@pytest.mark.slow
def test_svgd(tmp_path):
  small = ("--shapes=30x4", "--sizes=20,40", "--large=50x3", "--repeats=2")
  shown = run("svgd", *small, f"--workdir={tmp_path / 'w'}")
  summary = summary_of(tmp_path / "w")
  row = summary["shapes"]["30x4"]
  seconds = {name: times["median"] for name, times in row["seconds"].items()}
  assert {"ours", "ours, median", "dense", "blackjax"} <= seconds.keys()
  ratios = row["ratios"]
  assert ratios["ours ÷ dense"] == seconds["ours"] / seconds["dense"]
  assert ratios["blackjax ÷ ours"] == seconds["blackjax"] / seconds["ours"]
  floor = 3 * 30 * 30 * 4 / (summary["gigaflops"] * 1e9)
  assert row["floor_seconds"] == pytest.approx(floor)
  assert (tmp_path / "w" / "svgd.png").stat().st_size > 10_000
  text = svgd.markdown(summary)
  assert "| 30 × 4 |" in text
  assert "50 particles of 3 numbers" in text
  assert text in shown.stdout


def test_likelihood(tmp_path):
  shown = run(
    "likelihood", "--num_hidden=3,4", "--repeats=2", f"--workdir={tmp_path / 'w'}"
  )
  summary = summary_of(tmp_path / "w")
  assert [row["num_hidden"] for row in summary["rows"]] == [3, 4]
  assert likelihood.markdown(summary) in shown.stdout
  assert (tmp_path / "w" / "likelihood.png").stat().st_size > 10_000


@pytest.mark.slow
def test_training(tmp_path):
  shown = run("training", "--repeats=1", f"--workdir={tmp_path / 'w'}")
  summary = summary_of(tmp_path / "w")
  assert summary["ratios"].keys() == training_benchmark.TARGETS.keys()
  assert training_benchmark.markdown(summary) in shown.stdout


@pytest.mark.slow
def test_startup(tmp_path):
  shown = run("startup", "--repeats=1", f"--workdir={tmp_path / 'w'}")
  summary = summary_of(tmp_path / "w")
  assert all(found > 0 for found in summary["cpu_seconds"].values())
  assert startup.markdown(summary) in shown.stdout
  found = summary["cpu_seconds"]
  assert f"{found['direction'] / found['direction, naive']:.2f}" in shown.stdout


def test_the_naive_direction_is_the_same_but_for_its_median():
  # Its median is over all n² squared distances, the zeros included.
  x, s = np.random.default_rng(0).normal(size=(2, 40, 6)).astype(np.float32)
  squared = np.square(x[:, None] - x[None]).sum(axis=2)
  h = np.median(squared) / np.log(40)
  got = startup.naive_direction(jnp.asarray(x), jnp.asarray(s))
  want = svgd_direction(x, s, kernels.rbf(h))
  np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_the_dense_peer_is_the_same_direction():
  x, s = np.random.default_rng(0).normal(size=(2, 40, 6)).astype(np.float32)
  h = jnp.float32(5.0)
  want = svgd_direction(x, s, kernels.rbf(h))
  np.testing.assert_allclose(svgd.dense_direction(x, s, h), want, rtol=1e-4, atol=1e-6)


def test_the_blackjax_peer_is_the_same_direction():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32))
  want = x + svgd_direction(x, -x, kernels.rbf(2.0))
  np.testing.assert_allclose(svgd._blackjax(x, 2.0)(), want, rtol=1e-4, atol=1e-5)


def test_bad_shapes_are_named():
  for text in ("10", "10x", "ax3", "0x3", "1x2x3"):
    with pytest.raises(SystemExit, match=f"--shapes: '{text}' is not NxD"):
      svgd._shape("shapes", text)


def test_times_are_medians_of_calls_in_turn():
  calls = []

  def sleep(name, seconds):
    calls.append(name)
    time.sleep(seconds)

  times = timing.interleaved(
    {"a": lambda: sleep("a", 0.01), "b": lambda: sleep("b", 0.02)}, repeats=3
  )
  # compiled and tried, then in turn, each once more for the cache
  assert calls == [*"aabb", *"aabb" * 3]
  assert 0.01 <= times["a"].low <= times["a"].median <= times["a"].high
  assert times["b"].median >= 0.02


def test_a_missing_peer_is_none():
  assert timing.peer("no_such_package") is None
  assert timing.peer("jax") is jax


@pytest.mark.slow
def test_features(tmp_path):
  shown = run(
    "features",
    "--sizes=3,5",
    "--neighbors=1,2",
    "--width=0.01",
    "--repeats=1",
    f"--workdir={tmp_path / 'w'}",
  )
  summary = summary_of(tmp_path / "w")
  assert [list(row["errors"]) for row in summary["rows"]] == [["1"], ["1", "2"]]
  for row in summary["rows"]:
    assert all(0 < error < 1 for error in row["errors"].values())
  assert features.markdown(summary) in shown.stdout


@pytest.mark.slow
def test_images(tmp_path):
  shown = run(
    "images",
    "--sizes=32",
    "--variants=DCGAN",
    "--width=0.02",
    "--batch_size=2",
    "--steps=1",
    f"--workdir={tmp_path / 'w'}",
  )
  summary = summary_of(tmp_path / "w")
  (row,) = summary["rows"]
  assert row["parameters"] > 1000
  assert row["seconds"] > 0
  assert images.markdown(summary) in shown.stdout


@pytest.mark.slow
def test_devices(tmp_path):
  small = ("--devices=1,4", "--strong=64", "--weak=16", "--d=3", "--repeats=1")
  shown = run("devices", *small, f"--workdir={tmp_path / 'w'}")
  summary = summary_of(tmp_path / "w")
  assert devices.markdown(summary) in shown.stdout
  for row in summary["rows"]:
    if row["devices"] == 1:
      assert row["sent_bytes"] == 0
    elif row["what"] == "ring":
      by_rule = devices.ring_bytes(4, row["n"], 3)
      assert by_rule <= row["sent_bytes"] <= by_rule + 100  # and the mean point
    elif row["what"] == "all_gather":
      n = row["n"]
      assert row["sent_bytes"] == pytest.approx(2 * 4 * 3 * n * 3 / 4, abs=100)


def test_sent_bytes_are_counted_in_loops_and_branches():
  def body(x, index):
    size = jax.lax.axis_size("i")
    ways = [(k, (k + 1) % size) for k in range(size)]

    def turn(x, _):
      return jax.lax.ppermute(x, "i", ways), None

    x = jax.lax.scan(turn, x, None, length=5)[0]  # 5 · 400 bytes
    x = x + jax.lax.psum(x, "i")  # 2 · 3/4 · 400
    gathered = jax.lax.all_gather(x, "i")  # 3/4 · 1600
    scattered = jax.lax.psum_scatter(gathered.ravel(), "i", tiled=True)  # 3 · 400
    return jax.lax.cond(
      index[0] > 0,
      lambda: jax.lax.ppermute(scattered, "i", ways),  # 400
      lambda: scattered,
    )

  spec = jax.sharding.PartitionSpec
  kinds = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((4,), ("i",), kinds, devices=jax.devices()[:4])
  spread = jax.shard_map(
    body, mesh=mesh, in_specs=(spec("i"), spec()), out_specs=spec("i")
  )
  arguments = (jnp.zeros(400, jnp.float32), jnp.zeros(1, jnp.int32))
  text = jax.jit(spread).lower(*arguments).compile().as_text()
  assert devices.sent_bytes(text, 4) == 2000 + 600 + 1200 + 1200 + 400
