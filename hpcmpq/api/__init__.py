"""What people call from Python; `import hpcmpq` gives it all without loading anything before it is used.

stages.py       each stage with its defaults, as `hpcmpq.cli` and `Run` call it
limits.py       the frontier stage, with a range of limits where none is given
run.py          `Run`, a run directory and its stages; calibrating.py and results.py have some of its methods
create.py       a config from a model, data and a few settings, and its plan
given.py        models and data in memory, kept where every later stage and worker finds them
opened.py       `hpcmpq.open`
solution.py     `Solution`, an assignment with its costs and its bound
frontier.py     `Frontier`, the trade-off curve
quadratic.py    `Quadratic`, the measured loss with names on its axes
quantize.py     all of it in one call
bars.py         progress, in a terminal or a notebook
example.py      a run of a second, which the examples of the docstrings use
"""
