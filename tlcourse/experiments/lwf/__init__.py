"""Experiments of the chapter on continual learning: learning without forgetting."""
