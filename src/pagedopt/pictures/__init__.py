"""Pictures that can be read in black and white, as PNG and SVG. Drawn by matplotlib, without a window system.

plot        from a file, a trace or results of the bench, to its pictures
style       what all pictures have in common
pages       where each page was                          residency    from what a pager told
bytes       where the bytes were, and what was moved     trace_read   from a trace
times       what the time of steps was spent on
ratios      what the bench measured, as ratios           results_read from a file of results
"""
