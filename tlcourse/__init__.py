"""tlcourse: a transfer-learning course you can run, poke and check.

A transfer method is an objective, what it freezes, and what it adds. `tlcourse.methods` holds the
lecture, one file per idea; `tlcourse.training.fit` is the one loop they all train with;
`tlcourse.experiments` measures what the lecture claims.
"""

__version__ = "0.1.0"
