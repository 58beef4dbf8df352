"""Contrastive divergence by Langevin dynamics in PyTorch, to compare times with ours.

The same RBM, Markov chain, contrast, batches and optimizer as
`stein_jax.contrastive_divergence` on `energies.GaussianBernoulliRBM`, three ways:

  torchebm     the package's sampler and loss, with the energy as a torch module
  autograd     a plain eager loop that differentiates the same energy
  closed_form  a plain eager loop with the RBM's score and gradient written out

torchebm and autograd get only the energy, as our library does; closed_form is written
for this one model and needs no differentiation. All three draw the same numbers from
the same seed, and learn the same parameters up to rounding.

PyTorch is imported where it is needed: pip install -e '.[peers]'.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

KINDS = ("torchebm", "autograd", "closed_form")


class Settings(NamedTuple):
  """A peer's settings, named as the flags of `experiments.mnist_rbm`."""

  langevin_steps: int  # k
  langevin_step_size: float = 0.5  # ε
  batch_size: int = 100
  learning_rate: float = 3e-4
  adam_b1: float = 0.5


def versions() -> dict[str, str]:
  """The versions of torch and torchebm.

  Raises:
    ImportError: one of them cannot be imported; the message says what to install.
  """
  return {"torch": _torch().__version__, "torchebm": _torchebm().__version__}


def set_threads(threads: int) -> None:
  """Sets the number of CPU cores that an operation of PyTorch may use."""
  _torch().set_num_threads(threads)


class Peer:
  """One training run.

  Args:
    kind: one of `KINDS`.
    params: the start, B [d, l], b [d] and c [l]; all is computed in their dtype.
    data: points [N, d] as floats.
    settings: see `Settings`.
    seed: of the batches and of the noise.
  """

  def __init__(
    self,
    kind: str,
    params: Mapping[str, np.ndarray],
    data: np.ndarray,
    settings: Settings,
    seed: int,
  ):
    torch = _torch()
    if settings.batch_size > len(data):
      raise ValueError(f"batch_size={settings.batch_size} exceeds {len(data)} points")
    self._model = _rbm(kind, params)
    # Floats, 216 MB for MNIST: making a batch is then only a copy.
    self._data = torch.tensor(np.asarray(data, dtype=params["B"].dtype))
    self._batch_size = settings.batch_size
    self._generator = torch.Generator().manual_seed(seed)
    self._order, self._next = None, math.inf
    self._set_gradient = _GRADIENTS[kind](self._model, settings)
    self._optimizer = torch.optim.Adam(
      self._model.parameters(),
      lr=settings.learning_rate,
      betas=(settings.adam_b1, 0.999),
      fused=True,  # the fastest variant on a CPU
    )

  def train(self, num_steps: int) -> None:
    """Takes this many steps."""
    for _ in range(num_steps):
      self._optimizer.zero_grad()
      self._set_gradient(self._batch(), self._generator)
      self._optimizer.step()

  def params(self) -> dict[str, np.ndarray]:
    """A copy of B, b and c."""
    return {
      name: value.detach().numpy().copy()
      for name, value in self._model.named_parameters()
    }

  def _batch(self) -> Any:
    """The next points of this epoch's order; the last N mod m are left out."""
    start, m = self._next, self._batch_size
    if start + m > len(self._data):
      torch = _torch()
      self._order = torch.randperm(len(self._data), generator=self._generator)
      start = 0
    self._next = start + m
    return self._data[self._order[start : start + m]]


def _rbm(kind: str, params: Mapping[str, np.ndarray]) -> Any:
  """The RBM as a torch module that maps points [m, d] to their energies [m]."""
  torch = _torch()
  dtype = torch.tensor(params["B"]).dtype
  if kind == "torchebm":
    base, options = _torchebm().core.BaseModel, {"dtype": dtype}
  else:
    base, options = torch.nn.Module, {}

  class RBM(base):
    """E(x) = ½‖x‖² − bᵀx − Σᵢ log(2 cosh(Bᵀx + c)ᵢ)."""

    def __init__(self):
      super().__init__(**options)
      for name in ("B", "b", "c"):
        self.register_parameter(name, torch.nn.Parameter(torch.tensor(params[name])))

    def forward(self, x: Any) -> Any:
      y = torch.addmm(self.c, x, self.B)
      return 0.5 * x.square().sum(-1) - x @ self.b - y.logaddexp(-y).sum(-1)

  return RBM()


_SetGradient = Callable[[Any, Any], None]
"""`(batch, generator)`: sets the parameters' `grad` to CD's gradient."""


def _by_torchebm(model: Any, settings: Settings) -> _SetGradient:
  torchebm = _torchebm()
  # Its step is x − ε ∇E + noise_scale √(2ε) z: ours, at noise_scale 1.
  sampler = torchebm.samplers.LangevinDynamics(
    model, step_size=settings.langevin_step_size, noise_scale=1.0, dtype=model.dtype
  )
  loss = torchebm.losses.ContrastiveDivergence(
    model,
    sampler,
    k_steps=settings.langevin_steps,
    energy_reg_weight=0.0,  # by default it adds 0.001 · mean E², which CD does not
    dtype=model.dtype,
  )

  def set_gradient(x: Any, generator: Any) -> None:
    loss(x, generator=generator)[0].backward()

  return set_gradient


def _by_autograd(model: Any, settings: Settings) -> _SetGradient:
  torch = _torch()
  epsilon = settings.langevin_step_size

  def set_gradient(x: Any, generator: Any) -> None:
    moved = x
    for _ in range(settings.langevin_steps):
      moved = moved.detach().requires_grad_()
      (gradient,) = torch.autograd.grad(model(moved).sum(), moved)
      z = torch.randn(x.shape, dtype=x.dtype, generator=generator)
      moved = moved.detach() - epsilon * gradient + math.sqrt(2 * epsilon) * z
    (model(x).mean() - model(moved).mean()).backward()

  return set_gradient


def _by_closed_form(model: Any, settings: Settings) -> _SetGradient:
  torch = _torch()
  epsilon = settings.langevin_step_size

  def hidden(x: Any) -> Any:
    return torch.addmm(model.c, x, model.B).tanh_()

  @torch.no_grad()
  def set_gradient(x: Any, generator: Any) -> None:
    moved = x
    for _ in range(settings.langevin_steps):
      # The score is b + B tanh(Bᵀx + c) − x.
      pull = torch.addmm(model.b, hidden(moved), model.B.T)
      z = torch.randn(x.shape, dtype=x.dtype, generator=generator)
      z.mul_(math.sqrt(2 * epsilon))
      moved = z.add_(moved, alpha=1 - epsilon).add_(pull, alpha=epsilon)
    h, h_moved = hidden(x), hidden(moved)
    model.B.grad = (moved.T @ h_moved - x.T @ h) / len(x)
    model.b.grad = moved.mean(0) - x.mean(0)
    model.c.grad = h_moved.mean(0) - h.mean(0)

  return set_gradient


_GRADIENTS = {
  "torchebm": _by_torchebm,
  "autograd": _by_autograd,
  "closed_form": _by_closed_form,
}


def _torch() -> Any:
  with _install_hint():
    import torch
  return torch


def _torchebm() -> Any:
  with _install_hint():
    import torchebm
  return torchebm


@contextlib.contextmanager
def _install_hint() -> Iterator[None]:
  try:
    yield
  except ImportError as error:
    raise ImportError(
      f"PyTorch's side cannot be imported ({error}): pip install -e '.[peers]'"
    ) from error
