"""The figures of a log that are shown beside the loss, with their units: one list for plots, tables and the JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

from ds_sft.tools.run_report.record import Row


@dataclass(frozen=True)
class Panel:
    """A figure.

    Args:
        name: In the rows of the log.
        title: With the unit.
        factor: From the log's unit to that of the title.
    """

    name: str
    title: str
    factor: float = 1.0


MEMORY = Panel("peak_memory_bytes", "peak memory of a rank, GiB", 1 / 2**30)
PANELS = (
    Panel("learning_rate", "learning rate"),
    Panel("grad_norm", "gradient norm"),
    Panel("tokens_per_second", "tokens per second"),
    Panel("supervised_tokens_per_second", "supervised tokens per second"),
    MEMORY,
    Panel("data_wait_share", "waiting for data, % of the time", 100),
    Panel("mfu", "MFU, % of the measured peak", 100),
)


def panels_of(rows: Sequence[Row]) -> list[Panel]:
    """Tell what a log has.

    Args:
        rows: Of the log.

    Returns:
        The figures that at least one row holds.
    """
    return [panel for panel in PANELS if any(panel.name in row for row in rows)]
