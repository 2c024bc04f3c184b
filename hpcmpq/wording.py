"""Names of artefacts' values, and sizes, in the words of people."""

LABELS = {
    "kl": "KL divergence to the original",
    "ce": "cross-entropy",
    "mse": "mean squared output distance",
    "weight_bits": "bits per weight",
    "average_bits": "bits per weight with scales",
    "size_bytes": "checkpoint size in bytes",
    "bops": "bit operations",
    "macs": "16-bit multiply-accumulates",
    "active_bytes": "bytes of weights read for a token",
    "active_macs": "16-bit multiply-accumulates of a token",
    "kv_bytes_per_token": "bytes of keys and values kept for a token",
    "mac_time": "16-bit multiply-accumulates by width of both factors",
    "latency_s": "latency in seconds",
    "predicted_cross_terms": "part of it from interactions",
    "bound": "proven lower bound of it",
    "gap": "gap to the bound",
}


def label(name: str) -> str:
    """A metric, cost or loss in words.

    Example:
        >>> label("kl"), label("predicted_loss")
        ('KL divergence to the original', 'predicted loss')
    """
    return LABELS.get(name, name.replace("_", " "))


def show_bytes(value: float) -> str:
    """Bytes in decimal units, as file managers count them.

    Example:
        >>> show_bytes(800), show_bytes(1310720), show_bytes(5e9), show_bytes(2.5e13)
        ('800 B', '1.31 MB', '5 GB', '25 TB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
