"""Every claim of the page as a number that can be wrong.

Equalities come out as an error, which is rounding; inequalities as a margin, which is at least 0.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm
from experiments.theory import gated
from jaxnorm.analysis import condition_numbers, neuron_blocks

#: Nothing is shrunk or damped: the equations as they stand.
EXACT = jaxnorm.Rule(
    gradient="preconditioned",
    step_size="standardized",
    shrinkage=0.0,
    damping=0.0,
    epsilon=0.0,
)
#: Largest error of an equality in float64.
ROUNDING = 1e-9


class Claim(NamedTuple):
    """What the page says, by its number there.

    Attributes:
        number: of the section.
        text: in words.
        check: what finds the error or the margin.
        equality: whether that is an error, which is to be below `ROUNDING`; else a margin.
    """

    number: str
    text: str
    check: Callable[[], float]
    equality: bool = True

    def holds(self, value: float) -> bool:
        """Whether a value is as the claim says."""
        return value <= ROUNDING if self.equality else value >= 0


def _neuron(seed: int = 0, mean: float = 3.0) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """(x, w, b, delta): one ReLU neuron on inputs far from 0, of different scales."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(400, 6)) * np.geomspace(0.1, 3, 6) + mean * rng.normal(size=6)
    w = rng.normal(size=6) / np.geomspace(0.1, 3, 6)
    return x, w, float(-np.median(x @ w)), rng.normal(size=400)


