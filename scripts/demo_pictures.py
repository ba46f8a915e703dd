"""Write the recorded report of the demo, and the pictures that README and documentation show of it.

preftune demo --out demo-run
python scripts/demo_pictures.py demo-run       writes docs/_static/demo.html and docs/_static/*.svg (needs Chromium)

The pictures are drawn by the report itself in a headless browser, so they are what a reader sees.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STATIC = ROOT / "docs" / "_static"
WIDTH = 1280  # of the window: the pictures are drawn beside their controls, about 670 px wide
PICTURES = ("frontier", "landscape", "tilt")

#: Returns a drawing as SVG that needs no style sheet: computed values replace classes and variables.
EXPORT = """(name) => {
  const card = document.getElementById(name), svg = card.querySelector('.stage svg'), box = svg.viewBox.baseVal;
  const copy = svg.cloneNode(true), pad = 14;
  const names = ['fill', 'fill-opacity', 'stroke', 'stroke-width', 'stroke-opacity', 'stroke-dasharray',
    'stroke-linejoin', 'paint-order', 'font-size', 'font-weight', 'opacity', 'transform', 'text-anchor'];
  const from = [svg, ...svg.querySelectorAll('*')], to = [copy, ...copy.querySelectorAll('*')];
  from.forEach((e, i) => {
    const style = getComputedStyle(e), out = to[i];
    for (const n of ['class', 'style', 'tabindex', 'role', 'aria-label', 'aria-selected']) out.removeAttribute(n);
    if (e.tagName === 'g' || e.tagName === 'clipPath') {
      if (style.transform !== 'none') out.setAttribute('transform', style.transform);
      return;
    }
    for (const n of names) {
      if (n === 'transform') {
        if (style.transform !== 'none' && !e.hasAttribute('transform')) out.setAttribute(n, style.transform);
      } else if (!['none', 'normal', '1', 'miter'].includes(style[n]) || n === 'fill' || n === 'opacity') {
        if (!n.startsWith('font') && n !== 'text-anchor' || e.tagName === 'text') out.setAttribute(n, style[n]);
      }
    }
    if (style.fill === 'rgba(0, 0, 0, 0)') out.setAttribute('fill', 'none');
  });
  copy.querySelectorAll('[opacity="0"]').forEach((e) => e.remove());
  const card_colour = getComputedStyle(card).backgroundColor;
  const w = box.width + 2 * pad, h = box.height + 2 * pad;
  const title = card.querySelector('h2').textContent + '. ' + card.querySelector('.say').textContent;
  const inner = copy.innerHTML.replace(/&nbsp;/g, '\u00a0');
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="${-pad} ${-pad} ${w} ${h}" width="${w}" height="${h}" `
    + `font-family="-apple-system,'Segoe UI',Roboto,'Helvetica Neue','Noto Sans',Arial,sans-serif" role="img">`
    + `<title>${title.replace(/&/g, '&amp;').replace(/</g, '&lt;')}</title>`
    + `<rect x="${-pad}" y="${-pad}" width="${w}" height="${h}" rx="8" fill="${card_colour}"/>${inner}</svg>\\n`;
}"""


def main() -> int:
    sys.path.insert(0, str(ROOT))
    from tests.browser import Browser, executable

    report = Path(sys.argv[1]) / "report.html"
    STATIC.mkdir(exist_ok=True)
    shutil.copyfile(report, STATIC / "demo.html")
    if executable() is None:
        sys.stderr.write("no Chromium: the pictures were not written. Install it, or set PREFTUNE_BROWSER.\n")
        return 1
    for dark in (False, True):
        with Browser(dark=dark) as browser:
            browser.resize(WIDTH, 900)
            browser.open(report.resolve().as_uri())
            browser.wait_for("document.documentElement.dataset.drawn === 'yes'")
            for name in PICTURES:
                svg = browser.value(f"({EXPORT})({name!r})")
                path = STATIC / f"{name}{'-dark' if dark else ''}.svg"
                path.write_text(svg, encoding="utf-8")
                sys.stdout.write(f"wrote {path.relative_to(ROOT)}: {len(svg):,} bytes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
