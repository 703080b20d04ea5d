"""What paging does, while it does it. Nothing here is imported before it is asked for.

trace      a file for Perfetto: every page, every transfer, every wait
live       one line in a terminal
optimizers finds pagedopt's optimizer inside what wraps it, and tells when it steps
"""
