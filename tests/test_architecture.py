"""The arrows of the design, read off the imports; a new module has to be listed."""

import ast
import graphlib
import importlib
import inspect
import sys
import tomllib
from pathlib import Path

import pytest
from flax import linen as nn

import stein_jax
from stein_jax import kernels
from stein_jax.types import Algorithm

ROOT = Path(__file__).resolve().parents[1]

# package -> the packages of stein_jax that it may import. The files of `parallel`
# belong to different layers and are listed one by one. One that is not listed fails.
BASE = {"types", "checks", "parallel.axes"}
PUBLIC = BASE | {"compiled"}
MAY_IMPORT = {
  "types": set(),
  "checks": {"types"},
  "compiled": {"checks"},
  "parallel.axes": {"types", "checks"},
  "parallel.ring": {"types", "parallel.axes"},
  "parallel.rows": {"types"},
  "parallel.row_wise": set(),
  "parallel.mesh": {"types", "checks", "parallel.rows"},
  "parallel.processes": set(),
  "parallel": {"parallel.mesh", "parallel.processes"},
  "pairs": {"types", "parallel.axes", "parallel.ring"},
  "kernels": PUBLIC | {"parallel.ring", "pairs"},
  "stein": PUBLIC | {"pairs", "kernels"},
  "samplers": PUBLIC,
  "algorithms": PUBLIC
  | {"pairs", "stein", "samplers", "densities", "parallel.rows", "parallel.row_wise"},
  "networks": {"types", "checks", "compiled"},
  "energies": {"types", "checks", "networks"},
  "densities": {"types", "checks", "compiled"},
  "evaluation": PUBLIC | {"networks", "densities"},
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


def package_of(name):
  """Of a name within stein_jax: "kernels.radial.Radial" -> "kernels"."""
  top, _, rest = name.partition(".")
  inside = f"{top}.{rest.partition('.')[0]}"
  return inside if inside in MAY_IMPORT else top


def siblings(path):
  """The packages of stein_jax that a file imports."""
  for name in imports(path):
    package, _, rest = name.partition(".")
    if package == "stein_jax":
      yield package_of(rest)


MODULES = {name: path for name, path in modules("stein_jax") if name != "__init__"}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_only_from_its_left(name):
  own = package_of(name)
  assert own in MAY_IMPORT, f"{name} is new: say in MAY_IMPORT what it may import"
  found = set(siblings(MODULES[name])) - {own}
  assert found <= MAY_IMPORT[own], f"{name} imports {found - MAY_IMPORT[own]}"


@pytest.mark.parametrize("own", MAY_IMPORT)
def test_every_permission_is_used(own):
  paths = [path for name, path in MODULES.items() if package_of(name) == own]
  used = {sibling for path in paths for sibling in siblings(path)}
  assert used >= MAY_IMPORT[own], f"{own} does not import {MAY_IMPORT[own] - used}"


def test_the_arrows_themselves_have_no_circle():
  tuple(graphlib.TopologicalSorter(MAY_IMPORT).static_order())


def test_energies_evaluation_and_training_import_no_objective():
  for own in ("energies", "evaluation", "networks", "training"):
    assert "algorithms" not in MAY_IMPORT[own]


@pytest.mark.parametrize("name", MODULES)
def test_no_file_is_hidden_by_a_function_of_its_name(name):
  parent, _, last = f"stein_jax.{name}".rpartition(".")
  module = importlib.import_module(f"stein_jax.{name}")
  assert getattr(importlib.import_module(parent), last) is module


# ----------------------------------------------------------------- experiments

# folder of experiments -> the folders that it may import. A file at the top is a
# command, with the permissions of COMMANDS.
EXPERIMENTS = {
  "shared": set(),
  "deep": {"shared"},
  "rbm": {"shared"},
  "pictures": {"shared"},
  "benchmarks": {"shared", "pictures"},
}
COMMANDS = {"shared", "deep", "rbm", "pictures"}

SCRIPTS = {name: path for name, path in modules("experiments") if name != "__init__"}


def folder(name):
  """The folder of a file of experiments, or the command: "rbm.runs" -> "rbm"."""
  return name.partition(".")[0]


def allowed(own):
  return EXPERIMENTS.get(own, COMMANDS)


def used_folders(path):
  """The folders and commands of experiments that a file imports."""
  for name in imports(path):
    package, _, rest = name.partition(".")
    if package == "experiments":
      yield folder(rest)


def is_command(path):
  """Whether a file can be started."""
  return any(
    isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)
    for node in ast.parse(path.read_text()).body
  )


