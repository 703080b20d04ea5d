"""Where pagedopt stands: its step against its peers' and against what the machine's memory and disk can do.

`python -m bench cpu`, `python -m bench gpu`, `python -m bench table`

    measure         candidates timed by turns, each checked before it is timed
    check           the float64 oracle and the tolerances
    workload        parameters and gradients                peers       who takes part, and who cannot
    machine         what this is, how fast its memory is    disk        how fast its disk is
    cases           what is measured on a CPU               gpu_cases   what is measured on a GPU
    paged           steps within a budget                   transient   memory that a step takes and gives back
    training        a loop around the step                  accelerator the GPU's clock, memory and copies
    results_file    bench/results/<machine>.json            report      tables made from it
    bars            what must be reached                    run         one run, from start to file
"""
