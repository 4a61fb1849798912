"""Experiments as absl-flag modules: python -m experiments.multitask --help."""
