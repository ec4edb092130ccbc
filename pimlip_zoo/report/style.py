"""How the HTML report looks: a system font, one accent, tables without boxes; it prints well."""

from __future__ import annotations

CSS = """
:root { --ink: #1c2733; --quiet: #66727f; --line: #e3e8ed; --accent: #1f5fa8; --paper: #ffffff; --wash: #f6f8fa; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif; }
main { max-width: 1020px; margin: 0 auto; padding: 40px 24px 64px; }
header { margin-bottom: 28px; }
header .kind { color: var(--accent); font-size: 13px; font-weight: 600; letter-spacing: .04em; }
h1 { font-size: 30px; line-height: 1.2; font-weight: 650; margin: 2px 0 6px; letter-spacing: -.01em; }
header p { margin: 0; color: var(--quiet); overflow-wrap: anywhere; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px;
  padding: 22px 26px; margin: 0 0 18px; }
h2 { font-size: 17px; font-weight: 620; margin: 0 0 14px; }
h3 { font-size: 14px; font-weight: 600; margin: 20px 0 6px; color: var(--quiet); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px 22px; margin: 0; }
.facts dt { color: var(--quiet); font-size: 12.5px; }
.facts dd { margin: 1px 0 0; font-size: 16px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; background:
  linear-gradient(to left, var(--paper) 20px, transparent 28px) right / 28px 100% no-repeat local,
  linear-gradient(to left, #1c273322, transparent) right / 16px 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px 6px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
th { color: var(--quiet); font-weight: 500; font-size: 12.5px; vertical-align: bottom; }
th small { display: block; font-weight: 400; }
th small.words { white-space: normal; min-width: 13em; }
th:first-child, td:first-child { text-align: left; padding-right: 24px; white-space: normal;
  min-width: 8em; overflow-wrap: break-word; }
td small { display: block; color: var(--quiet); font-size: 12.5px; white-space: nowrap; }
td.text { text-align: left; white-space: normal; overflow-wrap: break-word; }
th.text { text-align: left; }
td.strong { font-weight: 620; }
figure { margin: 0; display: flex; flex-wrap: wrap; align-items: flex-end; gap: 10px 1%; }
figure img { display: block; height: auto; }
figure.narrow { max-width: 760px; margin: 10px auto 0; }
details { border-top: 1px solid var(--line); padding: 10px 0 2px; margin-top: 10px; }
details:first-of-type { border-top: 0; margin-top: 0; }
summary { cursor: pointer; font-weight: 560; }
summary:hover { color: var(--accent); }
pre { background: var(--wash); border-radius: 6px; padding: 14px 16px; overflow-x: auto;
  font-size: 12.5px; line-height: 1.5;
  font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, "DejaVu Sans Mono", monospace; font-size: .92em; }
.note { color: var(--quiet); font-size: 13.5px; margin: 10px 0 0; }
footer { color: var(--quiet); font-size: 12.5px; margin-top: 26px; }
@media print { body { background: #fff; } main { padding: 0; max-width: none; }
  section { break-inside: avoid; border: 0; padding: 8px 0; } }
@media (max-width: 640px) { main { padding: 24px 12px 40px; } section { padding: 16px; } h1 { font-size: 23px; }
  table, .facts dd { font-size: 14px; } th, td { padding: 7px 12px 7px 0; } th { white-space: normal; }
  th:first-child, td:first-child { position: sticky; left: 0; background: var(--paper); min-width: 5.5em;
    max-width: 11em; padding-right: 12px; }
  figure img { width: 100% !important; } }
"""
