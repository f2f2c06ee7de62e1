"""What the tests of every page ask of a browser: sizes, colors, what runs out of the window, what cannot be read."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SIZES = {"phone": (360, 740), "desktop": (1280, 900)}
SCHEMES = ("light", "dark")

OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 1 && box.right > innerWidth + 0.5 && !e.closest('.heard');
}).map(e => e.tagName + '.' + e.className + ' ' + e.textContent.trim().slice(0, 40))
"""

# WCAG 2.2, contrast ratio (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio), of every text that is seen, against the
# colors of all its ancestors laid upon each other.
CONTRASTS = """
(() => {
  const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
  const pen = canvas.getContext('2d', {willReadFrequently: true});
  const cache = {};
  const rgba = color => cache[color] ??= (() => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = color; pen.fillRect(0, 0, 1, 1);
    const d = pen.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255];
  })();
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
  const light = c => {
    const [r, g, b] = c.map(v => (v /= 255, v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const under = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((ground, layer) => over(layer, ground), [255, 255, 255]);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), e = walker.currentNode.parentElement;
    if (!text || !e.checkVisibility() || e.closest('.heard')) continue;
    const style = getComputedStyle(e), ground = under(e);
    const ink = over(rgba(e instanceof SVGElement ? style.fill : style.color), ground);
    const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
    const place = e.tagName + '.' + (e.className.baseVal ?? e.className);
    found.push([(high + 0.05) / (low + 0.05), text.slice(0, 60), place]);
  }
  return found;
})()
"""


@contextlib.contextmanager
def opened(chromium: Any, path: Path, size: str | tuple[int, int] = "desktop", scheme: str = "light") -> Iterator[Any]:
    """A page of its own; whatever it complains of or asks for beyond its file fails the test."""
    width, height = SIZES[size] if isinstance(size, str) else size
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: message.type in ("error", "warning") and wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or wrong.append(asked.url))
    page.on("requestfailed", lambda asked: wrong.append(f"failed: {asked.url[:100]}"))
    page.goto(path.as_uri(), wait_until="load")
    yield page
    context.close()
    assert wrong == []


def open_all(page: Any) -> None:
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
