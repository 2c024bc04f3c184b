"""A model as a chain of blocks: prologue, blocks that hand on one hidden state, epilogue."""
