"""What can go wrong, by name. A bad argument is a plain `ValueError` or `TypeError` raised where it enters."""

from __future__ import annotations


class PagedOptError(Exception):
    """Base of every error that is pagedopt's own; each is also the builtin error that people catch."""


class BudgetError(PagedOptError, ValueError):
    """A budget cannot hold the working set, `1 + 2 * prefetch_depth` pages; the message says the smallest that can."""


class SpillError(PagedOptError, OSError):
    """A page could not be read, written, or given room in RAM or in the spill file; the message says what to do."""


class CorruptPageError(SpillError):
    """A page read back from its tier is not the page that was written (its checksum differs)."""


class StateLostError(PagedOptError, RuntimeError):
    """Optimizer state was lost or left half updated; only loading or clearing it lets training go on."""


class CheckpointError(PagedOptError, ValueError):
    """A state dict or checkpoint cannot be taken in or written; nothing was changed."""
