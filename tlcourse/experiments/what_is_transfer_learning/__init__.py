"""Experiments of the chapter on what transfer learning is."""
