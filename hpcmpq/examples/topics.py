"""English text that every CPython carries: the language reference behind `help()`, in three disjoint parts.

The model of the quickstart was trained on the first part; it is calibrated and evaluated on text it never saw.
"""

from pydoc_data.topics import topics

TRAINING_FRACTION, CALIBRATION_FRACTION = 0.9, 0.05


def training_text() -> str:
    """The first nine tenths of the topics, in alphabetical order."""
    return _part(0.0, TRAINING_FRACTION)


def calibration_text() -> str:
    """The first half of the last tenth: for calibration and held-out losses."""
    return _part(TRAINING_FRACTION, TRAINING_FRACTION + CALIBRATION_FRACTION)


def evaluation_text() -> str:
    """The second half of the last tenth: for evaluation."""
    return _part(TRAINING_FRACTION + CALIBRATION_FRACTION, 1.0)


def _part(start: float, stop: float) -> str:
    text = "\n".join(topics[name] for name in sorted(topics))
    return text[int(len(text) * start) : int(len(text) * stop)]