@pytest.mark.parametrize("name", SCRIPTS)
def test_experiments_import_only_what_they_may(name):
  own = folder(name)
  found = set(used_folders(SCRIPTS[name])) - {own}
  assert found <= allowed(own), f"{name} imports {found - allowed(own)}"


@pytest.mark.parametrize("own", [*EXPERIMENTS, "commands"])
def test_every_permission_of_experiments_is_used(own):
  if own == "commands":
    paths = [path for name, path in SCRIPTS.items() if folder(name) not in EXPERIMENTS]
  else:
    paths = [path for name, path in SCRIPTS.items() if folder(name) == own]
  unused = allowed(own) - {used for path in paths for used in used_folders(path)}
  assert not unused, f"{own} does not import {unused}"


def test_rbm_and_pictures_do_not_import_each_other():
  assert "pictures" not in EXPERIMENTS["rbm"]
  assert "rbm" not in EXPERIMENTS["pictures"]


def test_what_is_at_the_top_of_experiments_is_a_command():
  for name, path in SCRIPTS.items():
    own = folder(name)
    if own not in EXPERIMENTS:
      assert is_command(path), f"experiments.{name} cannot be started"
    elif own != "benchmarks":
      assert not is_command(path), f"experiments.{name} belongs to the top"


def test_nothing_imports_a_command_or_a_benchmark():
  """What others need is in a file that cannot be started."""
  commands = {
    n for n, path in SCRIPTS.items() if n != "benchmarks" and is_command(path)
  }
  for name, path in SCRIPTS.items():
    for imported in imports(path):
      assert imported.removeprefix("experiments.") not in commands, (
        f"{name} imports {imported}"
      )


@pytest.mark.parametrize("name", SCRIPTS)
def test_experiments_write_files_as_a_whole(name):
  """By `training.files`; in place, a file is lost where its writer is killed."""
  for node in ast.walk(ast.parse(SCRIPTS[name].read_text())):
    if isinstance(node, ast.Call):
      called = ast.unparse(node.func).rpartition(".")[2]
      assert called not in {"write_text", "write_bytes"}, ast.unparse(node)
      texts = [ast.unparse(argument) for argument in node.args[-1:]]
      in_place = called == "open" and texts in (["'w'"], ["'wb'"], ["'w+'"])
      assert not in_place, ast.unparse(node)


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
  installable = REQUIRED | {"experiments"} | set(installed(extras["experiments"]))
  for name, path in modules("experiments"):
    found = {imported.partition(".")[0] for imported in imports(path)}
    # what the extras `prepare` and `peers` are for
    tools = {
      "shared.preparing": {"tensorflow", "requests"},
      "rbm.torch_peer": {"torch", "torchebm"},
      "benchmarks.svgd": {"numpyro"},
      "benchmarks.training": {"torch"},
      "pictures.sources": {"lmdb"},
      "pictures.inception": {"torch", "torch_fidelity"},
    }.get(name, set())
    assert found <= installable | tools, (
      f"experiments.{name} imports {found - installable - tools}"
    )


# ------------------------------------------------------------------- public names


def test_all_names_what_exists_once():
  assert len(stein_jax.__all__) == len(set(stein_jax.__all__))
  for name in stein_jax.__all__:
    assert hasattr(stein_jax, name)
  for package in ("energies", "evaluation"):
    module = importlib.import_module(f"stein_jax.{package}")
    for name in module.__all__:
      assert hasattr(module, name)


def exporter(value):
  """The package that exports a rule, a kernel or an energy; None for all else."""
  if inspect.isclass(value):
    return stein_jax.energies if issubclass(value, nn.Module) else None
  made = inspect.signature(value).return_annotation if inspect.isfunction(value) else ()
  if made is Algorithm:
    return stein_jax
  is_kernel = inspect.isclass(made) and issubclass(made, kernels.Kernel)
  return kernels if is_kernel else None


@pytest.mark.parametrize(
  "name", [n for n in MODULES if n.startswith(("algorithms.", "energies.", "kernels."))]
)
def test_rules_kernels_and_energies_are_exported(name):
  module = importlib.import_module(f"stein_jax.{name}")
  for public, value in vars(module).items():
    if public.startswith("_") or getattr(value, "__module__", "") != module.__name__:
      continue
    package = exporter(value)
    assert package is None or public in package.__all__, (
      f"add {public} to {package.__name__}.__init__, and to its __all__"
    )


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
