"""What paging will cost, before anything is allocated.

sizes ── weights     what trains: names, shapes, dtypes
  └───── families    the shapes that a config.json means
rehearsal            the optimizer's pages without their bytes: what is where, and what moves
rates                what this machine can do, measured
prediction           seconds, and the term that binds
planning             `pagedopt.plan`: all of it together
"""
