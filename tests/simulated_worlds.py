"""Worlds of scores with variance components that are known, as `report.variance` has its model."""

import numpy as np

CASE, REST, TRAINING = 0.03, 0.02, 0.01
"""Standard deviations."""


def world(
    generator: np.random.Generator,
    *,
    folds: int = 5,
    cases: int = 40,
    seeds: int = 3,
    mean: float = 0.0,
    fold: float = 0.0,
    case: float = CASE,
    training: float = TRAINING,
    rest: float = REST,
) -> tuple[np.ndarray, np.ndarray, float]:
    """Return scores, cases x seeds, the fold of each case, and the mean that is to be estimated.

    Args:
        generator: of chance.
        folds: how many.
        cases: of each fold.
        seeds: trainings of each fold.
        mean: of all scores, without the folds' effects, which are part of what is to be estimated.
        fold: standard deviation, as the next three.
        case: of case and fold.
        training: of one network.
        rest: of a case in a training.
    """
    of = np.repeat(np.arange(folds), cases)
    effects = generator.normal(0, fold, folds)
    scores = (
        (mean + effects)[of, None]
        + generator.normal(0, case, (folds * cases, 1))
        + generator.normal(0, training, (folds, seeds))[of]
        + generator.normal(0, rest, (folds * cases, seeds))
    )
    return scores, of, mean + effects.mean()
