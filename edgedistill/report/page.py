"""The page's parts: its style, tables, bars and intervals. Text is HTML at the reader's size at every width."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from typing import Any

# Nothing is loaded, and a browser would refuse to: also what a name or an answer may smuggle in.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light dark; --ink: #1a1f24; --soft: #55606b; --line: #d3dae0; --page: #ffffff; --card: #f4f6f8;
  --c0: #1f66c1; --c1: #b3540b; --c2: #1d7a4b; --c3: #8a3f9b; --c4: #727c87; --bad: #a8201a; --badly: #fdeceb;
  --good: #1d7a4b; --goodly: #eaf6ef;
  --shade: #0004; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaed; --soft: #a5afb9; --line: #3a424b; --page: #14181c;
  --card: #1d2329; --c0: #6aa7f8; --c1: #ec9a55; --c2: #5fc48d; --c3: #cf8fdd; --c4: #8d97a2; --bad: #ff9d94;
  --badly: #3a1d1c; --good: #5fc48d; --goodly: #17301f; --shade: #fff6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; } h4 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
p { margin: .3rem 0 .8rem; } .soft { color: var(--soft); font-size: .9rem; }
article { border-top: 3px solid var(--line); margin-top: 3rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.tile b { display: block; font-size: 1.35rem; } .tile span { color: var(--soft); font-size: .85rem; }
.note { border-left: 4px solid var(--good); background: var(--goodly); padding: .6rem .9rem; margin: 1rem 0; }
.bad { border-color: var(--bad); background: var(--badly); } .bad b { color: var(--bad); }
.scroll { overflow-x: auto; margin: .8rem 0;  /* a shade at the right while there is more to scroll to */
  background: linear-gradient(to left, var(--page) 40%, transparent) right / 2rem 100% no-repeat local,
    linear-gradient(to left, var(--shade), transparent) right / .7rem 100% no-repeat scroll; }
.scroll:focus-visible { outline: 2px solid var(--c0); }
table { border-collapse: collapse; font-size: .9rem; min-width: 100%; overflow-wrap: normal; }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; white-space: normal; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
tr > :first-child { position: sticky; left: 0; background: var(--page); max-width: 9.5rem; white-space: normal; }
@media (min-width: 44rem) { tr > :first-child { max-width: none; white-space: nowrap; } }
tr.chosen td { font-weight: 600; }
figure { margin: 1rem 0; } figcaption { color: var(--soft); font-size: .85rem; margin-bottom: .4rem; }
.row { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; font-size: .92rem; margin-top: .55rem; }
.row span:last-child { font-variant-numeric: tabular-nums; color: var(--soft); margin-left: auto; }
.bar { display: flex; height: .8rem; background: var(--card); border-radius: 2px; overflow: hidden; }
.bar i { background: var(--c); } .cut { mask-image: linear-gradient(90deg, #000 88%, #0000 89% 90%, #000 91% 92%, #0000 93% 94%,
  #000 95% 96%, #0000 97%); }
.track { position: relative; height: 1.1rem; border-bottom: 1px solid var(--line); }
.track i { position: absolute; top: .45rem; height: .22rem; border-radius: .11rem; background: var(--c); opacity: .55; }
.track b { position: absolute; top: .17rem; width: .78rem; height: .78rem; margin-left: -.39rem; border-radius: 50%;
  background: var(--c); } .scale { display: flex; justify-content: space-between; font-size: .8rem; color: var(--soft); }
.key { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .85rem; } .key i { display: inline-block; width: .8rem;
  height: .8rem; border-radius: 2px; background: var(--c); margin-right: .4rem; vertical-align: -.05rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0 1.5rem; }
svg { display: block; overflow: visible; height: 15rem; width: calc(100% - 4rem); margin: 1.9rem 1.2rem 2.8rem 2.8rem; }
svg text { font-size: 12.5px; fill: var(--soft); }
svg .mark { fill: var(--ink); font-weight: 600; paint-order: stroke; stroke: var(--page); stroke-width: 3px; }
svg .grid { stroke: var(--line); } svg .line { stroke: var(--c); stroke-width: 2.2; stroke-linecap: round; fill: none; }
svg .dot { fill: var(--c); } svg .bubble { fill: var(--c); fill-opacity: .22; stroke: var(--c); stroke-width: 1.5; }
svg .chosen { stroke-width: 3.5; } svg .front { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .whisker { stroke: var(--c); stroke-opacity: .6; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; font-size: .82rem;
  white-space: pre-wrap; } pre span { display: inline-block; }
summary { cursor: pointer; font-size: .9rem; color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .92rem; } dt { color: var(--soft); }
dd { margin: 0; }
""" + "".join(f".c{i} {{ --c: var(--c{i}); }}" for i in range(5))


@dataclass(frozen=True)
class Section:
    """A heading and the HTML below it; `parts` are one level deeper."""

    title: str
    body: str
    parts: tuple[Section, ...] = ()

    def html(self, level: int) -> str:
        """The section with its heading as `<h{level}>`."""
        return f"<h{level}>{e(self.title)}</h{level}>{self.body}" + "".join(part.html(level + 1) for part in self.parts)


