"""Trained models and their data: loading, the groups to search, swapping weights, calibration samples."""
