"""Experiments of the chapter on fine-tuning, and on growing a network."""
