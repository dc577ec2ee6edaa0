"""What tests of several methods share."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

often = settings(deadline=None, max_examples=30, database=None)
seeds = st.integers(0, 10_000)


def state(module):
    """A copy of all that a module holds."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    """Whether two such copies are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
