"""Side-by-side measurements; each prints one table and writes its section of `RESULTS.md`."""
