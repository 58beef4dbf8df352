"""The arrows of the design, read off the imports; a new module has to be listed."""

import ast
import graphlib
import importlib
import inspect
import sys
import tomllib
from pathlib import Path

import pytest

import stein_jax

ROOT = Path(__file__).resolve().parents[1]

# module -> the modules of stein_jax that it may import. A package stands for all of
# its modules. Modules of later days are listed already; one that is not listed fails.
BASE = {"types", "checks", "axes"}
TABLES = BASE | {"pairwise", "ring", "tiles"}
KERNELS = TABLES | {"scores", "selection", "medians", "bandwidths", "kernels"}
LEARNING = KERNELS | {"svgd", "descent"}
MAY_IMPORT = {
  "types": set(),
  "checks": {"types"},
  "axes": {"types", "checks"},
  "scores": BASE,
  "pairwise": BASE,
  "ring": BASE,
  "tiles": BASE | {"pairwise", "ring"},
  "selection": {"types"},
  "medians": TABLES | {"selection"},
  "bandwidths": TABLES | {"medians"},
  "kernels": TABLES | {"scores", "bandwidths"},
  "svgd": KERNELS,
  "discrepancy": KERNELS | {"svgd"},
  "samplers": BASE,
  "descent": {"types"},
  "contrastive": BASE | {"samplers", "scores", "descent"},
  "stein_cd": LEARNING | {"contrastive"},
  "score_matching": LEARNING,
  "stein_gan": LEARNING | {"contrastive", "stein_cd"},
  "dcgan": BASE | {"descent", "scores"},
  "energies": {"types", "checks", "convolutions"},
  "convolutions": {"types"},
  "generators": {"types", "checks", "convolutions"},
  "discriminators": {"types", "checks", "convolutions", "generators"},
  "evaluation": KERNELS | {"discrepancy", "convolutions"},
  "parallel": {"types"},
  "records": {"types", "parallel"},
  "training": {"types", "records", "parallel"},
}

# Where the name that is imported is not the name that is installed.
IMPORT_NAMES = {
  "orbax-checkpoint": "orbax",
  "absl-py": "absl",
  "tensorflow-datasets": "tensorflow_datasets",
  "pillow": "PIL",
}


def modules(package):
  """The files of a package: "energies/rbm.py" -> "energies.rbm"."""
  for path in sorted((ROOT / package).rglob("*.py")):
    name = path.relative_to(ROOT / package).with_suffix("").as_posix()
    yield name.replace("/", ".").removesuffix(".__init__"), path


def imports(path):
  """All names that a file imports, anywhere in it, in full."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path.name}: imports are absolute here"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def siblings(path):
  """The modules of stein_jax that a file imports: "stein_jax.kernels.rbf", kernels."""
  for name in imports(path):
    package, _, rest = name.partition(".")
    if package == "stein_jax":
      yield rest.partition(".")[0]


MODULES = {name: path for name, path in modules("stein_jax") if name != "__init__"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_left(name):
  top = name.split(".")[0]
  assert top in MAY_IMPORT, f"{name} is new: say in MAY_IMPORT what it may import"
  found = set(siblings(MODULES[name])) - {top}
  assert found <= MAY_IMPORT[top], f"{name} imports {found - MAY_IMPORT[top]}"


def test_the_arrows_themselves_have_no_circle():
  tuple(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


def test_energies_and_evaluation_know_no_objective():
  objectives = {"contrastive", "stein_cd", "score_matching", "stein_gan", "dcgan"}
  for top in ("energies", "evaluation", "generators", "training"):
    assert not MAY_IMPORT[top] & (objectives | {"svgd", "descent"})


def installed(requirements):
  """Requirement lines -> names that may be imported."""
  for line in requirements:
    name = line.replace("[", " ").replace(">", " ").replace("=", " ").split()[0]
    yield IMPORT_NAMES.get(name, name).replace("-", "_")


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIRED = {"stein_jax", *sys.stdlib_module_names, *installed(PROJECT["dependencies"])}


@pytest.mark.parametrize("name", ["__init__", *MODULES])
def test_the_library_imports_what_it_requires_and_no_more(name):
  path = dict(modules("stein_jax"))[name]
  found = {imported.partition(".")[0] for imported in imports(path)}
  assert found <= REQUIRED
  heavy = {"experiments", "tensorflow_datasets", "matplotlib", "absl", "mlxtend"}
  assert not found & heavy


def test_experiments_import_what_their_extra_installs():
  extras = PROJECT["optional-dependencies"]
  allowed = REQUIRED | {"experiments"} | set(installed(extras["experiments"]))
  for name, path in modules("experiments"):
    found = {imported.partition(".")[0] for imported in imports(path)}
    # what the extras `prepare` and `peers` are for
    tools = {
      "prepare_data": {"tensorflow", "requests"},
      "torch_peer": {"torch", "torchebm"},
      "benchmarks.svgd": {"numpyro"},
      "benchmarks.training": {"torch"},
      "image_data": {"lmdb"},
      "inception": {"torch", "torch_fidelity"},
    }.get(name, set())
    assert found <= allowed | tools, f"experiments.{name} imports {found - allowed}"


# ------------------------------------------------------------------- public names


def test_all_names_what_exists_once():
  assert len(stein_jax.__all__) == len(set(stein_jax.__all__))
  for name in stein_jax.__all__:
    assert hasattr(stein_jax, name)
  for package in ("energies", "evaluation"):
    module = importlib.import_module(f"stein_jax.{package}")
    for name in module.__all__:
      assert hasattr(module, name)


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_has_a_docstring(name):
  module = importlib.import_module(f"stein_jax.{name}")
  assert module.__doc__
  for public, value in vars(module).items():
    own = getattr(value, "__module__", None) == module.__name__
    if public.startswith("_") or not own:
      continue
    if inspect.isfunction(value) or inspect.isclass(value):
      assert inspect.getdoc(value), f"{name}.{public} has no docstring"
    if inspect.isclass(value):
      for method, function in vars(value).items():
        if inspect.isfunction(function) and not method.startswith("_"):
          assert inspect.getdoc(function), f"{name}.{public}.{method}: no docstring"
