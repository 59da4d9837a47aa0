"""Datasets → model artifacts: the loop of one worker, here or on Ray Train."""
