"use strict";
(() => {
const byId = id => document.getElementById(id);
const D = JSON.parse(byId("data").textContent);
const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const MISSING = 255, NEAR = 9, SHAPES = 4, SELECT_LIMIT = 200000;
const n = D.n, xy = new Uint16Array(bytes(D.xy).buffer);
const nameOf = k => D.ids ? D.ids[k] : String(k);
const colourings = D.colourings.map(one => ({...one, codes: bytes(one.codes)}));
const plane = byId("plane"), canvas = byId("points"), over = byId("over"), tip = byId("tip");
const paint = canvas.getContext("2d", {alpha: false}), above = over.getContext("2d");
const chosen = new Uint8Array(n);
let nChosen = 0, by = 0, hidden = new Set(), mode = "move", width = 0, height = 0, ratio = 1, image = null, pixels = null;
let view = {x: 0.5, y: 0.5, zoom: 1}, colours = {}, waiting = false, looked = -1;

// ---- colours ----------------------------------------------------------------------------------------------------
const rgb = hex => [1, 3, 5].map(k => parseInt(hex.slice(k, k + 2), 16));
const packed = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
const between = (a, b, t) => a.map((v, k) => Math.round(v + (b[k] - v) * t));
const readColours = () => {
  const css = getComputedStyle(document.documentElement), value = name => css.getPropertyValue(name).trim();
  const ramp = value("--ramp").split(",").map(rgb), levels = [];
  for (let k = 0; k < 255; k++) {
    const at = k / 254 * (ramp.length - 1), low = Math.min(Math.floor(at), ramp.length - 2);
    levels.push(between(ramp[low], ramp[low + 1], at - low));
  }
  const classes = Array.from({length: 8}, (_, k) => rgb(value("--c" + k)));
  const ink = rgb(value("--ink")), paper = rgb(value("--paper")), none = rgb(value("--none"));
  colours = {levels, classes, ink, paper, none, link: value("--link"), grid: value("--grid"), trace: value("--ink")};
};
const tableOf = one => {
  const full = new Uint32Array(256), faded = new Uint32Array(256), list = one.classes ? colours.classes : colours.levels;
  for (let k = 0; k < 256; k++) {
    const colour = k === MISSING ? colours.none : list[Math.min(k, list.length - 1)];
    full[k] = packed(colour);
    faded[k] = packed(between(colours.paper, colour, 0.3));
  }
  return {full, faded};
};

// ---- points -----------------------------------------------------------------------------------------------------
const scale = () => Math.min(width, height) * 0.94 * view.zoom / 65535;
const toScreen = k => {
  const s = scale();
  return [(xy[2 * k] - view.x * 65535) * s + width / 2, height / 2 - (xy[2 * k + 1] - view.y * 65535) * s];
};
const toMap = (sx, sy) => {
  const s = scale() * 65535;
  return [view.x + (sx - width / 2) / s, view.y - (sy - height / 2) / s];
};
const radius = () => {
  const base = n > 20000 ? 1.3 : n > 3000 ? 2 : 3.2;
  return Math.min(base * Math.pow(view.zoom, 0.35), 7) * ratio;
};
const inside = [ // disc, square, diamond, cross
  (x, y, r) => x * x + y * y <= r * r,
  (x, y, r) => Math.max(Math.abs(x), Math.abs(y)) <= r * 0.85,
  (x, y, r) => Math.abs(x) + Math.abs(y) <= r * 1.25,
  (x, y, r) => Math.min(Math.abs(x), Math.abs(y)) <= r * 0.35 && Math.max(Math.abs(x), Math.abs(y)) <= r * 1.15,
];
const spansOf = (shape, r) => {
  const found = [], far = Math.ceil(r * 1.3);
  for (let y = -far; y <= far; y++) {
    let first = null, last = null;
    for (let x = -far; x <= far; x++) if (inside[shape](x, y, r)) { first ??= x; last = x; }
    if (first !== null) found.push(y, first, last);
  }
  return Int16Array.from(found);
};
const resize = () => {
  ratio = Math.min(window.devicePixelRatio || 1, 2);
  width = plane.clientWidth; height = plane.clientHeight;
  for (const one of [canvas, over]) { one.width = Math.round(width * ratio); one.height = Math.round(height * ratio); }
  image = paint.createImageData(canvas.width, canvas.height);
  pixels = new Uint32Array(image.data.buffer);
};
const stamp = (x, y, spans, colour) => {
  const w = canvas.width, h = canvas.height;
  for (let k = 0; k < spans.length; k += 3) {
    const row = y + spans[k];
    if (row < 0 || row >= h) continue;
    const from = Math.max(x + spans[k + 1], 0), to = Math.min(x + spans[k + 2], w - 1);
    for (let at = row * w + from, end = row * w + to; at <= end; at++) pixels[at] = colour;
  }
};
const draw = () => {
  waiting = false;
  const one = colourings[by], codes = one.codes, {full, faded} = tableOf(one), r = radius(), ink = packed(colours.ink);
  const shapes = Array.from({length: SHAPES}, (_, k) => spansOf(k, r)), rings = Array.from({length: SHAPES}, (_, k) => spansOf(k, r + 1.5 * ratio));
  const s = scale() * ratio, x0 = canvas.width / 2 - view.x * 65535 * s, y0 = canvas.height / 2 + view.y * 65535 * s, far = 2 * r + 2;
  pixels.fill(packed(colours.paper));
  for (let pass = 0; pass < 3; pass++) { // points without a value, the others, the chosen ones
    if (pass === 2 && !nChosen) break;
    for (let k = 0; k < n; k++) {
      const code = codes[k];
      if ((pass === 0) !== (code === MISSING && !chosen[k]) && pass < 2) continue;
      if ((pass === 2) !== (chosen[k] === 1)) continue;
      if (hidden.size && hidden.has(code)) continue;
      const x = Math.round(xy[2 * k] * s + x0), y = Math.round(y0 - xy[2 * k + 1] * s);
      if (x < -far || y < -far || x > canvas.width + far || y > canvas.height + far) continue;
      const shape = one.classes && code !== MISSING ? code % SHAPES : 0;
      if (pass === 2) stamp(x, y, rings[shape], ink);
      stamp(x, y, shapes[shape], nChosen && pass < 2 ? faded[code] : full[code]);
    }
  }
  paint.putImageData(image, 0, 0);
};
const soon = () => { if (!waiting) { waiting = true; requestAnimationFrame(draw); } };
const zoomAt = (sx, sy, factor) => {
  const [x, y] = toMap(sx, sy);
  view.zoom = Math.min(Math.max(view.zoom * factor, 0.5), 400);
  const [x2, y2] = toMap(sx, sy);
  view.x += x - x2; view.y += y - y2;
  soon();
};
const pan = (dx, dy) => { const s = scale() * 65535; view.x -= dx / s; view.y += dy / s; soon(); };
const nearest = (sx, sy, reach) => {
  let best = -1, least = reach * reach;
  const s = scale(), codes = colourings[by].codes, x0 = width / 2 - view.x * 65535 * s, y0 = height / 2 + view.y * 65535 * s;
  for (let k = 0; k < n; k++) {
    if (hidden.size && hidden.has(codes[k])) continue;
    const dx = xy[2 * k] * s + x0 - sx, dy = y0 - xy[2 * k + 1] * s - sy, d = dx * dx + dy * dy;
    if (d < least) { least = d; best = k; }
  }
  return best;
};

// ---- a point's words and ECG --------------------------------------------------------------------------------------
const blocks = new Map();
const unpack = which => {
  if (!blocks.has(which)) {
    const stream = new Blob([bytes(D.strokes.blocks[which])]).stream().pipeThrough(new DecompressionStream("deflate"));
    blocks.set(which, new Response(stream).arrayBuffer().then(found => new Uint8Array(found)));
  }
  return blocks.get(which);
};
const strokesOf = async k => {
  const S = D.strokes, size = 12 * S.points, block = await unpack(Math.floor(k / S.per_block));
  const start = (k % S.per_block) * size, found = new Int8Array(size);
  let value = 0;
  for (let i = 0; i < size; i++) { value = (value + block[start + i]) & 255; found[i] = value; }
  return found;
};
const drawEcg = strokes => {
  const S = D.strokes, sheet = byId("ecg"), pen = sheet.getContext("2d"), w = sheet.width, h = sheet.height, row = h / 3;
  const perPoint = w / (10 * S.rate_hz), perUnit = 10 * w / 250 / S.units_per_mv;
  pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--paper"); pen.fillRect(0, 0, w, h);
  pen.strokeStyle = colours.grid; pen.lineWidth = 0.5; pen.beginPath();
  for (let x = 0; x <= w; x += w / 50) { pen.moveTo(x, 0); pen.lineTo(x, h); }
  for (let y = 0; y <= h; y += w / 50) { pen.moveTo(0, y); pen.lineTo(w, y); }
  pen.stroke();
  pen.strokeStyle = pen.fillStyle = colours.trace; pen.lineWidth = 1; pen.font = "10px sans-serif";
  for (const [lead, name, start, line] of S.strips) {
    const x0 = start * S.rate_hz * perPoint, y0 = (line + 0.5) * row;
    pen.fillText(name, x0 + 3, y0 - row / 2 + 11);
    pen.beginPath();
    let down = false;
    for (let i = 0; i < S.points; i++) {
      const value = strokes[lead * S.points + i];
      if (value === S.gap) { down = false; continue; }
      const x = x0 + i * perPoint, y = y0 - value * perUnit;
      if (down) pen.lineTo(x, y); else pen.moveTo(x, y);
      down = true;
    }
    pen.stroke();
  }
  sheet.dataset.record = String(looked);
};
const valueOf = (one, code) => {
  if (code === MISSING) return "no value";
  if (one.classes) return one.classes[code];
  return `${Number((one.low + (one.high - one.low) * code / 254).toPrecision(3))} ${one.unit}`.trim();
};
const titleOf = one => `${one.group}: ${one.name}`;
const look = (k, sx, sy) => {
  if (k === looked) return;
  looked = k;
  tip.hidden = k < 0;
  if (k < 0) return;
  const one = colourings[by], lines = [nameOf(k), `${titleOf(one)}: ${valueOf(one, one.codes[k])}`];
  byId("words").replaceChildren(...lines.map(text => Object.assign(document.createElement("div"), {textContent: text})));
  byId("ecg").hidden = !D.strokes;
  tip.style.left = `${sx > width / 2 ? Math.max(sx - 360, 4) : sx + 16}px`;
  tip.style.top = `${sy > height / 2 ? Math.max(sy - 170, 4) : sy + 16}px`;
  if (D.strokes) strokesOf(k).then(found => { if (looked === k) drawEcg(found); });
};

// ---- choosing -----------------------------------------------------------------------------------------------------
const shown = k => !(hidden.size && hidden.has(colourings[by].codes[k]));
const within = (polygon, x, y) => {
  let odd = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if ((yi > y) !== (yj > y) && x < (xj - xi) * (y - yi) / (yj - yi) + xi) odd = !odd;
  }
  return odd;
};
const choose = test => {
  nChosen = 0;
  for (let k = 0; k < n; k++) { chosen[k] = shown(k) && test(k) ? 1 : 0; nChosen += chosen[k]; }
  const names = [];
  for (let k = 0; k < n && names.length < SELECT_LIMIT; k++) if (chosen[k]) names.push(nameOf(k));
  byId("ids").value = names.join("\n");
  byId("status").textContent = nChosen ? `${nChosen.toLocaleString("en")} of ${n.toLocaleString("en")} records` : "None: draw a lasso around points.";
  for (const id of ["copy", "save", "clear"]) byId(id).disabled = !nChosen;
  soon();
};
const chooseWithin = line => { // screen coordinates
  const xs = line.map(p => p[0]), ys = line.map(p => p[1]);
  const box = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  choose(k => {
    const [x, y] = toScreen(k);
    return x >= box[0] && x <= box[1] && y >= box[2] && y <= box[3] && within(line, x, y);
  });
};
const quoted = text => /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const csv = () => {
  const lines = [D.ids ? "record_id" : "row"];
  for (let k = 0; k < n; k++) if (chosen[k]) lines.push(quoted(nameOf(k)));
  return lines.join("\r\n") + "\r\n";
};
byId("save").onclick = () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
  link.download = "records.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};
byId("copy").onclick = () => {
  const field = byId("ids");
  field.select();
  const done = document.execCommand("copy"); // the clipboard's own interface is closed to pages without a server
  byId("status").textContent = done ? `${nChosen.toLocaleString("en")} copied` : "Not copied: press Ctrl+C";
};
byId("clear").onclick = () => choose(() => false);
byId("visible").onclick = () => choose(k => { const [x, y] = toScreen(k); return x >= 0 && y >= 0 && x <= width && y <= height; });

// ---- hands --------------------------------------------------------------------------------------------------------
const fingers = new Map();
let line = null, spread = 0;
const at = event => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
const spreadOf = () => { const [a, b] = [...fingers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
const drawLine = () => {
  above.setTransform(ratio, 0, 0, ratio, 0, 0); above.clearRect(0, 0, width, height);
  if (!line || line.length < 2) return;
  above.beginPath(); line.forEach(([x, y], k) => k ? above.lineTo(x, y) : above.moveTo(x, y)); above.closePath();
  above.strokeStyle = colours.link; above.lineWidth = 2; above.setLineDash([6, 4]); above.stroke();
};
canvas.addEventListener("pointerdown", event => {
  if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, at(event));
  line = fingers.size === 1 && (mode === "lasso" || event.shiftKey) ? [at(event)] : null;
  if (fingers.size === 2) spread = spreadOf();
  look(-1);
});
canvas.addEventListener("pointermove", event => {
  const here = at(event), before = fingers.get(event.pointerId);
  if (!before) { look(nearest(here[0], here[1], NEAR), here[0], here[1]); return; }
  fingers.set(event.pointerId, here);
  if (fingers.size === 2) {
    const now = spreadOf(), [a, b] = [...fingers.values()];
    if (spread) zoomAt((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, now / spread);
    spread = now;
  } else if (line) { line.push(here); drawLine(); } else pan(here[0] - before[0], here[1] - before[1]);
});
const lift = event => {
  if (!fingers.delete(event.pointerId)) return;
  if (line && event.type === "pointerup" && line.length > 2) chooseWithin(line);
  line = null; spread = 0; drawLine();
};
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
canvas.addEventListener("pointerleave", () => { if (!fingers.size) look(-1); });
canvas.addEventListener("wheel", event => {
  event.preventDefault();
  zoomAt(...at(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)));
}, {passive: false});
const setMode = name => {
  mode = name; plane.classList.toggle("lasso", name === "lasso");
  for (const id of ["move", "lasso"]) byId(id).setAttribute("aria-pressed", String(id === name));
};
const whole = () => { view = {x: 0.5, y: 0.5, zoom: 1}; soon(); };
byId("move").onclick = () => setMode("move");
byId("lasso").onclick = () => setMode("lasso");
byId("closer").onclick = () => zoomAt(width / 2, height / 2, 1.5);
byId("farther").onclick = () => zoomAt(width / 2, height / 2, 1 / 1.5);
byId("whole").onclick = whole;
const nameCentre = () => {
  const k = nearest(width / 2, height / 2, Infinity);
  if (k < 0) return;
  looked = -1; // also when it was named before
  look(k, ...toScreen(k));
  byId("status").textContent = byId("words").innerText.replace(/\n/g, "; ");
};
const KEYS = {
  ArrowLeft: () => pan(width / 10, 0), ArrowRight: () => pan(-width / 10, 0), ArrowUp: () => pan(0, height / 10), ArrowDown: () => pan(0, -height / 10),
  "+": () => zoomAt(width / 2, height / 2, 1.25), "=": () => zoomAt(width / 2, height / 2, 1.25), "-": () => zoomAt(width / 2, height / 2, 0.8),
  "0": whole, Enter: nameCentre, Escape: () => { look(-1); choose(() => false); },
};
canvas.addEventListener("keydown", event => {
  const act = KEYS[event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault(); act();
});

// ---- colour and legend --------------------------------------------------------------------------------------------
const mark = (shape, colour) => {
  const small = Object.assign(document.createElement("canvas"), {width: 32, height: 32}), pen = small.getContext("2d");
  const spans = spansOf(shape, 10);
  pen.fillStyle = `rgb(${colour})`;
  for (let k = 0; k < spans.length; k += 3) pen.fillRect(16 + spans[k + 1], 16 + spans[k], spans[k + 2] - spans[k + 1] + 1, 1);
  return small;
};
const entry = (code, name, count, colour, shape) => {
  const item = document.createElement("li"), button = document.createElement("button");
  button.type = "button"; button.dataset.code = code; button.setAttribute("aria-pressed", String(!hidden.has(code)));
  const number = Object.assign(document.createElement("span"), {className: "count", textContent: count.toLocaleString("en")});
  button.append(mark(shape, colour), Object.assign(document.createElement("span"), {textContent: name}), number);
  button.onclick = () => {
    if (hidden.has(code)) hidden.delete(code); else hidden.add(code);
    button.setAttribute("aria-pressed", String(!hidden.has(code))); soon();
  };
  item.append(button);
  return item;
};
const ramp = one => {
  const item = document.createElement("li"), bar = document.createElement("div"), ends = document.createElement("div");
  bar.className = "ramp"; ends.className = "ends";
  bar.style.background = `linear-gradient(to right, ${[0, 64, 127, 190, 254].map(k => `rgb(${colours.levels[k]})`).join(",")})`;
  ends.append(...[0, 254].map(code => Object.assign(document.createElement("span"), {textContent: valueOf(one, code)})));
  item.append(bar, ends);
  return item;
};
const showLegend = () => {
  const one = colourings[by], items = [];
  if (one.classes) one.classes.forEach((name, k) => items.push(entry(k, name, one.counts[k], colours.classes[k], k % SHAPES)));
  else items.push(ramp(one));
  let without = 0;
  for (const code of one.codes) without += code === MISSING;
  if (without) items.push(entry(MISSING, "no value", without, colours.none, 0));
  byId("legend").replaceChildren(...items);
};
const colourBy = which => { by = which; hidden = new Set(); look(-1); showLegend(); soon(); };
const groups = new Map();
colourings.forEach((one, k) => {
  if (!groups.has(one.group)) groups.set(one.group, Object.assign(document.createElement("optgroup"), {label: one.group}));
  groups.get(one.group).append(new Option(one.name, String(k)));
});
byId("by").append(...groups.values());
byId("by").onchange = event => colourBy(Number(event.target.value));

readColours(); resize(); showLegend(); draw();
new ResizeObserver(() => { if (plane.clientWidth !== width || plane.clientHeight !== height) { resize(); soon(); } }).observe(plane);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); showLegend(); soon(); });
window.ecgMap = {draw, toScreen, csv}; // for tests and for measuring
})();
