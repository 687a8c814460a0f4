"""Plugs to the outside: storage, clusters, MLflow, Prefect's server, serving."""
