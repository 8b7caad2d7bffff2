"""Write shares in per cent, as the model's authors print them."""

from edgeclip_bench.measure.report_table import NONE


def with_interval(value: float, low: float, high: float) -> str:
    """A share and its interval in per cent."""
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"


def percent(value: float | None, sign: str = "") -> str:
    """A share in per cent, with two decimals, and "+" before it where `sign` says so; a dash for None."""
    return NONE if value is None else f"{100 * value:{sign}.2f}"
