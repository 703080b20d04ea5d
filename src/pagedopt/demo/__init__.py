"""The demo: a real transformer trained on real text, once with torch's AdamW and once with paged 8-bit AdamW.

    text        the standard library's sources -> training and validation bytes -> batches
    model       a byte-level decoder-only transformer of a given size
    training    one run: the curves and the seconds of each step
    paging      the paged run's budget, and what its pager did
    residency   a recording of the pager -> which page was where, when
    outcome     three runs -> do the curves agree, was the budget kept, was no byte moved in vain
    report      the outcome as a table and a verdict
    pictures    the outcome as two PNG files
    show        the order in which all that happens, live

Nothing outside imports it but the command line.
"""
