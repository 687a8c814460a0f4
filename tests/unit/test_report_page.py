"""The report says everything on one page that fetches nothing, and shows hostile names as text."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from tasks._plots import stage_timings
from tasks._report import (
    MAX_PAGE_BYTES,
    ColumnRow,
    Compression,
    ContenderRow,
    DataFacts,
    MetricRow,
    Picture,
    ReportPage,
    SampleRow,
    SliceRow,
    StageRow,
    VariantRow,
    markdown_summary,
    render,
)

HOSTILE = "<img src=http://evil.example/x onerror=alert(1)>\"'&|`*{{ 7*7 }}"


def _page(name: str = "name") -> ReportPage:
    """Return a page with something in every section, `name` in every text."""
    return ReportPage(
        title=f"{name} title",
        decision="PROMOTE",
        reasons=(f"{name} reason one", f"{name} reason two"),
        version="v13",
        champion_version="v12",
        created="2025-11-21 04:36 UTC",
        run_id=f"{name} run",
        mlflow=f"{name} mlflow",
        data=DataFacts(1234567, 19, 61, 1, 412_000_000, f"{name} fingerprint", f"{name} target", f"{name} time"),
        columns=(ColumnRow(f"{name} column", "numeric", f"{name} why", 0.25, 14120, f"{name} min", f"{name} max"),),
        schema_changes=(f"{name} change",),
        metrics=(
            MetricRow("auc", 0.94121, 0.9389, 0.00231, 0.0017, 0.0029),
            MetricRow("brier", 0.071, 0.0698, -0.0012, -0.0016, -0.0008),
            MetricRow("log_loss", 0.2211, 0.2209, -0.0002, -0.0011, 0.0007),
        ),
        confidence=0.95,
        pictures=(Picture(f"{name} heading", stage_timings([(name, 1.0, False)]), f"{name} caption"),),
        slices=(SliceRow(f"{name} slice", f"{name} value", 1200, 0.31, 0.28, -0.03, True),),
        slice_metric="log_loss",
        importance=((f"{name} feature", 0.5),),
        split=f"{name} split",
        sample=f"{name} sample",
        sample_rows=(SampleRow(f"{name} tested", 0.0123, 0.456, 0.0078, 0.912),),
        plan=f"{name} plan",
        fit=f"{name} fit",
        contenders=(
            ContenderRow(f"{name} trees", "loss", 0.27, 0.012, 0.004, 400_000, 3.2, None, None, 3 * 10**8, None, False),
            ContenderRow(f"{name} net", "loss", 0.26, 0.0, 0.0, 800_000, 74.0, 4552.0, 0.01, 11 * 10**8, None, True),
        ),
        compression=Compression(
            variants=(
                VariantRow(
                    *(f"{name} whole", "", 2_050_000, 1.0, 4_100_000, 99.0, 140.0, 1.0, 1e5, 1.0, 0.2304, 0.0),
                    fate="passed over",
                ),
                VariantRow(
                    *(f"{name} variant", f"{name} technique", 102_500, 20.0, 205_000, 9.9, 14.0, 10.0, 1.25e6, 12.5),
                    *(0.2308, 0.0017, "shipped"),
                ),
                VariantRow(
                    *(f"{name} other", f"{name} technique", 50_000, 41.0, 90_000, 1234.0, 1500.0, 0.08, 9e4, 0.9),
                    *(0.25, None, "refused", f"{name} refusal"),
                ),
            ),
            failures=((f"{name} failing", f"{name} failure"),),
            loss_name="logloss",
            sentence=f"{name} choice",
            certificate=(f"{name} certificate",),
            is_certified=True,
            machine=f"{name} machine",
            seconds=75.2,
        ),
        stages=(StageRow("encode", 88.1, True), StageRow(f"{name} stage", 140.2, False)),
        configuration=f'{{"{name}": "configuration"}}',
        environment={f"{name} package": f"{name} release"},
    )


NOTHING = Compression((), (), "loss", "Shipped as trained.", (), False, "", 0.0)


class _Reader(HTMLParser):
    """Collect the page's tags with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.text += f"{data} "


