"""The refine stage: better assignments by measured loss, and how predictions relate to measurements."""
