"""XGBoost for the unit tests as the workers have it: without scikit-learn, and with threads that wait asleep."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import infra.lean_xgboost  # noqa: F401  before a test module imports XGBoost