def test_every_section_is_on_the_page() -> None:
    """Each text and number of the page is shown, the verdict first."""
    text = _Reader(render(_page())).text
    words = "title,reason one,reason two,run,mlflow,fingerprint,target,time,column,why,min,max,change,heading,caption,"
    words += "slice,value,feature,split,sample,tested,plan,fit,whole,variant,technique,other,refusal,"
    words += "failing,failure,choice,certificate,machine,stage,package,release"
    shown = [f"name {word}" for word in words.split(",")] + [
        *("PROMOTE", "Challenger v13", "Champion v12", "0.94121", "[+0.0017, +0.0029]", "▲ better", "▼ worse"),
        *("≈ within noise", "95% interval", "1,234,567", "61, of them 1 new", "412 MB", "25.0%", "14,120", "▼ harmed"),
        *(
            "✓ shipped",
            "2.05 MB",
            "20.0×",
            "9.9 µs / 14 µs",
            "1.23 ms / 1.5 ms",
            "+0.17%",
            "1 min 28 s",
            "cached",
            "0.0123 0.456 0.0078 0.912",
            "In all 3 min 48 s",
            '{"name": "configuration"}',
        ),
    ]

    assert [] == [words for words in shown if words not in text]
    assert text.index("PROMOTE name title v13") < text.index("Metrics on the holdout")


def test_the_threshold_is_explained_where_there_is_one() -> None:
    """The page of a binary model says at which threshold it is accurate; that of another says nothing of it."""
    found = [
        "at the threshold" in _Reader(render(replace(_page(), metrics=(MetricRow(name, 0.3),)))).text
        for name in ("threshold", "rmse")
    ]

    assert [True, False] == found


def test_links_lead_to_sections() -> None:
    """The list of sections names those that exist, and an empty one is in neither place."""
    for page in (
        _page(),
        replace(
            _page(), slices=(), metrics=(), pictures=(), compression=NOTHING, stages=(), importance=(), sample_rows=()
        ),
    ):
        tags = _Reader(render(page)).tags
        links = [attrs["href"] for tag, attrs in tags if tag == "a"]

        assert [f"#{attrs['id']}" for tag, attrs in tags if tag == "h2"] == links


def test_variants_are_side_by_side() -> None:
    """Each variant is a row with what it takes beside the model as trained; the shipped one is marked."""
    html = render(_page())
    table = html.partition('id="compression"')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.split("</tr>")[:-1]]

    assert [
        [
            *("1&ensp;name whole", "", "", "2.05 MB", "1.0×", "4.1 MB", "99 µs / 140 µs", "1.0×"),
            *("100,000", "1.0×", "0.2304", "+0.00%"),
        ],
        [
            *("2&ensp;name variant", "name technique", "✓ shipped", "102 kB", "20.0×", "205 kB", "9.9 µs / 14 µs"),
            *("10.0×", "1,250,000", "12.5×", "0.2308", "+0.17%"),
        ],
        [
            *("3&ensp;name other", "name technique", "✗ refused", "50 kB", "41.0×", "90 kB", "1.23 ms / 1.5 ms"),
            *("0.08×", "90,000", "0.90×", "0.25", "–"),
        ],
        ["name refusal"],
    ] == rows
    assert 1 == table.count('class="chosen"')
    assert 'id="compression"' not in render(replace(_page(), compression=NOTHING))


def test_a_picture_is_in_its_section() -> None:
    """What was drawn of the variants is beside their table, and a page of such pictures alone has no other section."""
    picture = replace(_page().pictures[0], heading="drawn frontier", section="compression")
    html = render(replace(_page(), pictures=(picture,)))

    assert html.index('id="compression"') < html.index("drawn frontier") < html.index('id="stages"')
    assert 'id="pictures"' not in html


def test_families_are_side_by_side() -> None:
    """Each family is a row with its loss, how far it is behind, and what it took; the chosen one is marked."""
    html = render(_page())
    table = html.partition('id="families"')[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in table.partition("<tbody>")[2].split("</tr>")[:-1]]

    assert [
        ["name trees", "0.27", "0.012 ± 0.004", "400 kB", "3 s", "–", "–", "300 MB", ""],
        ["name net", "0.26", "–", "800 kB", "74 s", "4,552", "1.0%", "1.1 GB", "✓ chosen"],
    ] == rows
    assert 'id="families"' not in render(replace(_page(), contenders=()))


def test_hostile_names_are_text() -> None:
    """Names with markup, quotes and template code come out as they went in, and make no tag of their own."""
    clean, hostile = _Reader(render(_page())), _Reader(render(_page(HOSTILE)))

    assert [tag for tag, _ in clean.tags] == [tag for tag, _ in hostile.tags]
    assert {frozenset(attrs) for _, attrs in clean.tags} == {frozenset(attrs) for _, attrs in hostile.tags}
    assert f"{HOSTILE} reason one" in hostile.text


