"""Logistic regression on differences of features: Bradley-Terry with a linear reward."""

import numpy as np
import scipy.optimize

STEPS = 50
TOLERANCE = 1e-7


def fit(differences, penalty: float, *, weights=None, offset=None, nonnegative: bool = False) -> np.ndarray:
    """The coefficients `[D]` that minimise mean(w * softplus(-(offset + x @ c))) + penalty / 2 * |c|^2.

    Newton's method from 0, each step halved until the loss does not rise; with
    bounds each quadratic model is minimised within them. There is no intercept: x is the features of
    the chosen minus those of the rejected response, so exchanging the two changes the label and nothing else.

    Args:
      differences: x, `[B, D]`.
      penalty: above 0, so that separable pairs have finite coefficients.
      weights: w, `[B]`; None for ones.
      offset: a reward difference that is given, `[B]`; None for 0.
      nonnegative: no coefficient is below 0.
    """
    x = np.asarray(differences, np.float64)
    w = np.ones(len(x)) if weights is None else np.asarray(weights, np.float64)
    base = np.zeros(len(x)) if offset is None else np.asarray(offset, np.float64)

    def loss(c):
        return np.sum(w * np.logaddexp(0, -(base + x @ c))) / len(x) + penalty / 2 * c @ c

    coefficients = np.zeros(x.shape[1])
    current = loss(coefficients)
    for _ in range(STEPS):
        wrong = np.exp(-np.logaddexp(0, base + x @ coefficients))  # sigmoid(-margin)
        gradient = penalty * coefficients - x.T @ (w * wrong) / len(x)
        curvature = (x.T * (w * wrong * (1 - wrong))) @ x / len(x) + penalty * np.eye(x.shape[1])
        if nonnegative:
            root = np.linalg.cholesky(curvature)
            target = root.T @ coefficients - np.linalg.solve(root, gradient)
            step = coefficients - scipy.optimize.nnls(root.T, target)[0]
        else:
            step = np.linalg.solve(curvature, gradient)
        while loss(coefficients - step) > current and np.abs(step).max(initial=0) > TOLERANCE:
            step = step / 2
        coefficients = coefficients - step
        current = loss(coefficients)
        if np.abs(step).max(initial=0) <= TOLERANCE:
            break
    return coefficients
