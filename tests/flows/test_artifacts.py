from typing import Any

import pytest

from flows import artifacts

HOSTILE = "![x](http://127.0.0.1/a.png) [log in](javascript:b) <b>\n# | `c`"
PLAIN = r"\!\[x\]\(http://127.0.0.1/a.png\) \[log in\]\(javascript:b\) \<b\> \# \| \`c\`"


def test_what_others_wrote_is_no_markup_to_the_ui(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    for kind in ("table", "markdown"):
        monkeypatch.setattr(artifacts, f"create_{kind}_artifact", lambda **artifact: made.append(artifact))
    artifacts.table("dataset", [{"source": HOSTILE, "train": 3, "error": 0.5}], HOSTILE)
    artifacts.words("promotion", HOSTILE, HOSTILE)
    assert made == [
        {"key": "dataset", "table": [{"source": PLAIN, "train": 3, "error": 0.5}], "description": PLAIN},
        {"key": "promotion", "markdown": f"**{PLAIN}.** {PLAIN}"},
    ]
