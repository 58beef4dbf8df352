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

# place -> the places of stein_jax that it may import. A package is one place, but for
# `parallel`, whose files stand at different heights. One that is not listed fails.
BASE = {"types", "checks", "parallel.axes"}
PAIRS = BASE | {"parallel.ring", "pairs"}
MAY_IMPORT = {
  "types": set(),
  "checks": {"types"},
  "parallel.axes": {"types"},
  "parallel.ring": {"types", "parallel.axes"},
  "parallel.rows": {"types"},
  "parallel.row_wise": set(),
  "parallel.mesh": {"types", "parallel.rows"},
  "parallel.processes": set(),
  "parallel": {"parallel.mesh", "parallel.processes"},
  "pairs": BASE | {"parallel.ring"},
  "kernels": PAIRS,
  "stein": PAIRS | {"kernels"},
  "samplers": BASE,
  "algorithms": BASE
  | {"parallel.rows", "parallel.row_wise"}
  | {"pairs", "kernels", "stein", "samplers"},
  "networks": {"types", "checks"},
  "energies": {"types", "checks", "networks"},
  "evaluation": {"types", "networks"},
  "training": {"types", "checks", "parallel"},
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


def place(name):
  """Of a name within stein_jax: "kernels.radial.Radial" -> "kernels"."""
  top, _, rest = name.partition(".")
  inside = f"{top}.{rest.partition('.')[0]}"
  return inside if inside in MAY_IMPORT else top


def siblings(path):
  """The places of stein_jax that a file imports."""
  for name in imports(path):
    package, _, rest = name.partition(".")
    if package == "stein_jax":
      yield place(rest)


MODULES = {name: path for name, path in modules("stein_jax") if name != "__init__"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_left(name):
  own = place(name)
  assert own in MAY_IMPORT, f"{name} is new: say in MAY_IMPORT what it may import"
  found = set(siblings(MODULES[name])) - {own}
  assert found <= MAY_IMPORT[own], f"{name} imports {found - MAY_IMPORT[own]}"


@pytest.mark.parametrize("own", MAY_IMPORT)
def test_every_permission_is_used(own):
  paths = [path for name, path in MODULES.items() if place(name) == own]
  used = {sibling for path in paths for sibling in siblings(path)}
  assert used >= MAY_IMPORT[own], f"{own} does not import {MAY_IMPORT[own] - used}"


def test_the_arrows_themselves_have_no_circle():
  tuple(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


def test_energies_evaluation_and_training_know_no_objective():
  for own in ("energies", "evaluation", "networks", "training"):
    assert "algorithms" not in MAY_IMPORT[own]


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_hidden_by_a_function_of_its_name(name):
  parent, _, last = f"stein_jax.{name}".rpartition(".")
  module = importlib.import_module(f"stein_jax.{name}")
  assert getattr(importlib.import_module(parent), last) is module


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
      "rbm.torch_peer": {"torch", "torchebm"},
      "benchmarks.svgd": {"numpyro"},
      "benchmarks.training": {"torch"},
      "pictures.image_data": {"lmdb"},
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
