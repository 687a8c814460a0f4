"""Leave out the last rounds of boosted trees."""

from __future__ import annotations

from collections.abc import Iterator

from infra.bundle.trees import Trees
from tasks._techniques.technique import Built, Uncompressed

SHARES = (0.25, 0.5, 0.75)


class FirstRounds:
    """Trees up to a round of the validation curve: what the last ones add is little where it is flat."""

    name = "first rounds"
    cost = 0.0

    def applies_to(self, given: Uncompressed) -> bool:
        """Return whether there are rounds to leave out."""
        return isinstance(given.final, Trees) and given.num_rounds > 1

    def build(self, given: Uncompressed) -> Iterator[Built]:
        """Give the first rounds, the fewest first."""
        assert isinstance(given.pilot, Trees)
        assert isinstance(given.final, Trees)
        for num_rounds in sorted({max(1, round(share * given.num_rounds)) for share in SHARES} - {given.num_rounds}):
            pilot, final = (Trees(trees.booster[:num_rounds]) for trees in (given.pilot, given.final))
            yield Built(f"first {num_rounds} rounds", pilot, final)


TECHNIQUE = FirstRounds()
