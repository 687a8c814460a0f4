"""XGBoost for the unit tests as the workers have it: without scikit-learn, and with threads that wait asleep."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
gc.set_threshold(50_000, 20, 50)  # patient: a sixth of a short test went into looking at what is imported

import infra.lean_xgboost  # noqa: E402, F401  before a test module imports XGBoost
