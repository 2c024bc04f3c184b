"""The plan stage: what is measured, in which units, and what it will cost."""
