"""Artifacts in Prefect, whose UI takes every text of one for Markdown: names and reasons are other people's."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from pipelines.showable import no_markup


def table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> None:
    """A table of rows with the same columns."""
    plain = [{name: no_markup(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows]
    create_table_artifact(key=key, table=plain, description=no_markup(description))


def words(key: str, title: str, text: str) -> None:
    """A sentence or two behind a title."""
    create_markdown_artifact(key=key, markdown=f"**{no_markup(title)}.** {no_markup(text)}")
