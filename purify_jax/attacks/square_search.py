"""Square attack: random search with squares, from predictions alone, no gradient to mask.

Andriushchenko et al. 2020, arXiv 1912.00049, with the schedule of the published code; for L1 Croce & Hein 2021,
arXiv 2103.01208, section 5. Every image has its own random squares, so results do not depend on the batch.
"""

from dataclasses import KW_ONLY

import jax
import jax.numpy as jnp
import numpy as np

from purify_jax import losses
from purify_jax.arrays import each, per_image
from purify_jax.attacks.averages import AT_ONCE, MeanPrediction, check_samples
from purify_jax.attacks.norms import get, l1, l2, project_into
from purify_jax.checks import check_count, check_epsilon, check_images, check_number
from purify_jax.keys import fold_keys, is_chosen, signs, stream
from purify_jax.pytrees import Pytree, static
from purify_jax.types import BOUNDS, Array, Keys, LossFn, PredictFn


class Square(Pytree):
    """Square attack, Linf, L2 or L1, without early stop.

    defense: (keys, images) → log-probabilities.
    loss_fn: what is ascended; the margin as published.
    epsilon: radius of the ball ≥ 0.
    norm: "linf", "l2" or "l1".
    num_queries: proposals, ≥ 1; each costs ``num_samples`` predictions.
    num_samples: draws over which the loss of a proposal is averaged (randomised defenses).
    samples_at_once: draws side by side.
    initial_share: share p of the pixels that the first squares change.
    rescale_schedule: let the squares shrink within ``num_queries``, as they would in 10,000. Off as in
      AutoAttack; on makes a short search a good deal stronger.
    published_windows: as in the published code, never place a square at the last row or column (an
      exclusive upper bound there), which on small images leaves much of the border alone.

    Raises InputError for an unknown norm, ε < 0, zero queries or samples, or a share outside (0, 1].
    """

    defense: PredictFn
    loss_fn: LossFn = losses.margin
    _: KW_ONLY
    epsilon: float
    norm: str = static(default="linf")
    num_queries: int = static(default=5000)
    num_samples: int = static(default=1)
    samples_at_once: int | None = static(default=None)
    initial_share: float = static(default=0.8)
    rescale_schedule: bool = static(default=False)
    published_windows: bool = static(default=False)

    most_at_once = AT_ONCE

    def __post_init__(self) -> None:
        self.fill(norm=get(self.norm).name)
        check_epsilon(self.epsilon, self.norm)
        check_count("num_queries", self.num_queries)
        check_samples(self.num_samples, self.samples_at_once)
        check_number("initial_share", self.initial_share, 0.0, 1.0, open_low=True)

    def __call__(self, keys: Keys, images: Array, labels: Array) -> Array:
        check_images(images)
        shape, epsilon = images.shape[1:], self.epsilon
        budget = self.num_queries if self.rescale_schedule else 10_000
        sides = _sides(self.num_queries, budget, min(shape[:2]), self.initial_share, self.norm)
        start, propose = _BY_NORM[self.norm]
        if self.norm == "linf":
            tables = jnp.zeros((1, 1, 1), images.dtype)
        else:
            found = _eta_tables(sides, shape[0], shape[1], self.norm)
            tables = jnp.asarray(found, images.dtype)
        mean = MeanPrediction(
            self.defense, num_samples=self.num_samples, samples_at_once=self.samples_at_once
        )
        # A proposal and the defense that judges it draw from streams of their own.
        value = lambda k, x: self.loss_fn(mean(stream(k, "value"), x), labels)
        start_keys = stream(fold_keys(keys, self.num_queries), "proposal")
        first = jax.vmap(start, in_axes=(0, 0, None))(start_keys, images, epsilon)
        state = (first, each(images, -jnp.inf, jnp.result_type(images, jnp.float32)))
        skip = int(self.published_windows)

        def query(state: tuple[Array, Array], xs: tuple) -> tuple[tuple[Array, Array], None]:
            best, best_loss = state
            index, side, row = xs
            query_keys = fold_keys(keys, index)
            proposals = lambda: jax.vmap(propose, in_axes=(0, 0, 0, None, None, None, None))(
                stream(query_keys, "proposal"), images, best, epsilon, side, tables[row], skip
            )
            # The start is judged within the loop, too: the defense is traced and compiled once, not twice.
            proposal = jax.lax.cond(index == self.num_queries, lambda: first, proposals)
            loss = value(query_keys, proposal).astype(best_loss.dtype)
            better = loss > best_loss
            best = jnp.where(per_image(better, best), proposal, best)
            return (best, jnp.where(better, loss, best_loss)), None

        _, rows = np.unique(sides, return_inverse=True)
        rows = np.zeros_like(rows) if self.norm == "linf" else rows
        indices = np.concatenate([[self.num_queries], np.arange(self.num_queries)]).astype(np.int32)
        xs = (jnp.asarray(indices), *(jnp.asarray(np.append(x[:1], x)) for x in (sides, rows)))
        (best, _), _ = jax.lax.scan(query, state, xs)
        return best


