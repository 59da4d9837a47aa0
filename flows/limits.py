"""A run that loses its place among those that its deployment's `concurrency_limit` allows goes on.

Prefect gives a run its place as a lease, and ends a run that cannot renew it (PrefectHQ/prefect 18802), within four
minutes. But its server, unless told otherwise, keeps leases in memory alone, so that a restart would end all that is
running. And it takes them back: from a run that is paused, so that nobody could take longer to approve a promotion,
and from one that lived on while the server was away, and was crashed for its silence. No setting leaves such a run
alone. Two at once do no harm here: places have leases of their own (`pipelines.lease`), and what moves aliases takes
turns (`pipelines.registry.turns`).
"""

from collections.abc import Generator
from contextlib import contextmanager
from uuid import UUID

from prefect import flow_engine
from prefect.concurrency._leases import maintain_concurrency_lease


def outlive_leases() -> None:
    """From now on runs in this process log that they lost their place, and are not ended."""
    flow_engine.maintain_concurrency_lease = _maintain  # type: ignore[attr-defined]


@contextmanager
def _maintain(
    lease_id: UUID,
    lease_duration: float,
    raise_on_lease_renewal_failure: bool = False,
    suppress_warnings: bool = False,
) -> Generator[None, None, None]:
    with maintain_concurrency_lease(lease_id, lease_duration, suppress_warnings=suppress_warnings):
        yield
