"""A run in the directory of an experiment tracker: record.py says what of it, mlflow_runs.py writes it."""