def _sides(num_queries: int, budget: int, size: int, share: float, norm: str) -> np.ndarray:
    """The side of the square at every query: p halves at fixed points of the budget."""
    points = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000])
    progress = (np.arange(num_queries) / budget * 10000).astype(int)
    shares = share / 2.0 ** (progress[:, None] > points).sum(axis=1)
    sides = np.maximum(np.rint(np.sqrt(shares * size**2)).astype(int), 1)
    if norm != "linf":
        sides = np.maximum(sides, 3)
        sides = sides + (sides % 2 == 0)
    return np.minimum(sides, size)


def _signs(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    return signs(key, shape, dtype)


def _window(
    key: Array, shape: tuple[int, ...], side: Array, skip: int
) -> tuple[Array, Array, Array]:
    """A random square: its mask ``[h, w, 1]`` and corner."""
    row_key, column_key = jax.random.split(key)
    top = jax.random.randint(row_key, (), 0, jnp.maximum(shape[0] - side + 1 - skip, 1), jnp.int32)
    left = jax.random.randint(
        column_key, (), 0, jnp.maximum(shape[1] - side + 1 - skip, 1), jnp.int32
    )
    rows, columns = jnp.arange(shape[0]), jnp.arange(shape[1])
    down = (rows >= top) & (rows < top + side)
    inside = down[:, None] & ((columns >= left) & (columns < left + side))[None, :]
    return inside[..., None], top, left


def _linf_start(key: Array, image: Array, epsilon: float) -> Array:
    stripes = _signs(key, (1, *image.shape[1:]), image.dtype)
    return jnp.clip(image + epsilon * stripes, *BOUNDS).astype(image.dtype)


def _linf_proposal(
    key: Array, image: Array, best: Array, epsilon: float, side: Array, table: Array, skip: int
) -> Array:
    window, _, _ = _window(jax.random.fold_in(key, 0), image.shape, side, skip)
    signs = _signs(jax.random.fold_in(key, 1), (1, 1, image.shape[-1]), image.dtype)
    moved = best + window.astype(image.dtype) * 2 * epsilon * signs
    inside = jnp.clip(jnp.clip(moved, image - epsilon, image + epsilon), *BOUNDS)
    return inside.astype(image.dtype)


def _tiles(key: Array, image: Array, norm: str) -> Array:
    """The published start of L2 and L1: tiles of bumps with random signs."""
    height, width, channels = image.shape
    side = max(min(height, width) // 5, 1)
    tile = jnp.asarray(_eta(side, norm), image.dtype)
    rows, columns = height // side, width // side
    signs = _signs(key, (rows, 1, columns, 1, channels), image.dtype)
    tiled = (signs * tile[None, :, None, :, None]).reshape(rows * side, columns * side, channels)
    return jnp.zeros_like(image).at[: rows * side, : columns * side].set(tiled)


def _l2_start(key: Array, image: Array, epsilon: float) -> Array:
    delta = _tiles(key, image, "l2")
    return jnp.clip(image + epsilon * l2.steepest(delta[None])[0], *BOUNDS).astype(image.dtype)


def _l1_start(key: Array, image: Array, epsilon: float) -> Array:
    return _l1_inside(image, _tiles(key, image, "l1"), epsilon)


def _l1_inside(image: Array, delta: Array, epsilon: float) -> Array:
    return project_into(l1, image[None], (image + delta)[None], epsilon)[0]


def _bump(
    key: Array, image: Array, side: Array, table: Array, skip: int
) -> tuple[Array, Array, Array]:
    """Two random squares, and a bump with a random sign per channel in the first."""
    window, top, left = _window(jax.random.fold_in(key, 0), image.shape, side, skip)
    other, _, _ = _window(jax.random.fold_in(key, 1), image.shape, side, skip)
    signs = _signs(jax.random.fold_in(key, 2), (1, 1, image.shape[-1]), image.dtype)
    turned = jnp.where(is_chosen(jax.random.fold_in(key, 3)), table, table.T)
    return window, other, jnp.roll(jnp.roll(turned, top, 0), left, 1)[..., None] * signs


def _l2_proposal(
    key: Array, image: Array, best: Array, epsilon: float, side: Array, table: Array, skip: int
) -> Array:
    delta = best - image
    window, other, bump = _bump(key, image, side, table, skip)
    norm = lambda x: jnp.sqrt(jnp.sum(x**2))
    # What both squares hold, and what the ball still allows, is spent in the first square.
    held = window.astype(delta.dtype) * delta
    bump = bump + held / (1e-12 + norm(held))
    budget = jnp.maximum(epsilon**2 - norm(delta) ** 2, 0.0) / image.shape[-1]
    budget = jnp.sqrt(budget + norm((window | other).astype(delta.dtype) * delta) ** 2)
    per_channel = jnp.sqrt(jnp.sum(bump**2, axis=(0, 1), keepdims=True))
    bump = bump / (1e-12 + per_channel) * budget
    moved = jnp.where(window, bump, jnp.where(other, 0.0, delta))
    return jnp.clip(image + epsilon * l2.steepest(moved[None])[0], *BOUNDS).astype(image.dtype)


def _l1_proposal(
    key: Array, image: Array, best: Array, epsilon: float, side: Array, table: Array, skip: int
) -> Array:
    delta = best - image
    window, other, bump = _bump(key, image, side, table, skip)
    per_channel = lambda x: jnp.sum(jnp.abs(x), axis=(0, 1), keepdims=True)
    held = window.astype(delta.dtype) * delta
    bump = bump + held / (1e-12 + per_channel(held))
    unspent = jnp.maximum(epsilon - jnp.sum(jnp.abs(delta)), 0.0)
    budget = unspent + image.shape[-1] * per_channel((window | other).astype(delta.dtype) * delta)
    bump = bump / (1e-12 + per_channel(bump)) * budget
    return _l1_inside(image, jnp.where(window, bump, jnp.where(other, 0.0, delta)), epsilon)


_BY_NORM = {
    "linf": (_linf_start, _linf_proposal),
    "l2": (_l2_start, _l2_proposal),
    "l1": (_l1_start, _l1_proposal),
}


def _eta_tables(sides: np.ndarray, height: int, width: int, norm: str) -> np.ndarray:
    unique = np.unique(sides)
    size = max(height, width)
    tables = np.zeros((len(unique), size, size))
    for row, side in enumerate(unique):
        tables[row, :side, :side] = _eta(int(side), norm)
    return tables[:, :height, :width]


def _eta(side: int, norm: str) -> np.ndarray:
    """The published bump of the L2 and L1 attacks: two concentric pyramids of opposite sign, of unit norm.

    L1's are steeper.
    """
    power = {"l2": 2, "l1": 4}[norm]
    size = lambda bump: np.sqrt((bump**2).sum()) if norm == "l2" else np.abs(bump).sum()

    def pyramid(rows: int, columns: int) -> np.ndarray:
        bump = np.zeros((rows, columns))
        top, left = rows // 2, columns // 2
        for ring in range(max(rows // 2 + 1, columns // 2 + 1)):
            low = (max(top - ring, 0), max(left - ring, 0))
            high = (min(top + ring + 1, rows), min(left + ring + 1, columns))
            bump[low[0] : high[0], low[1] : high[1]] += 1.0 / (ring + 1) ** power
        return bump / max(size(bump), 1e-12)

    bump = np.zeros((side, side))
    half = side // 2
    if half:
        bump[:half] = pyramid(half, side)
    bump[half:] = -pyramid(side - half, side)
    return bump / size(bump)
