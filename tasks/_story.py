"""What a retrain has learnt and decided, handed from stage to stage."""

from __future__ import annotations

from dataclasses import dataclass

from infra.bundle.schema import Task
from tasks._candidate import Candidate
from tasks._certify import Certified
from tasks._choose import Choice
from tasks._compress import Frontier
from tasks._decide import Verdict
from tasks._encode import Encoded
from tasks._evaluate import Evaluation
from tasks._learning import LearningJob
from tasks._profile import Profile
from tasks._report import Picture
from tasks._sample import Sample
from tasks._snapshot import Snapshot
from tasks._split import SideCounts, SplitRule
from tasks._versions import ModelVersion


@dataclass(frozen=True)
class Training:
    """From the source files to a challenger."""

    snapshot: Snapshot
    profile: Profile
    changes: tuple[str, ...]
    """How the schema differs from the champion's, in words."""
    encoded: Encoded
    rule: SplitRule
    counts: SideCounts
    sample: Sample
    plans: tuple[str, ...]
    """Where and how each family was trained, in words."""
    job: LearningJob
    """Of the candidate that went on."""
    choice: Choice
    frontier: Frontier
    certified: Certified
    metric: str
    """What the verdict is about."""

    @property
    def candidate(self) -> Candidate:
        """Return the candidate that went on."""
        return self.choice.candidate

    @property
    def task(self) -> Task:
        """Return what the target asks for."""
        return self.encoded.schema.task


@dataclass(frozen=True)
class Judged:
    """From a challenger to a verdict, and its version."""

    challenger: Evaluation
    champion: Evaluation | None
    champion_before: ModelVersion | None
    verdict: Verdict
    pictures: tuple[Picture, ...]
    version: ModelVersion
    champion_version: str | None
    """The version in production afterwards."""
