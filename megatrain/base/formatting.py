"""Numbers as people read them in a log line."""

_DECIMAL = (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3))


def quantity(value: float) -> str:
    """Three digits and a decimal prefix: 999, 30.0k, 1.92M, 124.8M, 2.50B."""
    for prefix, unit in _DECIMAL:
        if value >= unit * 0.9995:  # what would round to 1000 takes the next prefix
            scaled = value / unit
            return f"{scaled:.2f}{prefix}" if scaled < 9.995 else f"{scaled:.1f}{prefix}"
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def gib(size_bytes: float) -> str:
    """Binary gigabytes, which is what GPU memory is sold in: 14.6 GiB."""
    return f"{size_bytes / 2**30:.1f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """Two units at most: 45s, 3m12s, 1h04m, 2d03h."""
    whole = round(seconds)
    for name, size, below, size_below in (("d", 86_400, "h", 3_600), ("h", 3_600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{name}{whole % size // size_below:02d}{below}"
    return f"{whole}s"


def scientific(value: float) -> str:
    """Learning rates: 5.9e-4."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def percent(fraction: float) -> str:
    return f"{fraction:.1%}"
