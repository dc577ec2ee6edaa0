"""Experiments of the chapter on knowledge distillation."""
