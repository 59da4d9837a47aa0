"""Annotated photographs → datasets of training shards: made, listed, verified, read and made to forget."""
