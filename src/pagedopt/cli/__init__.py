"""The command line: each command a file with a short function that calls the module that does the work.

To add a command, write `cli/<command>.py` with a function of that name, and name it in `command_line.COMMANDS`.
"""

from pagedopt.cli.command_line import app, main

__all__ = ["app", "main"]
