"""How outputs move when a group takes a format: z(p) − z₀ of many options, by whole passes or as a wavefront."""
