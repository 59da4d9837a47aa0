import re
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib import rc_context

from pipelines.drawing import to_jpeg
from pipelines.figures import (
    binned_figure,
    ced_figure,
    curves_figure,
    scatter_figure,
    standing_alone,
)
from pipelines.page import Page

HOSTILE = "a<script>alert('x')</script>\"b\" & {{ 7 * 7 }}.jpg"


class Document(HTMLParser):
    """Every tag with its attributes, and the text outside of styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


@cache
def ced() -> str:
    return ced_figure({"stage 1": [0.04, 0.05, 0.2], "stage 2": [0.03, 0.04, 0.1]}, 0.15, "NRMSE (IP)")


def full_page(name: str = "photo.jpg") -> Page:
    page = Page(f"Report of {name}", f"Lead of {name}.\n\nSecond paragraph.")
    page.facts([(f"File {name}", name)])
    page.section(f"Section {name}", f"Text of {name}")
    page.table(["File", "IP %", name], [[name, "4.50", 3], ["other", "–", 12]], f"Table of {name}")
    page.figure(ced(), f"Figure of {name}")
    page.section("Pictures")
    page.figure(curves_figure({"loss": [(0, 1.0), (1, 0.1)]}, "epoch", "loss", log_y=True), "Loss")
    page.figure(binned_figure({"train": [1, 2], "val": [0, 9]}, [0, 1, 2], "px"), "Binned")
    page.figure(scatter_figure([1.0, 2.0], [2.0, 1.5], "champion", "challenger"), "Scatter")
    page.gallery([], f"Empty gallery {name}")
    page.picture(to_jpeg(np.zeros((8, 8, 3), dtype=np.uint8)), f"Caption {name}", f"Alt {name}")
    return page


@cache
def html_of(name: str = "photo.jpg") -> str:
    return full_page(name).html()


def test_names_are_escaped_everywhere() -> None:
    html = html_of(HOSTILE)
    document = Document(html)
    assert not document.named("script")
    assert html.count("&lt;script&gt;") >= 12
    assert document.text.count(HOSTILE) >= 9
    (image,) = document.named("img")
    assert image["alt"] == f"Alt {HOSTILE}"
    assert set(image) == {"src", "alt"}


def test_a_hostile_name_adds_no_element_and_no_attribute() -> None:
    hostile, tame = Document(html_of(HOSTILE)), Document(html_of())
    assert [(tag, sorted(a)) for tag, a in hostile.tags] == [(tag, sorted(a)) for tag, a in tame.tags]


def test_names_that_cannot_be_shown_are_spelt_out() -> None:
    page = Page("Report", "")
    page.table(["File"], [["bad\udcff\u202egpj.exe\x00"], ["a\u200f1\u2028b"], ["grüße 顔.jpg"]])
    page.figure(ced_figure({"set\udcff": [0.1]}, 0.2, "NRMSE"), "")
    html = page.html()
    assert html.encode("utf-8")
    assert r"set\udcff" in html
    assert r"bad\udcff\u202egpj.exe\x00" in html
    assert r"a\u200f1\u2028b" in html
    assert "grüße 顔.jpg" in html


def test_a_legend_is_text_not_markup() -> None:
    svg = ced_figure({HOSTILE: [0.1], "$x_1$": [0.2], "_hidden": [0.3]}, 0.5, "a<b")
    document = Document(svg)
    assert not document.named("script")
    for label in (HOSTILE, "$x_1$", "_hidden", "a<b"):
        assert label in document.text


def test_only_our_figures_are_embedded() -> None:
    with pytest.raises(TypeError, match=r"pipelines\.figures"):
        Page("Report", "").figure("<svg onload='alert(1)'></svg>", "")


def test_the_same_calls_give_the_same_bytes() -> None:
    ced.cache_clear()
    page = full_page()
    assert page.html() == html_of()
    assert page.html() == page.html()


def test_nothing_is_loaded_from_elsewhere() -> None:
    html = html_of()
    document = Document(html)
    for tag, attributes in document.tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            if name in {"src", "srcset", "href", "xlink:href", "action", "data", "poster"}:
                assert value.startswith(("data:image/jpeg;base64,", "#"))
            if not name.startswith("xmlns"):
                assert not re.search(r"https?://", value)
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    policy = next(m["content"] for m in document.named("meta") if "http-equiv" in m)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    assert any(meta.get("name") == "viewport" for meta in document.named("meta"))


def test_names_of_parts_are_unique_and_references_resolve() -> None:
    html = html_of()
    names = [attributes["id"] for _, attributes in Document(html).tags if "id" in attributes]
    assert len(names) == len(set(names))
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', html))
    assert used
    assert used <= set(names)


def test_the_contents_lead_to_the_sections() -> None:
    page = Page("Report", "")
    page.facts([("Faces", "3")])
    for _ in range(3):
        page.section("Twice the same")
    document = Document(page.html())
    targets = [link["href"].removeprefix("#") for link in document.named("a")]
    sections = [section["id"] for section in document.named("section")]
    assert targets == sections[1:]
    assert len(set(targets)) == 3


def test_columns_of_numbers_align_right() -> None:
    page = Page("Report", "")
    rows = [["1.jpg", "4.50", "−3 %", 1_000, "", "0.4 (2)"], ["2.jpg", "–", "1,2", 2, "", "1.5e-3 s"]]
    page.table(["File", "IP %", "Change", "Faces", "Note", "Mixed"], rows)
    heads = Document(page.html()).named("th")
    assert [head.get("class") for head in heads] == [None, "n", "n", "n", None, None]


def test_a_name_that_begins_like_a_number_is_looked_at_once() -> None:
    """Of a megabyte, it took days."""
    page = Page("Report", "")
    page.table(["File"], [["1" + " " * 1_000_000 + ".jpg"]])
    assert Document(page.html()).named("th")[0].get("class") is None


def test_a_short_row_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Page("Report", "").table(["File", "Faces"], [["a.jpg"]])


def test_an_empty_table_says_so() -> None:
    page = Page("Report", "")
    page.table(["Reason", "Images"], [])
    assert "none" in Document(page.html()).words


def test_figures_are_the_same_whatever_the_user_set_for_matplotlib() -> None:
    def drawn() -> list[str]:
        return [
            ced_figure({"a": [0.1], "b": [0.2]}, 0.3, "NRMSE"),
            curves_figure({"loss": [(1, 0.5), (2, 0.1)]}, "epoch", "loss", log_y=True),
            binned_figure({"now": [1, 3, 2]}, [0, 1, 2, 3], "size"),
            scatter_figure([0.1, 0.2], [0.1, 0.3], "true", "expected"),
        ]

    plain = drawn()
    with rc_context({"text.usetex": True, "font.family": "serif", "lines.marker": "x", "savefig.dpi": 300}):
        assert drawn() == plain


def test_empty_figures_say_so() -> None:
    assert "no data" in ced_figure({}, 0.1, "NRMSE")
    assert "stage 1 (no faces)" in ced_figure({"stage 1": [], "stage 2": [0.1]}, 0.1, "NRMSE")
    assert "no data" in curves_figure({}, "epoch", "loss")
    assert "epoch" in curves_figure({"loss": []}, "epoch", "loss", log_y=True)


def test_the_legend_keeps_the_order_given() -> None:
    svg = ced_figure({"zulu": [0.1], "alpha": [0.2], "mike": [0.05]}, 0.3, "NRMSE")
    assert svg.index("zulu") < svg.index("alpha") < svg.index("mike")


def curve_heights(svg: str) -> list[float]:
    """y of the first curve, in SVG units (downwards)."""
    drawn = next(path for path in re.findall(r'd="([^"]+)"[^>]*stroke: #2b86c5', svg))
    return [float(pair.split()[1]) for pair in re.findall(r"[ML] (\S+ \S+)", drawn)]


def test_the_distribution_counts_faces_that_fail() -> None:
    """Half of the faces under the limit: the curve ends half as high, whatever the others' error is."""
    every = curve_heights(ced_figure({"a": [0.01, 0.02]}, 0.1, "NRMSE"))
    for failed in (5.0, float("inf"), float("nan")):
        half = curve_heights(ced_figure({"a": [0.01, failed]}, 0.1, "NRMSE"))
        assert half[0] == pytest.approx(every[0])
        assert half[0] - half[-1] == pytest.approx((every[0] - every[-1]) / 2, rel=1e-3)


