"""How `make test` runs its tests: nothing fails by itself where pytest stops to keep them apart."""

import pytest


def test_tests_that_start_ray_or_servers_are_kept_together(request: pytest.FixtureRequest, worker_id: str) -> None:
    alone = worker_id == "master"
    assert request.node.nodeid.endswith("@test_side_by_side.py") != alone
