"""English text that every CPython carries: the language reference behind `help()`."""

from pydoc_data.topics import topics

EVALUATION_FRACTION = 0.1


def training_text() -> str:
    """The first nine tenths of the topics, in alphabetical order: for training and calibration."""
    return _split()[0]


def evaluation_text() -> str:
    """The last tenth of the topics, never trained or calibrated on."""
    return _split()[1]


def _split() -> tuple[str, str]:
    text = "\n".join(topics[name] for name in sorted(topics))
    cut = int(len(text) * (1 - EVALUATION_FRACTION))
    return text[:cut], text[cut:]
