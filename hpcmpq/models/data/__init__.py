"""Samples of data: where they come from, how they are cut, split and kept."""
