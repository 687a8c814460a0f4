"""Retraining that keeps something of the champion: rounds added to its trees, or its parameters learnt again."""

from __future__ import annotations

import json

from _drive import LEAN, MODEL, MONTHS, PROMOTE_IF_FRESHER, Workspace

QUICK = (*LEAN, *PROMOTE_IF_FRESHER, "--set", "compress.enabled=false")


def test_the_champion_is_continued_and_refit(workspace: Workspace) -> None:
    """A new month adds rounds to the champion's trees, but only once, and a refit takes over their number."""
    continued, refit = ("--set", "train.mode=continue"), ("--set", "train.mode=refit")
    workspace.grow(MONTHS + 1)
    second = workspace.evergreen("retrain", "--json", *QUICK, *continued)
    plan = workspace.evergreen("plan", "--json", *QUICK, *continued).answer
    workspace.grow(MONTHS + 2)
    third = workspace.evergreen("retrain", "--json", *QUICK, *refit)
    first, grown, learnt = (json.loads(workspace.stored("versions")[f"{MODEL}/{n}.json"])["origin"] for n in (1, 2, 3))
    added = grown["num_rounds"] - first["num_rounds"]

    assert ["2", "3"] == [run.answer["champion_version"] for run in (second, third)]
    assert (first["pilot"], first["final"]) == (grown["base"]["pilot"], grown["base"]["final"])
    assert added > 0
    assert f"  Continues version 1: {added} rounds added to {first['num_rounds']} on " in second.stderr
    assert "nothing is new, every stage is cached" == plan["summary"]
    assert "it has learnt from the same files" in json.dumps(plan["stages"])
    assert ("2", grown["num_rounds"], grown["settings"]) == (
        learnt["refit_of"],
        learnt["num_rounds"],
        learnt["settings"],
    )
    assert f"  Version 2 refit: its parameters and its {grown['num_rounds']} rounds on " in third.stderr
