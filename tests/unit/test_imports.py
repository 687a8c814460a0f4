"""Imports that take less time."""

from __future__ import annotations

import gc
import subprocess
import sys

import pytest

from infra.imports import collector_paused, without


def test_the_collector_works_again_afterwards() -> None:
    """Nothing is collected meanwhile; what was made then is never looked at again, what comes later is."""
    before = gc.get_freeze_count()
    with collector_paused():
        is_on, kept = gc.isenabled(), [[] for _ in range(1000)]
    try:
        assert (False, True) == (is_on, gc.isenabled())
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()


def test_an_error_switches_the_collector_on_again() -> None:
    """A failed import leaves no process without a collector."""
    with pytest.raises(ImportError), collector_paused():
        raise ImportError
    gc.unfreeze()

    assert gc.isenabled()


def test_a_hidden_package_is_missing_meanwhile() -> None:
    """An import fails while the package is hidden and works afterwards; one that is loaded stays loaded."""
    with without("wave"), pytest.raises(ImportError, match="wave"):
        import wave
    with without("gc"):
        import gc as again
    import wave

    assert (gc, "wave") == (again, wave.__name__)


def test_xgboost_comes_without_what_it_does_not_need() -> None:
    """Neither scikit-learn nor pandas is loaded, and scikit-learn can still be imported by who wants it."""
    code = (
        "import importlib.util, sys; from infra.imports import import_xgboost; import_xgboost(); import xgboost; "
        "print([name for name in ('sklearn', 'pandas') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]" == done.stdout.strip()


def test_a_retrain_comes_without_scikit_learn() -> None:
    """The process of a deployment's run, and the one that starts them, load neither scikit-learn, pandas nor torch."""
    code = (
        "import sys, flows.serve; "
        "print([name for name in ('sklearn', 'pandas', 'xgboost', 'torch', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "['xgboost']" == done.stdout.strip()


def test_the_command_line_waits_for_no_large_library() -> None:
    """To read a configuration needs neither SciPy nor XGBoost nor MLflow nor Prefect nor Dask."""
    code = (
        "import sys, flows.cli; large = ('scipy', 'xgboost', 'mlflow', 'prefect', 'dask', 'matplotlib', 'pandas'); "
        "print([name for name in large if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "[]" == done.stdout.strip()
