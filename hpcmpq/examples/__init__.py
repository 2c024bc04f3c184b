"""Small real models and data for the quickstart, the tests and the benches."""