def test_curves_survive_values_that_cannot_be_shown() -> None:
    points = [(0.0, 1.0), (1.0, float("nan")), (2.0, 0.0), (3.0, float("inf")), (4.0, 0.01)]
    svg = curves_figure({"loss": points}, "epoch", "loss", log_y=True)
    assert "nan" not in svg.lower()
    assert "mathdefault" not in svg


def test_a_scatter_has_a_point_for_each_pair_up_to_a_limit() -> None:
    def points(count: int) -> int:
        x = [1 + number / count for number in range(count)]
        svg = scatter_figure([*x, 0.0, float("nan")], [*x[::-1], 1.0, 1.0], "x", "y")
        return str(svg).count("fill-opacity: 0.55")

    assert points(7) == 7
    assert 1500 < points(9000) <= 2000
    assert "no data" in scatter_figure([], [], "x", "y")
    assert "no data" in scatter_figure([0.0], [1.0], "x", "y")


def test_a_figure_that_stands_alone_has_its_own_colour() -> None:
    alone = standing_alone(scatter_figure([1.0, 2.0], [2.0, 1.5], "x", "y"))
    assert alone.startswith(b"<svg")
    assert b"currentColor" not in alone


def test_figures_take_the_colour_of_the_page() -> None:
    for svg in (ced(), curves_figure({"a": [(0, 1)]}, "x", "y")):
        assert svg.startswith("<svg")
        assert "currentColor" in svg
        assert "#010203" not in svg
        assert "<metadata" not in svg


def test_binned_shares_compare_series_of_unlike_sizes() -> None:
    counts = {"a": [0, 1, 1, 0], "b": [0, 50, 50, 0]}
    svg = binned_figure(counts, [1, 2, 4, 8, 16], "px", log_x=True)
    first, second = (re.findall(rf'd="([^"]+)"[^>]*stroke: {colour}', svg)[0] for colour in ("#2b86c5", "#d55e00"))
    assert first == second
    # Empty bins at both ends take no room.
    assert svg == binned_figure({name: series[1:3] for name, series in counts.items()}, [2, 4, 8], "px", log_x=True)
    for nothing in ({}, {"a": [0, 0]}):
        assert "no data" in binned_figure(nothing, [0, 1, 2], "px")


def test_a_gallery_says_what_each_picture_is() -> None:
    page = Page("Report", "")
    jpeg = to_jpeg(np.zeros((8, 8, 3), dtype=np.uint8))
    page.gallery([(jpeg, HOSTILE), (jpeg, "second")], "Both")
    document = Document(page.html())
    assert [image["alt"] for image in document.named("img")] == [HOSTILE, "second"]
    assert [word for word in document.words if word in (HOSTILE, "second", "Both")] == ["Both", HOSTILE, "second"]
