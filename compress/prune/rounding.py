"""What widths stay multiples of, for the kernels; of less where that leaves a layer, or a goal, too few steps."""

from __future__ import annotations

from dataclasses import dataclass

STEPS = 4                                        # into which a width can be divided at least
LEAST = 4                                        # int8 kernels of CPUs read their inputs by fours
NEAR = 0.98                                      # of a goal: what is left of the model is not made larger any more


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Widths stay multiples of ``multiple``, everywhere and always where it is ``exact``."""

    multiple: int
    exact: bool = True

    def of(self, units: int) -> int:
        """What a group of so many units stays a multiple of.

        Where it is not exact that is the largest divisor of ``multiple`` that goes four times into the group: 4 of 16
        where there are 16 to 31 units, 8 up to 63.
        """
        if self.exact:
            return self.multiple
        return next(step for step in _divisors(self.multiple) if step == 1 or STEPS * step <= units)

    def less(self, units: int) -> tuple[int, ...]:
        """The smaller steps in which such a group may be given back what overshoots a goal, the largest first."""
        return () if self.exact else tuple(step for step in _divisors(self.multiple) if LEAST <= step < self.of(units))

    def __str__(self) -> str:
        return f"round_to={self.multiple}" if self.exact else f"round_near={self.multiple}"


def _divisors(number: int) -> list[int]:
    return [step for step in range(number, 0, -1) if number % step == 0]
