"""What names of metrics in `evaluation.json` say of their direction."""

HIGHER_IS_BETTER = ("acc", "exact_match")
"""How names begin of which higher is better; of all others lower is, unless they say otherwise."""

_SAYING = {True: " (higher is better)", False: " (lower is better)"}


def saying(name: str, higher: bool) -> str:
    """The name of a metric, with its direction in brackets where the name alone would say the opposite.

    Example:
        >>> saying("bleu", True), saying("acc", True), saying("acc_gap", False), saying("perplexity", False)
        ('bleu (higher is better)', 'acc', 'acc_gap (lower is better)', 'perplexity')
    """
    return name if higher_is_better(name) == higher else f"{name}{_SAYING[higher]}"


def higher_is_better(metric: str) -> bool:
    """By its name.

    Example:
        >>> higher_is_better("accuracy_normalized"), higher_is_better("perplexity")
        (True, False)
        >>> higher_is_better("bleu (higher is better)"), higher_is_better("acc_gap (lower is better)")
        (True, False)
    """
    for higher, end in _SAYING.items():
        if metric.endswith(end):
            return higher
    return metric.startswith(HIGHER_IS_BETTER)
