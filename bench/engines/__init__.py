"""Exports in the engines that serve them, run for real: `python -m bench.engines`."""
