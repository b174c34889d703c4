"""What is shown cannot become markup."""

from html.parser import HTMLParser

from megatrain.evaluation.curve import svg
from megatrain.evaluation.page import Section, Table, html_page, markdown

HOSTILE = "<script>alert(1)</script>|\nx"
PARTS = [Section("T", "text", Table(["a", "b"], [[HOSTILE, "1"]]))]


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attributes) -> None:
        self.found.append((tag, dict(attributes)))


def test_a_page_has_no_script_and_asks_for_nothing() -> None:
    tags = Tags()
    tags.feed(html_page(HOSTILE, PARTS, svg({"loss <b>": [(0, 2.0), (10, 1.0)]})))
    names = {tag for tag, _ in tags.found}
    assert {"table", "svg", "polyline"} <= names
    assert not names & {"script", "link", "img", "iframe", "b"}
    assert not any({"src", "href"} & set(attributes) for _, attributes in tags.found)


def test_a_cell_of_markdown_stays_one() -> None:
    (row,) = [line for line in markdown("t", PARTS).splitlines() if "alert" in line]
    assert row == r"| &lt;script&gt;alert(1)&lt;/script&gt;\| x | 1 |"


def test_a_curve_ends_at_its_last_step() -> None:
    drawn = svg({"loss": [(0, 3.0), (5, 2.0), (10, 1.0)]})
    assert 'points="50.0,50.0 400.0,160.0 750.0,270.0"' in drawn
    assert svg({}) == ""
