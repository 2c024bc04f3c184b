"""Numbers as people read them, with units."""

from typing import Any

from hpcmpq.wording import label, show_bytes

STYLE_OF_COST = {
    "size_bytes": "bytes",
    "active_bytes": "bytes",
    "weight_bits": "bits",
    "average_bits": "bits",
}

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def show(value: Any, style: str) -> str:
    r"""A value as people read it; an em dash for one that was not measured.

    Example:
        >>> show(1310720, "bytes"), show(0.0335, "loss"), show(0.125, "share"), show(None, "loss")
        ('1.31 MB', '0.03350', '12.5 %', '—')
        >>> show(2.82e-5, "loss"), show(4e-7, "share"), show(-0.02, "signed")
        ('2.820×10⁻⁵', '<\xa00.001 %', '−0.0200')
        >>> show(12345.0, "loss"), show(13.42, "share")
        ('1.234×10⁴', '1,342 %')
    """
    if value is None:
        return "—"
    if style == "text" or isinstance(value, str):
        return str(value)
    if style == "count":
        return f"{value:,}"
    if style == "bytes":
        return show_bytes(float(value))
    if style == "bits":
        return f"{value:.3f}".rstrip("0").rstrip(".")
    if style == "seconds":
        return _seconds(float(value))
    if style == "share":
        return _share(float(value))
    if style == "ratio":
        return f"{value:.2f} ×"
    if style == "signed":
        return ("+" if value > 0 else "") + _significant(float(value), 3)
    if style == "number" and 1e4 <= abs(value) < 1e11:
        return f"{value:,.0f}"
    if style == "number" and abs(value) < 1e11:
        return f"{value:.4g}"
    return _significant(float(value))


def cost_title(name: str) -> str:
    """A cost in words, for a number that carries its unit.

    Example:
        >>> cost_title("size_bytes"), cost_title("weight_bits")
        ('checkpoint size', 'bits per weight')
    """
    return label(name).removesuffix(" in bytes").removesuffix(" in seconds")


def show_cost(name: str, value: float) -> str:
    """A cost with its unit.

    Example:
        >>> show_cost("weight_bits", 2.75), show_cost("size_bytes", 5.1e9)
        ('2.75 bits per weight', 'a checkpoint of 5.1 GB')
    """
    if name == "size_bytes":
        return f"a checkpoint of {show_bytes(value)}"
    if name in ("weight_bits", "average_bits"):
        return f"{show(value, 'bits')} {label(name)}"
    if name.endswith("_s"):
        return f"{show(value, 'seconds')} {cost_title(name)}"
    return f"{show(value, 'number')} {label(name)}"


def show_interval(ends: Any, style: str = "loss") -> str:
    """An interval in words.

    Example:
        >>> show_interval([0.012, 0.02])
        '0.01200 to 0.02000'
    """
    return f"{show(ends[0], style)} to {show(ends[1], style)}"


def show_operations(value: float) -> str:
    """Floating-point operations.

    Example:
        >>> show_operations(1.313e12)
        '1.31 TFLOP'
    """
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} PFLOP"


def _significant(value: float, digits: int = 4) -> str:
    """A fixed number of significant digits, so that the digits of a column say alike how well its values are known."""
    if value == 0:
        return "0"
    text = f"{value:#.{digits}g}".rstrip(".")
    if "e" in text:
        mantissa, exponent = text.split("e")
        text = f"{mantissa}×10{str(int(exponent)).translate(SUPERSCRIPTS)}"
    return text.replace("-", "−")


def _share(value: float) -> str:
    if 0 < abs(value) < 5e-6:
        return "<\N{NO-BREAK SPACE}0.001 %"
    digits = ",.0f" if abs(value) >= 10 else ".3g"
    return f"{100 * value:{digits}} %".replace("-", "−")


def _seconds(value: float) -> str:
    if value < 1e-3:
        return f"{1e6 * value:.3g} µs"
    if value < 0.1:
        return f"{1e3 * value:.3g} ms"
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
