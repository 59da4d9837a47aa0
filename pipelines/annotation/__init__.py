"""Bare photographs → landmarks on every face: planned, written unit by unit, exported, reviewed."""
