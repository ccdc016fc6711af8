"""Shares of requests on the command line."""

from contextlib import suppress
from decimal import Decimal

import typer


def basis_points(share: str, option: str) -> int:
    """`5%` or `0.25%` as parts of 10,000."""
    number = share.removesuffix("%")
    with suppress(ArithmeticError, ValueError):
        points = Decimal(number) * 100
        if share != number and points == int(points) and 1 <= points <= 10_000:
            return int(points)
    raise typer.BadParameter(f"{share!r} is no share: write a percentage from 0.01% to 100%", param_hint=option)
