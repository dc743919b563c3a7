"""A trace as one self-contained page: a slider over the passes, the text as it stood, every token's story on hover."""

import html
import json
from typing import Any

from qwen3llada_jax.sampling.config import SamplerConfig

from ..flags import told

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Unmasking</title>
<style>
body { font: 15px/1.7 ui-monospace, monospace; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
.row { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd; border-radius: 6px; padding: .7rem;
       margin: 1rem 0 }
.given { color: #888 } .mask { color: #bbb }
.token { border-radius: 3px; border-bottom: 3px solid transparent }
#bars { display: flex; align-items: flex-end; height: 70px; gap: 1px }
#bars i { flex: 1; min-width: 1px } #bars i.later { opacity: .25 }
input { width: 100% } small { color: #666 }
</style>
<h1>Unmasking</h1>
<p><button id="play">play</button> <span id="at"></span> <small>Color: the pass that wrote a token. The line under it:
how sure the model was, red to green. Hover for more.</small></p>
<input id="pass" type="range" min="0">
<div id="bars" title="tokens written in each pass"></div>
<div id="rows"></div>
<details><summary>settings</summary><pre>SETTINGS</pre></details>
<script>
const rows = DATA;
const passesOf = t => [t.pass || 0, ...(t.before || []).map(b => b.pass)];
const all = rows.flatMap(r => r.tokens.flatMap(passesOf)), last = Math.max(1, ...all);
const hue = p => `hsl(${60 + 220 * (p - 1) / Math.max(1, last - 1)} 70% 82%)`;
const bars = document.getElementById('bars'), slider = document.getElementById('pass');
const count = n => all.filter(p => p === n).length;
const most = Math.max(...Array.from({length: last}, (_, i) => count(i + 1)));
for (let n = 1; n <= last; n++) {
  const bar = bars.appendChild(document.createElement('i'));
  bar.style.height = `${100 * count(n) / most}%`; bar.style.background = hue(n); bar.title = `pass ${n}: ${count(n)}`;
}
const spans = rows.map(row => {
  const box = document.getElementById('rows').appendChild(document.createElement('div'));
  box.className = 'row';
  return row.tokens.map(t => { const s = box.appendChild(document.createElement('span')); return [s, t]; });
}).flat();
const dots = text => '·'.repeat(Math.max(1, [...text].length)) + (text.includes('\\n') ? '\\n' : '');
function standing(t, pass) {
  for (const b of t.before || []) if (b.pass <= pass && pass < b.until) return b;
  return t.pass <= pass ? t : null;
}
function show(pass) {
  for (const [span, t] of spans) {
    if (t.pass === null) { span.className = 'given'; span.textContent = t.token; continue; }
    const now = standing(t, pass);
    span.className = now ? 'token' : 'mask';
    span.textContent = now ? now.token : dots(t.token);
    span.style.background = now ? hue(now.pass) : '';
    span.style.borderBottomColor = now ? `hsl(${120 * now.confidence} 80% 40%)` : '';
    const earlier = (t.before || []).map(b => `; before: ${JSON.stringify(b.token)} from pass ${b.pass} to ${b.until}`);
    const story = now && `${JSON.stringify(now.token)} id ${now.id}, pass ${now.pass}, p = ${now.confidence}`;
    span.title = now ? story + earlier.join('') : '';
  }
  document.getElementById('at').textContent = `pass ${pass} of ${last}`;
  [...bars.children].forEach((bar, i) => bar.className = i < pass ? '' : 'later');
}
slider.max = last; slider.value = last; slider.oninput = () => show(+slider.value); show(last);
let timer = null;
document.getElementById('play').onclick = () => {
  clearInterval(timer);
  if (+slider.value >= last) slider.value = 0;
  timer = setInterval(() => {
    slider.value = +slider.value + 1; show(+slider.value);
    if (+slider.value >= last) clearInterval(timer);
  }, Math.max(40, 6000 / last));
};
</script></html>
"""


def page(rows: list[dict[str, Any]], settings: SamplerConfig) -> str:
    """The page of these rows (of trace.py)."""
    # No text can end the script, or begin a comment.
    data = json.dumps(rows, allow_nan=False).replace("<", "\\u003c")
    lines = "\n".join(f"{name} = {value}" for name, value in told(settings).items())
    return _PAGE.replace("SETTINGS", html.escape(lines)).replace("DATA", data, 1)
