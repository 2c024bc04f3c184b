"""Screening: a cheap first pass says which options budgets can choose, and `secant` measures those alone.

    first_pass.py   costs of all options by a few backward passes of each sample, in work units
    choice.py       which options to measure first; which more, now that those are measured
    stage.py        the rounds: measure, look, measure what is wanted

The others are no options of the run any more: `hpcmpq.store.plan_file.read_plan` leaves them out of the search space,
so no later stage can read a number of theirs or choose them. `hpcmpq.solve.wanted` has the argument why none is missed.
"""
