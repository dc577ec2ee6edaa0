"""Experiments of the chapter on learning several tasks together."""
