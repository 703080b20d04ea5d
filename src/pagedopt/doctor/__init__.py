"""What this machine has of all that pagedopt can use; for each thing missing what that costs, and how to get it.

check       what one examination found
software    Python, torch, kernels, packages that we work with
hardware    accelerator, threads, RAM
spilling    the folder that pages go to: its file system, its room
speed       rates, measured briefly
"""

from pagedopt.doctor.check import Check, State
from pagedopt.doctor.examination import Options, diagnose

__all__ = ["Check", "Options", "State", "diagnose"]
