"""The figures in a real browser: nothing is loaded, every control changes its figure, and the keyboard reaches all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.browser import Browser, executable
from tests.unit.report.cards import all_cards, loaded, write_pairs

from preftune.report.figures import pair_cards
from preftune.report.page import Card, Folded, Number, Page, Part, Step, Table, write_page

pytestmark = pytest.mark.skipif(executable() is None, reason="no Chromium: set PREFTUNE_BROWSER, or install one")

EVIL = "</script><img src=x onerror=\"document.title='hacked'\"> \u202eright to left\u202c \U0001f600 " + "long " * 300
AXE = os.environ.get("PREFTUNE_AXE", "")


def page_of(parts: list[Part]) -> Page:
    step = Step("preftune chat runs/dpo/final", "Read answers.")
    extra = [Table("Table", ["a", "b"], [["1", "2"]]), Folded("Config", code="beta: 0.1")]
    return Page(
        "test", "81 % of the pairs.", "runs/dpo", ["A warning."], [Number("81 %", "x")] * 3, [step], [*parts, *extra]
    )


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> list[Part]:
    return all_cards(tmp_path_factory.mktemp("cards"))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, cards: list[Part]) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(path, page_of(cards))
    return path


@pytest.fixture(scope="module")
def browser(path: Path) -> Iterator[Browser]:
    with Browser() as opened:
        opened.resize(1280, 900)
        show(opened, path)
        yield opened


def show(browser: Browser, path: Path) -> None:
    browser.events.clear()
    browser.open("about:blank")
    browser.open(path.as_uri())
    browser.wait_for("document.documentElement.dataset.drawn === 'yes'")


def test_nothing_is_loaded_and_nothing_fails(browser: Browser, path: Path) -> None:
    show(browser, path)
    assert [url for url in browser.requested() if url not in (path.as_uri(), "about:blank")] == []
    assert browser.problems() == []


def test_the_script_writes_the_sentence_that_python_wrote(browser: Browser, cards: list[Part], path: Path) -> None:
    show(browser, path)
    for card in cards:
        assert isinstance(card, Card)
        assert browser.value(f"document.querySelector('#{card.name} .say').textContent") == card.sentence, card.name


@pytest.mark.parametrize("width", [390, 768, 1280, 1600])
def test_the_page_fits_every_width_and_no_text_of_a_drawing_overlaps(browser: Browser, path: Path, width: int) -> None:
    browser.resize(width, 900)
    show(browser, path)
    sizes = browser.value("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert sizes[0] <= sizes[1]
    outside = browser.value(
        "[...document.querySelectorAll('.stage svg text')].filter((t) => { const b = t.getBoundingClientRect();"
        " return b.width && (b.left < -1 || b.right > document.documentElement.clientWidth + 1); })"
        ".map((t) => t.closest('.fig').id + ': ' + t.textContent)"
    )
    assert outside == []
    overlapping = browser.value("""[...document.querySelectorAll('.stage svg')].flatMap((svg) => {
      const upright = [...svg.querySelectorAll('text:not([transform]):not(.on)')];
      const texts = upright.map((t) => [t, t.getBoundingClientRect()]).filter(([t, b]) => b.width);
      return texts.flatMap(([t, a], i) => texts.slice(i + 1).filter(([u, b]) =>
        Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 5)
        .map(([u]) => svg.closest('.fig').id + ': ' + t.textContent + ' | ' + u.textContent));
    })""")
    assert overlapping == []
    browser.resize(1280, 900)


def test_every_slider_changes_its_figure_and_back(browser: Browser, path: Path) -> None:
    browser.resize(1280, 900)
    show(browser, path)
    ids = browser.value("[...document.querySelectorAll('input[type=range]')].map((i) => i.id)")
    assert len(ids) > 12
    for name in ids:
        before, moved, after = browser.value(f"""(() => {{
          const i = document.getElementById({json.dumps(name)}), card = i.closest('.fig'), old = i.value;
          const marks = () => [...card.querySelectorAll('svg, .say, .steps, .note')];
          const drawing = () => marks().map((e) => e.outerHTML).join('');
          const changed = new Event('input', {{ bubbles: true }});
          const set = (v) => {{ i.value = v; i.dispatchEvent(changed); return drawing(); }};
          set(old);
          const before = drawing(), moved = set(+i.min + 0.31 * (i.max - i.min));
          return [before, moved, set(old)];
        }})()""")
        assert before != moved, name
        assert before == after, name


def test_the_tilt_prints_the_numbers_of_the_closed_form(browser: Browser, cards: list[Part], path: Path) -> None:
    show(browser, path)
    card = next(c for c in cards if c.name == "tilt")
    assert isinstance(card, Card)
    for exact in card.data["exact"]:
        place = (np.log(exact["beta"]) - np.log(10)) / (np.log(0.05) - np.log(10))
        cells, note = browser.value(f"""(() => {{
          const i = document.getElementById('tilt-beta');
          i.step = 'any'; i.value = {float(place)!r}; i.dispatchEvent(new Event('input'));
          const rows = [...document.querySelectorAll('#tilt table.num tbody tr')];
          return [[...rows[1].querySelectorAll('td')].map((td) => td.textContent),
                  document.querySelector('#tilt .math p').textContent];
        }})()""")
        assert [float(cell.replace("\u2212", "-")) for cell in cells] == pytest.approx(
            [exact["reward"], exact["kl"]], abs=0.000501
        )
        printed = re.match(r"Z\(x\) = (\S+);", note)
        assert printed
        assert float(printed[1]) == pytest.approx(exact["z"], rel=5.1e-4)


def test_line_six_by_hand_is_the_loss_of_the_pair(browser: Browser, cards: list[Part], path: Path) -> None:
    show(browser, path)
    card = next(c for c in cards if c.name == "by_hand")
    assert isinstance(card, Card)
    example = card.data["examples"][0]
    h = (example["policy"][0] - example["reference"][0]) - (example["policy"][1] - example["reference"][1])
    p = example["label"]
    loss = p * np.logaddexp(0, -0.1 * h) + (1 - p) * np.logaddexp(0, 0.1 * h)
    assert browser.value("document.querySelector('#by_hand .steps li:nth-child(6) b').textContent") == f"{loss:.4f}"


def test_squares_of_the_landscape_are_the_pairs_that_lost_on_both_sides(browser: Browser, path: Path) -> None:
    show(browser, path)
    drawn = browser.value(
        "[...document.querySelectorAll('#landscape .pt > path')]"
        ".filter((p) => p.getAttribute('d').includes('4.2V')).length"
    )
    labels = browser.value("[...document.querySelectorAll('#landscape .pt')].map((g) => g.getAttribute('aria-label'))")
    assert drawn == sum("both less likely" in label for label in labels)
    assert 0 < drawn < len(labels) == 60


def test_a_chosen_step_moves_all_figures_and_is_in_the_address(browser: Browser, path: Path) -> None:
    show(browser, path)
    browser.value(
        "(() => { const i = document.getElementById('gradient-step'); i.value = 2;"
        " i.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )
    for name in ("landscape", "shift", "bradley_terry"):
        assert browser.value(f"document.getElementById('{name}-step').getAttribute('aria-valuetext')") == "10 of 40"
    assert browser.value("location.hash") == "#step=10"


def test_the_keyboard_reaches_every_control_and_walks_the_marks(browser: Browser, path: Path) -> None:
    show(browser, path)
    for selector, key in (
        ("#frontier .pt", "ArrowRight"),
        ("#landscape .pt", "ArrowDown"),
        ("#tokens .tok[role]", "ArrowRight"),
    ):
        browser.value(f"document.querySelector('{selector}[tabindex=\"0\"]').focus()")
        before = browser.value("document.activeElement.outerHTML")
        browser.press(key)
        assert browser.value("document.activeElement.outerHTML") != before, selector
        assert browser.value(f"document.activeElement.matches('{selector}')"), selector
    unnamed = browser.value(
        "[...document.querySelectorAll('button, input, select, [role=option], [role=listbox], svg[role]')]"
        ".filter((e) =>"
        " !(e.getAttribute('aria-label') || e.textContent.trim() || (e.labels && e.labels.length)))"
        ".map((e) => e.outerHTML.slice(0, 120))"
    )
    assert unnamed == []
    unreachable = browser.value(
        "[...document.querySelectorAll('button, input, select')].filter((e) => e.tabIndex < 0 && !e.disabled).length"
    )
    assert unreachable == 0


def test_marked_pairs_become_a_drop_list(browser: Browser, path: Path) -> None:
    show(browser, path)
    browser.value("window.saved = null; URL.createObjectURL = (blob) => { window.saved = blob; return 'blob:x'; };")
    browser.value("[...document.querySelectorAll('#pairs input[type=checkbox]')].slice(0, 2).forEach((i) => i.click())")
    origins = browser.value(
        "[...document.querySelectorAll('#pairs tbody td[title]')].slice(0, 2).map((td) => td.title)"
    )
    browser.value(
        "[...document.querySelectorAll('#pairs button')].find((b) => b.textContent === 'Save drop list').click()"
    )
    assert browser.value("window.saved.text()").splitlines() == origins


def test_hostile_text_neither_runs_nor_breaks_the_layout(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "evil.html"
    one = page_of(all_cards(tmp_path, EVIL))
    path = "/" + "folder_" * 40  # has no place to break a line
    texts = [(path, path)]
    parts = [*one.parts, Folded(path, path, texts, open=True), Table(path, (path,), [(path,)], path)]
    numbers = [Number(path, path)] * 3
    write_page(page, replace(one, verdict=path, about=path, warnings=[path], numbers=numbers, parts=parts))
    for width in (390, 1280):
        browser.resize(width, 900)
        show(browser, page)
        assert browser.problems() == []
        assert browser.value("document.title") == "test"
        assert browser.value("document.querySelectorAll('img').length") == 0
        assert browser.value("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    browser.resize(1280, 900)


@pytest.mark.parametrize(
    ("loss", "changes"),
    [
        ({"name": "sigmoid", "beta": 0.1}, {"split": "training"}), ({"name": "ipo", "beta": 0.1}, {}),
        ({"name": "hinge", "beta": 0.1}, {}), ({"name": "dpop", "beta": 0.1}, {}), ({"name": "aot", "beta": 0.1}, {}),
        ({"name": "simpo", "beta": 2.0}, {"reference": None}), ([{"name": "sigmoid"}, {"name": "nll"}], {}),
        (None, {"kind": "reward", "reference": None}),
    ],
)  # fmt: skip
def test_few_pairs_and_all_kinds_of_losses_are_drawn_or_explained(
    browser: Browser, tmp_path: Path, loss: Any, changes: dict[str, Any]
) -> None:
    run = loaded(write_pairs(tmp_path, 3, **changes), loss)
    data = pair_cards.pair_data(run)
    parts = [
        pair_cards.landscape(run, data),
        pair_cards.gradient(run, data),
        pair_cards.by_hand(run),
        pair_cards.pairs(run),
    ]
    write_page(tmp_path / "page.html", page_of(parts))
    show(browser, tmp_path / "page.html")
    assert browser.problems() == []
    assert "NaN" not in browser.value("document.body.innerText")
    for part in parts:
        if isinstance(part, Card):
            assert browser.value(f"document.querySelector('#{part.name} .say').textContent") == part.sentence


@pytest.mark.skipif(not AXE, reason="set PREFTUNE_AXE to axe.min.js of axe-core")
@pytest.mark.parametrize("dark", [False, True])
def test_axe_reports_no_violation(path: Path, dark: bool) -> None:
    with Browser(dark=dark) as browser:
        browser.resize(1280, 900)
        show(browser, path)
        browser.value(Path(AXE).read_text() + "\n;0")
        violations = browser.value(
            "axe.run({ resultTypes: ['violations'] }).then((r) => r.violations.map((v) =>"
            " v.impact + ' ' + v.id + ': ' + v.nodes[0].html.slice(0, 160) + ' ' + v.nodes[0].failureSummary))"
        )
        assert violations == []


def test_the_shade_of_a_token_grows_with_its_reward(browser: Browser, path: Path) -> None:
    show(browser, path)
    shades = browser.value(
        "[...document.querySelectorAll('#tokens .tok[role]')].map((t) =>"
        " [t.textContent.trim(), t.className.split(' ')[1], parseFloat(t.style.getPropertyValue('--a'))])"
    )
    by_text = {text: (direction, alpha) for text, direction, alpha in shades}
    assert by_text["good"][0] == "up"
    assert by_text["bad"] == ("down", 75)
    assert by_text["good"][1] == pytest.approx(75 * 0.2 / 0.3, abs=1)
