"use strict";
// The chart: the numbers of the page's JSON in, SVG out. Nothing here decides what dominates what; that came with the numbers.
const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 46, right: 14, top: 12, bottom: 44 };
const FAR = 17; // pixels from a mark from which on a label needs a line to it
const REACH = 18; // pixels about a mark within which a pointer or a finger means it
const RANK = { none: 0, off: 1, near: 2, front: 3 };
const TITLES = { throughput: "throughput, images/s (log) →", latency: "← latency p50, ms per batch (log)" };

function element(name, attributes, parent, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

// 1, 2, 5 within decades, denser where the span is small, sparser where pixels are short.
function logTicks(low, high, pixels) {
  const ratio = high / low;
  const steps = ratio > 12 ? [1, 2, 5] : ratio > 3 ? [1, 1.5, 2, 3, 4, 5, 7] : [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.2, 2.4, 2.6, 2.8, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5];
  const ticks = [];
  let last = -Infinity;
  for (let decade = Math.floor(Math.log10(low)); decade <= Math.log10(high); decade++) {
    for (const step of steps) {
      const value = step * 10 ** decade;
      const at = (Math.log(value / low) / Math.log(ratio)) * pixels;
      if (at >= 0 && at <= pixels && at - last >= 44) {
        ticks.push(value);
        last = at;
      }
    }
  }
  return ticks;
}

function linearTicks(low, high, count) {
  const raw = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((s) => s * unit).find((s) => s >= raw);
  const ticks = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) ticks.push(value);
  return { ticks, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

// The point of a box that is nearest to x, y, and how far it is.
const edge = (box, x, y) => [Math.min(Math.max(x, box[0]), box[2]), Math.min(Math.max(y, box[1]), box[3])];
const away = (box, x, y) => Math.hypot(edge(box, x, y)[0] - x, edge(box, x, y)[1] - y);

const plain = (value) => (value >= 1000 ? Math.round(value).toLocaleString("en").replace(/,/g, "\u202f") : String(Number(value.toPrecision(3))));

class Chart {
  constructor(svg, data, heard) {
    this.svg = svg;
    this.data = data;
    this.heard = heard; // { show(item, x, y), hide(), choose(item) }
    this.spots = [];
    svg.addEventListener("pointermove", (event) => {
      const spot = this.nearest(event);
      svg.style.cursor = spot ? "pointer" : "";
      if (spot) heard.show(spot.item, spot.x, spot.y);
      else heard.hide();
    });
    svg.addEventListener("pointerleave", () => heard.hide());
    svg.addEventListener("mousedown", (event) => event.preventDefault()); // would focus the topmost, not the nearest
    svg.addEventListener("click", (event) => {
      const spot = this.nearest(event);
      if (!spot) return;
      spot.node.focus({ preventScroll: true });
      heard.choose(spot.item);
    });
  }

  // Marks overlap where points are close: what counts is whose middle is nearest, not which was drawn last.
  nearest(event) {
    const frame = this.svg.getBoundingClientRect();
    const far = (spot) => Math.hypot(event.clientX - frame.left - spot.x, event.clientY - frame.top - spot.y);
    return this.spots.filter((spot) => far(spot) <= REACH).sort((a, b) => far(a) - far(b))[0];
  }

  // view: { group, axis, published, visible(point), chosen }
  draw(view) {
    this.view = view;
    const focused = document.activeElement && this.svg.contains(document.activeElement) ? document.activeElement.dataset.item : null;
    this.svg.replaceChildren();
    this.spots = [];
    const points = this.data.points.filter((p) => p.group === view.group && p.state[view.axis] !== "none" && view.visible(p));
    const others = view.published ? this.data.published.filter((o) => o.benchmark === this.data.groups[view.group].benchmark) : [];
    this.width = Math.max(240, this.svg.clientWidth);
    this.height = Math.round(Math.min(540, Math.max(330, this.width * 0.68)));
    this.svg.setAttribute("height", this.height);
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${this.height}`);
    if (!points.length) {
      const spot = { x: this.width / 2, y: this.height / 2, "text-anchor": "middle" };
      element("text", spot, this.svg, "no cell of this choice has accuracy and this speed");
      return;
    }
    this.scale(points, others);
    this.axes();
    this.front();
    const drawn = [...others.map((o) => this.other(o)), ...[...points].sort((a, b) => (a.cell === view.chosen) - (b.cell === view.chosen) || RANK[a.state[view.axis]] - RANK[b.state[view.axis]]).map((p) => this.point(p))];
    this.labels(points);
    this.spots = drawn;
    this.keys(focused);
  }

  scale(points, others) {
    const xs = points.flatMap((p) => p.x[this.view.axis]).concat(others.map((o) => o.x));
    const ys = points.flatMap((p) => p.y).concat(others.map((o) => o.y));
    const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
    const [y0, y1] = [Math.min(...ys), Math.max(...ys)];
    const wide = Math.max(Math.log(x1 / x0) * 0.1, 0.12);
    const high = Math.max((y1 - y0) * 0.09, 0.2);
    this.domain = { x0: x0 * Math.exp(-wide), x1: x1 * Math.exp(wide), y0: Math.max(y0 - high, -1), y1: Math.min(y1 + high, 101) };
    const { left, right, top, bottom } = MARGIN;
    this.plot = { left, top, right: this.width - right, bottom: this.height - bottom };
    const d = this.domain;
    this.x = (v) => left + (Math.log(v / d.x0) / Math.log(d.x1 / d.x0)) * (this.plot.right - left);
    this.y = (v) => this.plot.bottom - ((v - d.y0) / (d.y1 - d.y0)) * (this.plot.bottom - top);
  }

  axes() {
    const { left, top, right, bottom } = this.plot;
    const d = this.domain;
    for (const value of logTicks(d.x0, d.x1, right - left)) {
      const x = this.x(value);
      element("path", { class: "grid", d: `M${x} ${top}V${bottom}` }, this.svg);
      element("text", { x, y: bottom + 17, "text-anchor": "middle" }, this.svg, plain(value));
    }
    const { ticks, digits } = linearTicks(d.y0, Math.min(d.y1, 100), 6);
    for (const value of ticks) {
      const y = this.y(value);
      element("path", { class: "grid", d: `M${left} ${y}H${right}` }, this.svg);
      element("text", { x: left - 7, y: y + 4, "text-anchor": "end" }, this.svg, value.toFixed(digits));
    }
    element("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` }, this.svg);
    element("text", { x: (left + right) / 2, y: this.height - 6, "text-anchor": "middle" }, this.svg, TITLES[this.view.axis]);
    const turned = `translate(11 ${(top + bottom) / 2}) rotate(-90)`;
    element("text", { transform: turned, "text-anchor": "middle" }, this.svg, this.data.groups[this.view.group].metric);
  }

  // A staircase: up to the speed of each corner its accuracy is to be had.
  front() {
    const corners = this.data.groups[this.view.group].line[this.view.axis].map(([x, y]) => [this.x(x), this.y(y)]);
    if (corners.length < 2) return;
    const path = corners.map(([x, y], i) => (i ? `V${y}H${x}` : `M${x} ${y}`)).join("");
    element("path", { class: "front-line", d: path }, this.svg);
  }

  point(p) {
    const [low, middle, high] = p.x[this.view.axis].map(this.x);
    const [bottom, y, top] = p.y.map(this.y);
    const state = p.state[this.view.axis];
    const said = `${p.label}: ${p.brief.join(", ")}; ${{ front: "on the front", near: "dominated within uncertainty", off: "clearly dominated" }[state]}${p.doubt ? "; time in doubt" : ""}`;
    const kept = String(this.view.chosen === p.cell);
    const node = element("g", { class: `point c${p.colour} ${state}`, role: "button", "aria-label": said, "aria-pressed": kept, "data-item": p.cell }, this.svg);
    element("path", { class: "bars", d: `M${low} ${y}H${high}M${middle} ${bottom}V${top}` }, node);
    const mark = element("g", { transform: `translate(${middle} ${y})` }, node);
    element("circle", { class: "hit", r: 13 }, mark);
    const doubtful = p.doubt ? " doubtful" : "";
    element("path", { class: `shape ${state}${doubtful}`, d: this.data.shapes[p.shape] }, mark);
    if (p.sign) element("path", { class: `sign ${state}${doubtful}`, d: this.data.signs[p.sign] }, mark);
    if (p.doubt) element("text", { x: 8, y: -6, class: "name doubt" }, mark, "!");
    if (this.view.chosen === p.cell) node.classList.add("chosen");
    return this.listen(node, p, middle, y);
  }

  other(o) {
    const [x, y] = [this.x(o.x), this.y(o.y)];
    const node = element("g", { class: "point published", role: "img", "aria-label": `${o.label}: ${o.brief.join(", ")}`, "data-item": `published ${o.label}` }, this.svg);
    const mark = element("g", { transform: `translate(${x} ${y})` }, node);
    element("circle", { class: "hit", r: 11 }, mark);
    element("path", { class: "shape other", d: "M0-5L5 0L0 5L-5 0Z" }, mark);
    return this.listen(node, o, x, y);
  }

  listen(node, item, x, y) {
    node.addEventListener("focus", () => this.heard.show(item, x, y));
    node.addEventListener("blur", () => this.heard.hide());
    return { node, item, x, y };
  }

  // One stop of the Tab key; arrows go from point to point as they stand from left to right.
  keys(focused) {
    const ordered = [...this.spots].sort((a, b) => a.x - b.x);
    const nodes = ordered.map((spot) => spot.node);
    const start = nodes.find((n) => n.dataset.item === (focused ?? this.view.chosen)) ?? nodes[0];
    nodes.forEach((node, i) => {
      node.setAttribute("tabindex", node === start ? 0 : -1);
      node.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
        if (step) {
          const next = nodes[(i + step + nodes.length) % nodes.length];
          nodes.forEach((n) => n.setAttribute("tabindex", n === next ? 0 : -1));
          next.focus();
        } else if (event.key === "Enter" || event.key === " ") {
          this.heard.choose(ordered[i].item);
        } else return;
        event.preventDefault();
      });
    });
    if (focused !== null) start.focus();
  }

  // Each label at the nearest free place about its point, the front's first; one without a place is left out.
  labels(points) {
    const axis = this.view.axis;
    const spots = new Map(points.map((p) => [p, [this.x(p.x[axis][1]), this.y(p.y[1])]]));
    const taken = [...spots.values()].map(([x, y]) => [x - 9, y - 9, x + 9, y + 9]);
    const wanted = this.width < 480 ? points.filter((p) => p.state[axis] === "front") : [...points];
    for (const p of wanted.sort((a, b) => RANK[b.state[axis]] - RANK[a.state[axis]])) {
      const [x, y] = spots.get(p);
      const label = element("text", { class: "name", "text-anchor": "middle", "pointer-events": "none", "aria-hidden": "true" }, this.svg, p.label);
      const half = label.getComputedTextLength() / 2 + 2;
      const places = [13, 22, 34, 48].flatMap((gap) => [[0, -gap - 4], [0, gap + 4], [half + gap, 0], [-half - gap, 0], [half, -gap - 2], [-half, -gap - 2], [half, gap + 2], [-half, gap + 2]]);
      const place = places
        .map(([dx, dy]) => [x + dx - half, y + dy - 7, x + dx + half, y + dy + 7])
        .find((b) => this.holds(b) && !taken.some((t) => b[0] < t[2] && t[0] < b[2] && b[1] < t[3] && t[1] < b[3]) && (away(b, x, y) >= FAR || [...spots.values()].every(([u, v]) => away(b, u, v) >= away(b, x, y))));
      if (!place) {
        label.remove();
        continue;
      }
      taken.push(place);
      label.setAttribute("x", (place[0] + place[2]) / 2);
      label.setAttribute("y", (place[1] + place[3]) / 2 + 4);
      this.lead(x, y, place, label);
    }
  }

  holds(box) {
    return box[0] >= this.plot.left && box[2] <= this.plot.right + 10 && box[1] >= 2 && box[3] <= this.plot.bottom;
  }

  // A line from a point to a label that had to go far, so that nobody takes it for another's.
  lead(x, y, box, label) {
    const far = away(box, x, y);
    if (far < FAR) return;
    const [toX, toY] = edge(box, x, y);
    const path = `M${x + ((toX - x) * 9) / far} ${y + ((toY - y) * 9) / far}L${toX} ${toY}`;
    label.before(element("path", { class: "leader", d: path }));
  }
}
