"""Argument checks: one sentence that names the argument, what came and what was expected."""


def expect(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)