def test_the_page_fetches_nothing() -> None:
    """No script, no picture or style from elsewhere, and a policy that forbids them."""
    html = render(_page())
    reader = _Reader(html)
    policy = "default-src 'none'; style-src 'unsafe-inline'"

    assert {"script", "img", "link", "iframe", "object", "embed"}.isdisjoint(tag for tag, _ in reader.tags)
    targets = [attrs[key] for _, attrs in reader.tags for key in ("src", "href", "xlink:href", "data") if key in attrs]
    assert all(target and target.startswith("#") for target in targets)
    assert policy in [attrs.get("content") for tag, attrs in reader.tags if tag == "meta"]
    assert not re.search(r"@import|url\((?!#)", html)


def test_names_are_used_once() -> None:
    """No two elements of a page share an id, pictures included."""
    page = replace(
        _page(), pictures=tuple(Picture("p", stage_timings([("a", float(n), False)]), "") for n in range(1, 5))
    )
    ids = [attrs["id"] for _, attrs in _Reader(render(page)).tags if "id" in attrs]

    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("decision", ["PROMOTE", "HOLD", "REJECT"])
def test_without_a_champion_there_is_no_comparison(decision: str) -> None:
    """The first model's page says so, and shows its metrics alone."""
    page = replace(
        _page(),
        decision=decision,  # type: ignore[arg-type]
        champion_version=None,
        metrics=(MetricRow("auc", 0.9), MetricRow("r2", None)),
        slices=(SliceRow("city", "Oslo", 300, 0.3, None, None, False),),
        schema_changes=(),
        data=replace(_page().data, time_range=None),
    )
    text = _Reader(render(page)).text

    assert "The first model: there is no champion yet" in text
    assert "No champion to compare with." in text
    assert not re.search("None|better|worse|neither has trained", text)
    assert "the first model" in markdown_summary(page)


def test_a_page_stays_small() -> None:
    """Thousands of columns, slices and pictures, all with long hostile names, stay below the limit and are counted."""
    page = _page(HOSTILE * 40)
    picture = Picture(HOSTILE * 40, f"<svg>{'<g></g>' * 50_000}</svg>", "p")
    huge = replace(
        page,
        reasons=page.reasons * 500,
        columns=page.columns * 5000,
        schema_changes=page.schema_changes * 5000,
        slices=page.slices * 5000,
        importance=page.importance * 5000,
        compression=replace(
            page.compression, **{name: getattr(page.compression, name) * 500 for name in ("variants", "failures")}
        ),
        metrics=page.metrics * 500,
        pictures=(picture,) * 12,
        configuration='"' * 1_000_000,
        environment={f"{HOSTILE * 40}{number}": HOSTILE * 40 for number in range(900)},
    )
    html = render(huge)

    assert len(html.encode()) < MAX_PAGE_BYTES
    assert "more slices." in html
    assert html.count("Left out: too large for the page.") == 9
    assert len(render(page).encode()) < 100_000


def test_many_columns_are_cut_with_a_count() -> None:
    """A table of 5,000 columns shows the first 300 and says how many follow."""
    columns = tuple(ColumnRow(f"c{number}", "numeric", "", 0.0, None, "", "") for number in range(5000))
    text = _Reader(render(replace(_page(), columns=columns))).text

    assert "c299 " in text and "c300 " not in text
    assert "And 4,700 more columns." in text


def test_the_same_page_gives_the_same_bytes() -> None:
    """Rendering adds neither time nor chance."""
    assert render(_page()) == render(_page())


def test_markdown_summary_is_short_and_whole() -> None:
    """Verdict, reasons, metrics and stages, as Prefect shows them."""
    expected = """\
# PROMOTE: name title v13

against champion v12, 2025-11-21 04:36 UTC, run `name run`

- name reason one
- name reason two

| metric | challenger | champion | improvement | 95% interval | |
| --- | ---: | ---: | ---: | :---: | --- |
| auc | 0.94121 | 0.9389 | +0.00231 | [+0.0017, +0.0029] | ▲ better |
| brier | 0.071 | 0.0698 | −0.0012 | [−0.0016, −0.0008] | ▼ worse |
| log\\_loss | 0.2211 | 0.2209 | −0.0002 | [−0.0011, +0.0007] | ≈ within noise |

| stage | seconds | |
| --- | ---: | --- |
| encode | 88.1 | cached |
| name stage | 140.2 |  |
"""

    assert expected == markdown_summary(_page())


def test_markdown_escapes_names() -> None:
    """A name cannot break a table, open a tag or start markup."""
    page = replace(_page(), stages=(StageRow("a|b\n<i>*_`x", 1.0, False),), title="[x](http://evil.example)")

    assert "| a\\|b &lt;i>\\*\\_\\`x | 1.0 |  |" in markdown_summary(page)
    assert "# PROMOTE: \\[x\\](http://evil.example) v13" in markdown_summary(page)
