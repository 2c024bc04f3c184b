"""Feasible assignments of low objective: tabu search, annealing, descent."""
