"""hpcmpq: how many bits each part of a large neural network gets, with a proof.

Importing this package imports nothing heavy. The stages live in modules of their own
(`plan`, `calibrate`, `reduce`, `solve`, `refine`, `export`, `evaluate`, `report`) and the
command line in `cli`.
"""

__version__ = "0.1.0"
