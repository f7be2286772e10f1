"""Whether sigmoid(R+ - R-) means what it says: temperature, reliability and expected calibration error; numpy only.

The confidence of an RM in its own answer is sigmoid(|R+ - R-| / T), from 0.5 to 1; it is right if R+ > R-.
"""

import numpy as np

from scpo_jax import metrics

BINS = 10  # of equal width, over confidences from 0.5 to 1
TEMPERATURES = (1e-2, 1e2)  # T is looked for between these


def fit_temperature(margins: np.ndarray) -> float | None:
    """The T that makes the labels of pairs likeliest: it minimises the mean of log(1 + exp(-margin / T)).

    Temperature scaling (Guo et al. 2017). The loss is convex in 1 / T: bisection on its slope. An RM worse than chance
    gets the largest T, one that is always right the smallest; None without pairs.

    Args:
      margins: R+ - R- of pairs that are not the test pairs, `[B]`.
    """
    if not len(margins):
        return None
    margins = margins.astype(np.float64)
    low, high = 1 / TEMPERATURES[1], 1 / TEMPERATURES[0]
    for _ in range(60):
        middle = np.sqrt(low * high)
        rises = np.mean(margins * np.exp(-np.logaddexp(0, middle * margins))) < 0  # minus the slope at 1 / T = middle
        low, high = (low, middle) if rises else (middle, high)
    return float(1 / np.sqrt(low * high))


def confidences(margins: np.ndarray, temperature: float) -> np.ndarray:
    """sigmoid(|margin| / T) of pairs, `[B]`, from 0.5 to 1."""
    return 1 / (1 + np.exp(-np.abs(margins.astype(np.float64)) / temperature))


def in_bins(confidence: np.ndarray) -> np.ndarray:
    """One-hot bin of every confidence, `[B, BINS]`; the last bin includes 1."""
    index = np.minimum((2 * BINS * (confidence - 0.5)).astype(int), BINS - 1)
    return np.eye(BINS)[index]


def reliability(margins: np.ndarray, temperature: float) -> list[dict]:
    """Bins of confidence: mean confidence and strict accuracy of the pairs in each; None for those of an empty one."""
    confidence, right = confidences(margins, temperature), margins > 0
    bins, edges = in_bins(confidence).astype(bool).T, np.linspace(0.5, 1, BINS + 1).tolist()
    return [
        {
            "from": edges[b],
            "to": edges[b + 1],
            "n": int(own.sum()),
            "confidence": float(confidence[own].mean()) if own.any() else None,
            "accuracy": float(right[own].mean()) if own.any() else None,
        }
        for b, own in enumerate(bins)
    ]


def expected_error(margins: np.ndarray, temperature: float, counts: np.ndarray) -> tuple[float, np.ndarray]:
    """Expected calibration error and its bootstrap samples `[resamples]`.

    ECE = sum over bins of n_bin / n * |accuracy - mean confidence| (Guo et al. 2017), which is the sum over bins of
    |sum of (right - confidence)| / n.
    """
    confidence = confidences(margins, temperature)
    gaps = in_bins(confidence) * ((margins > 0) - confidence)[:, None]
    estimate = np.abs(gaps.sum(0)).sum() / len(margins)
    samples = np.abs(counts @ gaps.astype(np.result_type(counts, np.float32))).sum(1) / np.maximum(counts.sum(1), 1)
    return float(estimate), samples


def record(margins: np.ndarray, counts: np.ndarray, temperature: float | None) -> dict:
    """ECE at a temperature (1 where it is None) with its interval, the ECE without temperature, and reliability bins.

    Chance alone makes an ECE too large, and that of a resample larger by as much again. So the interval is the basic
    one, [2 * ECE - upper percentile, 2 * ECE - lower percentile] cut at 0 (Davison and Hinkley 1997, section 5.2),
    which takes that out; a small ECE may lie above it.
    """
    used = 1.0 if temperature is None else temperature
    estimate, samples = expected_error(margins, used, counts)
    low, high = (max(0.0, 2 * estimate - end) for end in reversed(metrics.interval(samples)))
    raw, _ = expected_error(margins, 1.0, counts)
    return {
        "temperature": temperature,
        "ece": estimate,
        "low": low,
        "high": high,
        "ece_without_temperature": raw,
        "bins": reliability(margins, used),
    }
