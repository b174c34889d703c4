"""Arithmetic of whole numbers."""


def nearest_divisor(number: int, wanted: int) -> int:
    """Near the wanted one, as far as is worth looking; else 1."""
    near = range(max(1, wanted - 10_000), min(number, wanted + 10_000) + 1)
    return min((d for d in near if number % d == 0), key=lambda d: (abs(d - wanted), d), default=1)
