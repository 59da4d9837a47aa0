"""Prefect flows that orchestrate `pipelines`, and the `msrrn` command line."""
