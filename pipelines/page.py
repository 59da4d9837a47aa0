"""A report as one HTML file that needs nothing else: styles inside, pictures as data, no script."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pipelines.showable import showable

_NUMBER: Final = re.compile(r"[-+−±<>≤≥]?\s*\d[\d.,\s]*(e[-+]?\d+\s*)?(%|×|px|ms|s)?", re.IGNORECASE)
_BLANK: Final = frozenset({"", "-", "–", "—", "nan"})
_REFERENCE: Final = re.compile(r'(\sid="|url\(#|href="#)')


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else showable(str(value))


_TEMPLATE: Final = Environment(
    loader=PackageLoader("pipelines", ""),
    autoescape=True,
    finalize=_finalize,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("page.html.j2")


@dataclass
class Page:
    """Sections in the order they are added; tables, figures, pictures and facts join the last one.

    Every text is escaped, so names of files may be given as they are.
    """

    title: str
    lead: str
    _sections: list[dict[str, Any]] = field(default_factory=list, init=False, repr=False)
    _figures: int = field(default=0, init=False, repr=False)

    def section(self, heading: str, text: str = "") -> None:
        """Begins a section; blank lines in `text` part its paragraphs."""
        anchor = f"s{len(self._sections) + 1}"
        self._sections.append({"anchor": anchor, "heading": heading, "paragraphs": _paragraphs(text), "blocks": []})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """Adds a table that scrolls by itself when it is too wide. Columns of numbers align right.

        Floats are shown as `str` shows them: format them first. Raises ValueError for a row whose
        length is not that of `columns`.
        """
        cells = [[str(cell) for cell in row] for row in rows]
        for row in cells:
            if len(row) != len(columns):
                raise ValueError(f"a row has {len(row)} cells for {len(columns)} columns: {row}")
        numeric = [_numeric([row[index] for row in cells]) for index in range(len(columns))]
        self._add("table", columns=list(columns), rows=cells, numeric=numeric, caption=caption)

    def figure(self, svg: str, caption: str) -> None:
        """Adds an SVG of `pipelines.figures`; any other text raises TypeError, as it would not be escaped."""
        if not isinstance(svg, Markup):
            raise TypeError("figure() embeds what pipelines.figures returns, unchanged, and nothing else")
        self._figures += 1
        # Figures name their parts alike; a page may hold each name once.
        own = _REFERENCE.sub(rf"\g<1>f{self._figures}-", str(svg))
        self._add("figure", svg=Markup(own), caption=caption)

    def picture(self, jpeg: bytes, caption: str, alt: str) -> None:
        """Adds a JPEG; `alt` says what it shows to those who cannot see it."""
        self._add("picture", data=base64.b64encode(jpeg).decode("ascii"), caption=caption, alt=alt)

    def gallery(self, pictures: Sequence[tuple[bytes, str]], caption: str) -> None:
        """Adds small JPEGs side by side, as many in a row as fit, each with its own words below it."""
        items = [(base64.b64encode(jpeg).decode("ascii"), words) for jpeg, words in pictures]
        self._add("gallery", pictures=items, caption=caption)

    def facts(self, items: Sequence[tuple[str, str]]) -> None:
        """Adds a list of (term, value): what went in, what came out."""
        self._add("facts", items=list(items))

    def html(self) -> str:
        """The document. The same calls give the same text."""
        return _TEMPLATE.render(title=self.title, lead=_paragraphs(self.lead), sections=self._sections)

    def _add(self, kind: str, **content: object) -> None:
        if not self._sections:
            self.section("")
        self._sections[-1]["blocks"].append({"kind": kind, **content})


def _paragraphs(text: str) -> list[str]:
    return [part for part in re.split(r"\n\s*\n", text.strip()) if part]


def _numeric(cells: Sequence[str]) -> bool:
    shown = [cell.strip() for cell in cells if cell.strip().lower() not in _BLANK]
    return bool(shown) and all(_NUMBER.fullmatch(cell) for cell in shown)
