"""Experiments of the chapter on matching Jacobians."""