def document(title: str, body: str) -> str:
    """The whole file."""
    return (f"<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{e(title)}</title>"
            f"<meta http-equiv=\"Content-Security-Policy\" content=\"{e(POLICY)}\">"
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">"
            f"<style>{STYLE}</style></head><body>{body}</body></html>\n")


def e(text: Any) -> str:
    """Escaped for text and attributes."""
    return html.escape(str(text), quote=True)


def p(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f"<p{f' class={kind}' if kind else ''}>{e(text)}</p>"


def note(lead: str, text: str, bad: bool = False) -> str:
    """A paragraph that stands out."""
    return f"<p class=\"note{' bad' if bad else ''}\"><b>{e(lead)}</b> {e(text)}</p>"


def tiles(values: list[tuple[str, str]]) -> str:
    """(number, what it is) side by side."""
    return "<div class=\"tiles\">" + "".join(
        f"<div class=\"tile\"><b>{e(value)}</b><span>{e(label)}</span></div>" for value, label in values) + "</div>"


def command(*lines: str) -> str:
    """The shell lines that reproduce what stands above; broken between words only."""
    return "<pre>" + "\n".join(" ".join(f"<span>{e(word)}</span>" for word in line.split(" ")) for line in lines) + "</pre>"


def table(label: str, columns: dict[str, list[Any]], chosen: int | None = None) -> str:
    """Columns by title; numbers stand right, columns without any value are left out. `chosen` is a row that stands out."""
    shown = {title: values for title, values in columns.items() if any(v not in (None, "") for v in values)}
    right = {title for title, values in shown.items() if all(v in (None, "") or re.match(r"[-+]?\d", str(v)) for v in values)}

    def cells(tag: str, values: dict[str, Any]) -> str:
        return "".join(f"<{tag}{' class=n' if title in right else ''}>{e('' if value is None else value)}</{tag}>"
                       for title, value in values.items())

    rows = (dict(zip(shown, row, strict=True)) for row in zip(*shown.values(), strict=True))
    body = "".join(f"<tr{' class=chosen' if i == chosen else ''}>{cells('td', row)}</tr>" for i, row in enumerate(rows))
    return (f"<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"{e(label)}\"><table><tr>"
            f"{cells('th', {title: title for title in shown})}</tr>{body}</table></div>")


def key(names: list[str], colours: list[int] | None = None) -> str:
    """What the colours mean."""
    return "<div class=\"key\">" + "".join(
        f"<span><i class=\"c{colour}\"></i>{e(name)}</span>"
        for name, colour in zip(names, colours or range(len(names)), strict=True)) + "</div>"


def bars(caption: str, rows: list[tuple[str, str, list[tuple[int, float]]]], legend: str = "", longest: float = 0) -> str:
    """Stacked bars on one scale: (label, what is written at its right, [(colour, length)]). The texts say it all.

    A bar over `longest` (0: none is) is cut there, with an end that shows it.
    """
    longest = longest or max((sum(length for _, length in parts) for *_, parts in rows), default=0) or 1
    drawn = "".join(
        f"<div class=\"row\"><span>{e(label)}</span><span>{e(value)}</span></div>"
        f"<div class=\"bar{' cut' if sum(length for _, length in parts) > longest else ''}\" aria-hidden=\"true\">"
        + "".join(f"<i class=\"c{colour}\" style=\"width:{min(100, 100 * length / longest):.2f}%\"></i>"
                  for colour, length in parts if length)
        + "</div>" for label, value, parts in rows)
    return f"<figure><figcaption>{e(caption)}</figcaption>{legend}{drawn}</figure>"


def intervals(caption: str, rows: list[tuple[str, int, float, list[float]]]) -> str:
    """Shares with their 95 % intervals on a scale of 0 to 100 %: (label, colour, share, [low, high])."""
    drawn = "".join(
        f"<div class=\"row\"><span>{e(label)}</span><span>{share_words(share, ci95)}</span></div>"
        f"<div class=\"track c{colour}\" aria-hidden=\"true\"><i style=\"left:{100 * ci95[0]:.2f}%;"
        f"width:{100 * (ci95[1] - ci95[0]):.2f}%\"></i><b style=\"left:{100 * share:.2f}%\"></b></div>"
        for label, colour, share, ci95 in rows)
    return (f"<figure><figcaption>{e(caption)}</figcaption>{drawn}<div class=\"scale\" aria-hidden=\"true\"><span>0 %</span>"
            "<span>25</span><span>50</span><span>75</span><span>100 %</span></div></figure>")


def percent(share: float) -> str:
    """0.625 as 62.5 %."""
    return f"{100 * share:.1f} %"


def share_words(share: float, ci95: list[float]) -> str:
    """A share and its interval."""
    return f"{percent(share)} ({100 * ci95[0]:.1f} to {100 * ci95[1]:.1f})"


def points(test: dict[str, Any]) -> str:
    """A paired test's {difference, ci95, p} in words."""
    low, high = test["ci95"]
    return f"{100 * test['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f}), p = {test['p']:.2g}"


def number(value: float | None) -> str | None:
    """Three significant digits, whole numbers from 100 up."""
    if value is None:
        return None
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def plural(count: int, word: str) -> str:
    """1 thread, 2 threads."""
    return f"{count} {word}{'' if count == 1 else 's'}"
