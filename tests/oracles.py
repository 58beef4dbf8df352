"""The paper's formulas as double loops, in NumPy and float64.

A kernel here is a pair of functions: k(y, x) of two points, and its gradient in the
first argument, y. Points may have any shape.
"""

import jax
import numpy as np


def rbf(h):
  """exp(−‖y − x‖²/h), and its gradient in y."""

  def k(y, x):
    return np.exp(-np.sum((y - x) ** 2) / h)

  def grad_k(y, x):
    return -2 / h * (y - x) * k(y, x)

  return k, grad_k


def imq(h, a):
  """(1 + ‖y − x‖²/h)ᵃ, and its gradient in y."""

  def k(y, x):
    return (1 + np.sum((y - x) ** 2) / h) ** a

  def grad_k(y, x):
    return a * (1 + np.sum((y - x) ** 2) / h) ** (a - 1) * 2 / h * (y - x)

  return k, grad_k


def polynomial_rbf(c, h):
  """(yᵀx + c)² exp(−‖y − x‖²/h), which is not radial, and its gradient in y."""
  smooth, grad_smooth = rbf(h)

  def k(y, x):
    return (np.sum(y * x) + c) ** 2 * smooth(y, x)

  def grad_k(y, x):
    inner = np.sum(y * x) + c
    return 2 * inner * x * smooth(y, x) + inner**2 * grad_smooth(y, x)

  return k, grad_k


def constant():
  """1, and its gradient."""
  return (lambda y, x: 1.0), (lambda y, x: np.zeros_like(y))


def on_features(kernel, feature, jacobian):
  """k(F(y), F(x)) of features F [f] with J = ∂F/∂y [f, d], for points [d]."""
  k, grad_k = kernel
  return (
    lambda y, x: k(feature(y), feature(x)),
    lambda y, x: jacobian(y).T @ grad_k(feature(y), feature(x)),
  )


def svgd_direction(x, s, k, grad_k, row_normalized=False, leave_one_out=False):
  """φ(xᵢ) = (1/n) Σⱼ [k(xⱼ, xᵢ) sⱼ + ∇_{xⱼ} k(xⱼ, xᵢ)]; or divided by Σⱼ k(xⱼ, xᵢ).

  With `leave_one_out` the sums are over j ≠ i, and n − 1 replaces n.
  """
  x, s = np.asarray(x, np.float64), np.asarray(s, np.float64)
  n = len(x)
  phi = np.zeros_like(x)
  for i in range(n):
    row_sum = 0.0
    for j in range(n):
      if leave_one_out and j == i:
        continue
      phi[i] += k(x[j], x[i]) * s[j] + grad_k(x[j], x[i])
      row_sum += k(x[j], x[i])
    phi[i] /= row_sum if row_normalized else n - leave_one_out
  return phi


def attraction(x, s, k, grad_k, row_normalized=False, leave_one_out=False):
  """The part K S of the direction, divided as the direction is."""
  no_repulsion = k, lambda y, x: np.zeros_like(y)
  return svgd_direction(x, s, *no_repulsion, row_normalized, leave_one_out)


def matrix(x, y, k, grad_k=None):
  """k(xᵢ, yⱼ) of every pair, `[m, n]`."""
  return np.array([[k(yj, xi) for yj in y] for xi in x])


def repulsion_share(phi, attraction):
  """‖V‖ / (‖A‖ + ‖V‖) of φ = A + V."""
  norms = np.linalg.norm(attraction), np.linalg.norm(phi - attraction)
  return norms[1] / sum(norms)


def stein_kernel(x, s_x, y, s_y, k, grad_k):
  """u_p(x, y) = sₓᵀs_y k + sₓᵀ∇_y k + s_yᵀ∇ₓ k + tr ∇ₓ∇_y k, for a symmetric k.

  The trace is a complex-step derivative of the gradient: exact to rounding.
  """
  trace, step = 0.0, 1e-30
  for a in np.ndindex(x.shape):
    moved = np.array(y, np.complex128)
    moved[a] += 1j * step
    trace += grad_k(x, moved)[a].imag / step
  return (
    np.sum(s_x * s_y) * k(x, y)
    + np.sum(s_x * grad_k(y, x))
    + np.sum(s_y * grad_k(x, y))
    + trace
  )


def ksd_squared(x, s, k, grad_k, statistic="V"):
  """The mean of u_p over all n² pairs ("V"), or over the n(n − 1) with i ≠ j ("U")."""
  x, s = np.asarray(x, np.float64), np.asarray(s, np.float64)
  n = len(x)
  total = 0.0
  for i in range(n):
    for j in range(n):
      if statistic == "V" or i != j:
        total += stein_kernel(x[i], s[i], x[j], s[j], k, grad_k)
  return total / (n * n if statistic == "V" else n * (n - 1))


def pair_distances(x, diagonal=False):
  """‖xᵢ − xⱼ‖ over the pairs i < j, or over all n² ordered pairs."""
  x = np.asarray(x, np.float64)
  n = len(x)
  return np.array(
    [
      np.sqrt(np.sum((x[i] - x[j]) ** 2))
      for i in range(n)
      for j in range(n)
      if diagonal or i < j
    ]
  )


def median_bandwidth(x, log="m", diagonal=False, multiple=1.0, subsample=None):
  """multiple · med² / log m, with the mean of d² (over pairs) where med is 0."""
  m = len(x)
  if subsample is not None and subsample < m:
    x = np.asarray(x)[[i * m // subsample for i in range(subsample)]]
  med_squared = np.median(pair_distances(x, diagonal)) ** 2
  if med_squared == 0:
    med_squared = np.mean(pair_distances(x) ** 2)
  if med_squared == 0:
    med_squared = 1.0
  divisor = {"m": np.log(m), "m+1": np.log(m + 1), "none": 1.0}[log]
  return multiple * med_squared / divisor


def threefry2x32(key, counters):
  """The words of threefry 2x32 with 20 rounds (Salmon et al., 2011), as uint32.

  Args:
    key: two uint32.
    counters: uint32 `[2k]`; word i of the first half shares a block with word k + i.
  """
  rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
  k0, k1 = np.uint32(key[0]), np.uint32(key[1])
  schedule = (k0, k1, k0 ^ k1 ^ np.uint32(0x1BD11BDA))
  a, b = (np.array(half, np.uint32) for half in np.split(np.asarray(counters), 2))
  a, b = a + schedule[0], b + schedule[1]
  for block in range(5):
    for r in rotations[block % 2]:
      a = a + b
      b = a ^ ((b << np.uint32(r)) | (b >> np.uint32(32 - r)))
    a = a + schedule[(block + 1) % 3]
    b = b + schedule[(block + 2) % 3] + np.uint32(block + 1)
  return np.concatenate([a, b])


def langevin_noise(key, n, event):
  """z of one Langevin step: particle i draws from fold_in(key, i), Box-Muller."""
  size = int(np.prod(event))
  counters = np.arange(size + size % 2, dtype=np.uint32)
  z = []
  for i in range(n):
    words = np.asarray(jax.random.key_data(jax.random.fold_in(key, i)))
    first, second = np.split(threefry2x32(words, counters).astype(np.float64), 2)
    # 31 bits of the first word of every block, and all of the second.
    radius = np.sqrt(-2 * np.log((np.floor(first / 2) + 1) / 2**31))
    angle = 2 * np.pi * second / 2**32
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    z.append(both[:size].reshape(event))
  return np.array(z)
