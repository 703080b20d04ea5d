"""A few lines that help where the users live. Nothing here is needed, and nothing of anybody's package is changed.

    groups          parameter groups: weight decay, and embeddings in 32-bit state
    report          what paging did, as numbers for a log
    transformers    a callback for Trainer and all that are made from it (TRL, Unsloth, Axolotl)
    axolotl         a plugin

Each module imports the package that it is for; the rest of pagedopt imports none of this.
"""