def _moments(x: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = s @ x / s.sum()
    return mean, np.sqrt(s @ (x - mean) ** 2 / s.sum())


def _gradients(
    rule: jaxnorm.Rule, x: np.ndarray, w: np.ndarray, b: Any, weights: np.ndarray
) -> np.ndarray:
    """(g_b, g_w) of sum(weights relu(z)) under a rule."""

    def loss(kernel, bias):
        z = jaxnorm.neuronwise_dense(jnp.asarray(x), kernel, bias, gate="relu", rule=rule)
        return jnp.sum(jnp.asarray(weights)[:, None] * jax.nn.relu(z))

    g_w, g_b = jax.grad(loss, (0, 1))(jnp.asarray(w)[:, None], jnp.asarray([b]))
    return np.concatenate([np.asarray(g_b), np.asarray(g_w)[:, 0]])


def rule_is_descent_in_coordinates() -> float:
    """The rule's gradient against P P^T g."""
    x, w, b, delta = _neuron()
    s = (x @ w + b > 0) * 1.0
    p = gated.coordinates(*_moments(x, s))
    plain = _gradients(jaxnorm.PLAIN, x, w, b, delta)
    expected = p @ p.T @ plain
    ours = _gradients(EXACT, x, w, b, delta)
    return float(abs(ours - expected).max() / abs(expected).max())


def step_is_invariant() -> float:
    """What one step changes in the function, after x -> a x + t."""
    x, w, b, delta = _neuron()
    rng = np.random.default_rng(1)
    a, t = rng.uniform(0.2, 5, 6) * rng.choice([-1, 1], 6), 4 * rng.normal(size=6)
    one = _gradients(EXACT, x, w, b, delta)
    v, c = w / a, b - (t / a) @ w
    other = _gradients(EXACT, a * x + t, v, c, delta)
    moved = x @ one[1:] + one[0], (a * x + t) @ other[1:] + other[0]
    return float(abs(moved[0] - moved[1]).max() / abs(moved[0]).max())


def block_becomes_correlation() -> float:
    """P^T G P against blockdiag(1, R), R the correlations over the active samples."""
    x, w, b, _ = _neuron()
    s = (x @ w + b > 0) * 1.0
    mean, sigma = _moments(x, s)
    p, g = gated.coordinates(mean, sigma), gated.block(x, s)
    centered = x - mean
    r = gated.correlation((centered * s[:, None]).T @ centered / s.sum())
    expected = np.eye(7)
    expected[1:, 1:] = r
    found = neuron_blocks(
        jnp.asarray(x),
        jnp.asarray(s)[:, None],
        jnp.asarray(mean)[:, None],
        jnp.asarray(sigma)[:, None],
    )
    ours = np.asarray(found[0]) * len(x) / s.sum()
    return float(max(abs(p.T @ g @ p - expected).max(), abs(ours - expected).max()))


def condition_is_that_of_correlation() -> float:
    """kappa(P^T G P) against kappa(R)."""
    x, w, b, _ = _neuron()
    s = (x @ w + b > 0) * 1.0
    mean, sigma = _moments(x, s)
    centered = x - mean
    r = gated.correlation((centered * s[:, None]).T @ centered / s.sum())
    blocks = neuron_blocks(
        jnp.asarray(x),
        jnp.asarray(s)[:, None],
        jnp.asarray(mean)[:, None],
        jnp.asarray(sigma)[:, None],
    )
    return float(abs(condition_numbers(blocks)[0] / gated.condition(r) - 1))


def diagonal_is_nearly_the_best() -> float:
    """The least of I kappa(D C D) / kappa(R) - 1 over random D: van der Sluis' bound."""
    rng = np.random.default_rng(2)
    margins = []
    for _ in range(200):
        factor = rng.normal(size=(6, 6)) * np.geomspace(0.01, 10, 6)
        c = factor.T @ factor + 1e-3 * np.diag(np.geomspace(1e-4, 1, 6))
        scaled = min(
            gated.condition(d[:, None] * c * d)
            for d in (np.exp(rng.normal(size=6)) / np.sqrt(np.diag(c)) for _ in range(50))
        )
        margins.append(6 * scaled / gated.condition(gated.correlation(c)) - 1)
    return float(min(margins))


def plain_is_at_least() -> float:
    """kappa(G) over its lower bound, less 1, for gated Gaussian inputs of several means."""
    rng = np.random.default_rng(3)
    margins = []
    for size in (0.3, 1, 3, 10):
        direction, mean = rng.normal(size=8), size * rng.normal(size=8)
        moved, c, g = gated.gated_block(direction / np.linalg.norm(direction), mean, 0.3)
        margins.append(gated.condition(g) / gated.plain_bound(moved, c) - 1)
    return float(min(margins))


def gated_moments_are_those_of_samples() -> float:
    """Closed form against quadrature of the normal density above the threshold."""
    errors = []
    for alpha in (-2.0, 0.0, 0.7, 3.0):
        nodes, weights = np.polynomial.legendre.leggauss(400)
        t = alpha + (nodes + 1) * 12
        density = weights * np.exp(-(t**2) / 2)
        mean = (density @ t) / density.sum()
        variance = (density @ (t - mean) ** 2) / density.sum()
        at = gated.gated(alpha)
        errors += [abs(at.shift - mean), abs(1 - at.shrunk - variance)]
    return float(max(errors))


def coordinates_are_at_most() -> float:
    """The bound over kappa(R), less 1, for gated Gaussian inputs, all directions and shares."""
    rng = np.random.default_rng(4)
    margins = []
    for alpha in (-2.0, -0.5, 0.0, 1.0, 2.5):
        for _ in range(40):
            w = rng.normal(size=7) * np.exp(rng.normal(size=7))
            w /= np.linalg.norm(w)
            _, c, _ = gated.gated_block(w, 50 * rng.normal(size=7), alpha)
            kappa = gated.condition(gated.correlation(c))
            margins.append(gated.condition_bound(w, alpha) / kappa - 1)
    return float(min(margins))


def layer_wide(alpha: float) -> float:
    """The condition number of the block in layer-wide coordinates: BNP's, at the mean of all."""
    at = gated.gated(alpha)
    plane = np.array([[1.0, at.shift], [at.shift, 1 - at.shrunk + at.shift**2]])
    values = np.linalg.eigvalsh(plane)  # all other directions have the eigenvalue 1
    return float(max(values[-1], 1) / min(values[0], 1))


def neuron_wise(alpha: float) -> float:
    """The same in the neuron's coordinates, for a weight that is spread over very many inputs."""
    return 1 / (1 - gated.gated(alpha).shrunk)


def layer_wide_is_worse() -> float:
    """One over the other, less 1; the least over all shares."""
    return float(min(layer_wide(a) / neuron_wise(a) - 1 for a in np.linspace(-3, 4, 71)))


def correlation_stays() -> float:
    """Equal correlations: kappa = (1 + (I - 1) rho) / (1 - rho), whatever the coordinates."""
    rho, size = 0.9, 12
    c = np.full((size, size), rho) + (1 - rho) * np.eye(size)
    scale = np.geomspace(0.01, 100, size)
    expected = (1 + (size - 1) * rho) / (1 - rho)
    return abs(gated.condition(gated.correlation(scale[:, None] * c * scale)) / expected - 1)


def adam_inside_moves_the_mean_as_asked() -> float:
    """Delta z at the mean of the inputs against the step of b~, with Adam inside."""
    return _adam(inside=True)


def _adam(*, inside: bool) -> float:
    """|Delta z(mean) - Delta b~| in units of the rate, after one step of Adam."""
    x, w, b, delta = _neuron()
    s = (x @ w + b > 0) * 1.0
    mean, sigma = _moments(x, s)
    p, g = gated.coordinates(mean, sigma), _gradients(jaxnorm.PLAIN, x, w, b, delta)
    tx = optax.adam(1.0, eps=0.0)
    given = jnp.asarray(p.T @ g if inside else p @ p.T @ g)
    step = np.asarray(tx.update(given, tx.init(given))[0])
    theta = p @ step if inside else step
    return float(abs(theta[0] + mean @ theta[1:] - step[0]))


def adam_outside_moves_it_by_the_means() -> float:
    """By how much more Adam outside moves z at the mean than one rate, in rates, less 1."""
    return _adam(inside=False) - 1


class _Example(NamedTuple):
    """One input whose curvature is not the gate: where the literal form may have no stable rate."""

    x: np.ndarray
    s: np.ndarray
    h: np.ndarray

    @property
    def matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """(P, G)."""
        mean, sigma = _moments(self.x[:, None], self.s)
        return gated.coordinates(mean, sigma), gated.block(self.x[:, None], self.s * self.h)

    @property
    def sigma(self) -> float:
        """Of the coordinates."""
        return float(_moments(self.x[:, None], self.s)[1][0])

    @property
    def criterion(self) -> float:
        """(mu - mu_h) mu_h - c_h - sigma: above 0 where the literal form diverges at every rate."""
        mean, sigma = _moments(self.x[:, None], self.s)
        mean_h, sigma_h = _moments(self.x[:, None], self.s * self.h)
        return float(((mean - mean_h) * mean_h - sigma_h**2 - sigma)[0])


def _example(far: float) -> _Example:
    rng = np.random.default_rng(5)
    x = far + rng.normal(size=300)
    return _Example(x, np.ones(300), np.exp(-1.5 * (x - far)))


def literal_form_criterion() -> float:
    """trace(P^T G) against -criterion / sigma, in units of the mass; several means."""
    errors = []
    for far in (0.1, 1.0, 2.0, 4.0, 20.0):
        example = _example(far)
        p, g = example.matrices
        trace = np.trace(p.T @ g) / g[0, 0]
        errors.append(abs(trace + example.criterion / example.sigma))
    return float(max(errors))


def literal_form_has_no_rate() -> float:
    """Minus the least real part of the eigenvalues of P^T G, where the criterion is above 0."""
    p, g = _example(20.0).matrices
    return float(-np.linalg.eigvals(p.T @ g).real.min())


def pulled_back_form_has_one() -> float:
    """The least eigenvalue of P P^T G in the same example: real, and not below 0."""
    p, g = _example(20.0).matrices
    values = np.linalg.eigvals(p @ p.T @ g)
    return float(values.real.min() - abs(values.imag).max())


CLAIMS: tuple[Claim, ...] = (
    Claim("1", "the rule is gradient descent in the coordinates", rule_is_descent_in_coordinates),
    Claim("2", "a step is invariant to x -> a x + t", step_is_invariant),
    Claim(
        "3", "a neuron's block becomes the correlations of its inputs", block_becomes_correlation
    ),
    Claim("3", "and has their condition number", condition_is_that_of_correlation),
    Claim("3", "at most I times that of the best diagonal", diagonal_is_nearly_the_best, False),
    Claim("4", "the plain block's grows as |mean|^4", plain_is_at_least, False),
    Claim("4", "moments of gated Gaussian inputs", gated_moments_are_those_of_samples),
    Claim("4", "the bound in the coordinates", coordinates_are_at_most, False),
    Claim("4", "layer-wide coordinates are worse at every share", layer_wide_is_worse, False),
    Claim("5", "correlations stay", correlation_stays),
    Claim("6", "Adam inside moves z at the mean by b~", adam_inside_moves_the_mean_as_asked),
    Claim("6", "Adam outside by the sum of the means", adam_outside_moves_it_by_the_means, False),
    Claim("7", "the literal form: its trace", literal_form_criterion),
    Claim("7", "where the criterion says so it has no rate", literal_form_has_no_rate, False),
    Claim("7", "the pulled-back form has one there", pulled_back_form_has_one, False),
)
