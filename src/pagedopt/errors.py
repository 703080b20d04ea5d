"""What can go wrong, by name. A bad argument is a plain `ValueError` or `TypeError` raised where it enters."""

from __future__ import annotations


class PagedOptError(Exception):
    """Base of every error that is pagedopt's own."""


class BudgetError(PagedOptError, ValueError):
    """A budget cannot hold the working set; the message says the smallest that can."""


class SpillError(PagedOptError, OSError):
    """The disk tier could not read, write or reserve a page."""


class CorruptPageError(SpillError):
    """A page read back from its tier is not the page that was written (its checksum differs)."""


class StateLostError(PagedOptError, RuntimeError):
    """Optimizer state was lost or left half updated; only loading or clearing it lets training go on."""


class CheckpointError(PagedOptError, ValueError):
    """A state dict or checkpoint cannot be taken in; nothing was changed."""
