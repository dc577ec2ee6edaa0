"""The lecture, one file per idea. Each depends on torch (numpy, scipy, scikit-image) alone."""
