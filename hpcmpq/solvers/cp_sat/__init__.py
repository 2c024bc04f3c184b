"""Integer programs, solved by CP-SAT."""
