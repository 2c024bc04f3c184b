"""PBS (OpenPBS and PBS Professional): what its jobs may be told, how they are submitted, and where they stand."""
