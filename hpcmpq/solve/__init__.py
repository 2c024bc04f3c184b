"""The solve and frontier stages: quadratic model and budgets to assignments. Free of torch."""
