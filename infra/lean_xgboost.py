"""Imported before anything that imports XGBoost, it has XGBoost come without scikit-learn; `infra.imports` says why."""

from infra.imports import import_xgboost

import_xgboost()
