"""The times of a walk that goes back to noise and down again: RePaint's, and DDNM's time travel. Torch-free.

From each multiple of `jump_length` on the way down, the walk returns by `jump_length` steps, jumps - 1 times.
"""

from __future__ import annotations

from kuosan.errors import Error


def repaint_times(steps: int, jump_length: int = 10, jumps: int = 10) -> list[int]:
    """The indices into a grid of steps + 1 levels that a walk visits, 0 first, `steps` (clean) last
    (Lugmayr et al. 2022, section 4.2).

    A move to the next index is a denoising step, one to the index before adds noise. With t = steps - 1 - i, the
    paper's clock, returns start at t = 0, jump_length, 2·jump_length, ... below steps - jump_length.
    Raises: Error for returns that do not fit.
    """
    turning = {steps - 1 - t for t in _returning(steps, jump_length, jumps)}
    times = [0]
    for i in range(1, steps + 1):
        times.append(i)
        if i in turning:
            back = list(range(i - 1, i - jump_length - 1, -1))
            times += (back + list(range(i - jump_length + 1, i + 1))) * (jumps - 1)
    return times


def repaint_evaluations(steps: int, jump_length: int = 10, jumps: int = 10) -> int:
    """How often such a walk asks the network: each step, and each step of a return again."""
    return steps + len(_returning(steps, jump_length, jumps)) * jump_length * (jumps - 1)


def _returning(steps: int, jump_length: int, jumps: int) -> range:
    """The clock's times from which a walk returns."""
    for name, value in (("steps", steps), ("jump_length", jump_length), ("jumps", jumps)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise Error(f"{name} {value!r}: need a whole number, at least 1.")
    if jumps == 1:
        return range(0)
    if jump_length >= steps:
        raise Error(
            f"jump_length {jump_length} with {steps} steps: no return fits; need jump_length below {steps}, or jumps 1."
        )
    return range(0, steps - jump_length, jump_length)
