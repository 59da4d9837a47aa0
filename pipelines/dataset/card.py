"""The card of a dataset: what it is and how to use it, in Markdown with the front matter of Hugging Face's hub."""

from collections import Counter
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipelines.checks import CHECKS
from pipelines.dataset.manifest import Manifest
from pipelines.showable import counted, no_markup

CARD: Final = "README.md"

_SIZES: Final = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)


_ENVIRONMENT: Final = Environment(
    loader=PackageLoader("pipelines", ""),
    autoescape=False,  # Markdown: `plain` escapes what came in
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {"plain": no_markup, "counted": counted}
_TEMPLATE: Final = _ENVIRONMENT.get_template("dataset/card.md.j2")


def dataset_card(manifest: Manifest) -> str:
    """The card. The same manifest gives the same text: no clock, no host, no path of a machine."""
    rows = manifest.counts["rows"]
    return _TEMPLATE.render(
        manifest=manifest,
        counts=manifest.counts,
        size=next((name for limit, name in _SIZES if rows < limit), "n>10M"),
        settings=_flat(manifest.settings),
        shards=len(manifest.shards()),
        bytes=sum(unit.bytes for unit in manifest.units),
        checks=[(check, CHECKS[check.code].title if check.code in CHECKS else "") for check in manifest.checks],
        reasons=sorted(Counter(item.reason for item in manifest.left_out).items()),
    )


def _flat(settings: dict[str, object], above: str = "") -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for name, value in settings.items():
        if isinstance(value, dict):
            flat += _flat(value, f"{above}{name}.")
        else:
            flat.append((above + name, value))
    return flat
