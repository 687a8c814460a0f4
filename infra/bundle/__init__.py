"""The bundle: what is shipped, and the code that reads it.

A bundle is one folder with a model, its schema, vocabulary, threshold and golden predictions, and no pickle.
This package uses relative imports alone and neither Prefect, MLflow nor Dask, so that a copy of it can travel
inside an MLflow model and answer without Evergreen installed.
"""
