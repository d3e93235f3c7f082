"use strict";
// What a reader can do with the page: choose what the chart shows, narrow down, sort, keep a point, change the theme.
(() => {
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  for (const id of ["theme", "controls", "filters", "panel"]) if (byId(id)) byId(id).hidden = false;

  // Theme: the system's, or one chosen here and remembered where the browser lets a file remember.
  const THEMES = ["system", "light", "dark"];
  const memory = { get: () => { try { return localStorage.getItem("theme"); } catch { return null; } }, set: (v) => { try { localStorage.setItem("theme", v); } catch { /* not allowed */ } } };
  const paint = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `theme: ${theme}`;
  };
  let theme = THEMES.includes(memory.get()) ? memory.get() : "system";
  paint(theme);
  byId("theme").addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    memory.set(theme);
    paint(theme);
  });

  // Sorting: a button in each header; numbers from large to small first, cells without a value always last.
  for (const table of document.querySelectorAll("table.sortable")) {
    table.querySelectorAll("thead th[aria-sort]").forEach((header) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      header.replaceChildren(button);
      button.addEventListener("click", () => sort(table, header));
    });
  }
  function sort(table, header) {
    const column = [...header.parentNode.children].indexOf(header);
    const numeric = header.dataset.kind === "number";
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const order = header.getAttribute("aria-sort") === first ? second : first;
    for (const other of header.parentNode.children) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => {
      const cell = row.children[column];
      if (numeric) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
      return cell.dataset.value ?? cell.textContent.trim();
    };
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [value(row), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }))));
    body.append(...rows.map(([, row]) => row));
  }

  // Filters: of each kind at least what is checked; they narrow tables and chart alike.
  const filters = [...document.querySelectorAll("#filters fieldset")];
  const passes = (values) => filters.every((f) => [...f.querySelectorAll("input")].some((i) => i.checked && i.value === String(values[f.dataset.filter])));
  const filtered = () => {
    let shown = 0;
    for (const row of document.querySelectorAll("#cells tbody tr, #stability tbody tr")) {
      row.hidden = !passes(row.dataset);
      if (!row.hidden && row.closest("#cells")) shown++;
    }
    if (byId("count")) byId("count").textContent = `${shown} of ${document.querySelectorAll("#cells tbody tr").length} cells shown`;
    if (chart) {
      offer();
      draw();
    }
  };
  byId("filters")?.addEventListener("change", filtered);
  byId("all")?.addEventListener("click", () => {
    for (const input of document.querySelectorAll("#filters input")) input.checked = true;
    filtered();
  });

  // The chart with its panel; a point that is kept stays in the panel until another is, or Escape.
  const svg = byId("chart");
  const panel = byId("panel");
  const tip = byId("tip");
  const points = new Map(data.points.map((p) => [p.cell, p]));
  const hint = panel?.firstElementChild;
  let kept = null;
  const axis = () => document.querySelector("input[name=axis]:checked").value;
  const rowsOf = new Map();
  for (const row of document.querySelectorAll("#cells tbody tr")) rowsOf.set(row.dataset.cell, row.dataset);
  const chart = svg && new Chart(svg, data, {
    show(item, x, y) {
      explain(item);
      tip.replaceChildren(Object.assign(document.createElement("b"), { textContent: item.label }), ...item.brief.map((line) => Object.assign(document.createElement("div"), { textContent: line })));
      tip.hidden = false;
      const [frame, inside] = [tip.parentNode, svg.getBoundingClientRect()];
      const outside = frame.getBoundingClientRect();
      const [left, top] = [inside.left - outside.left + x, inside.top - outside.top + y];
      tip.style.left = `${Math.max(4, Math.min(left - tip.offsetWidth / 2, frame.clientWidth - tip.offsetWidth - 4))}px`;
      tip.style.top = `${top - tip.offsetHeight - 16 < 0 ? top + 16 : top - tip.offsetHeight - 16}px`;
    },
    hide() {
      tip.hidden = true;
      explain(kept);
    },
    choose(item) {
      if (item.cell) keep(kept === item ? null : item);
    },
  });

  function explain(item) {
    if (!item) panel.replaceChildren(hint);
    else if (!item.cell) panel.replaceChildren(...[item.label, ...item.brief].map((line) => Object.assign(document.createElement("p"), { textContent: line })));
    else {
      const article = byId(item.cell).querySelector("article").cloneNode(true);
      article.querySelectorAll(".verdict").forEach((p) => p.dataset.axis !== axis() && p.remove());
      const spark = document.querySelector(`#cells tr[data-cell="${item.cell}"] .spark`);
      if (spark) {
        const own = spark.parentNode.cloneNode(true);
        const line = Object.assign(document.createElement("div"), { className: own.className });
        line.append(...own.childNodes);
        article.append(line);
      }
      panel.replaceChildren(...article.childNodes);
    }
  }
  function keep(item) {
    kept = item;
    for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
    if (item) for (const row of document.querySelectorAll(`tr[data-cell="${item.cell}"]`)) row.classList.add("chosen");
    explain(item);
    draw();
  }
  const visible = (p) => rowsOf.has(p.cell) && passes(rowsOf.get(p.cell));
  const charted = (group, way) => data.points.some((p) => p.group === group && p.state[way] !== "none" && visible(p));
  const radios = [...document.querySelectorAll("input[name=axis]")];
  // What the filters leave nothing of cannot be chosen; if the present group or axis is such, the first other is.
  function offer() {
    const select = byId("group");
    const left = [...select.options].filter((option) => radios.some((radio) => charted(Number(option.value), radio.value)));
    for (const option of select.options) option.disabled = !left.includes(option);
    if (select.selectedOptions[0].disabled && left.length) select.value = left[0].value;
    for (const radio of radios) radio.disabled = left.length > 0 && !charted(Number(select.value), radio.value);
    const present = radios.find((radio) => radio.checked);
    if (present.disabled) (radios.find((radio) => !radio.disabled) ?? present).checked = true;
  }
  function draw() {
    const group = Number(byId("group").value);
    const published = byId("published");
    if (published) published.disabled = axis() !== "throughput" || !data.published.some((o) => o.benchmark === data.groups[group].benchmark);
    chart.draw({ group, axis: axis(), published: published && !published.disabled && published.checked, visible, chosen: kept?.cell });
  }
  if (chart) byId("group").value = String(Math.max(0, data.groups.findIndex((_, group) => charted(group, "throughput"))));
  filtered();
  if (chart) {
    byId("controls").addEventListener("change", () => {
      offer();
      if (kept && kept.group !== Number(byId("group").value)) keep(null);
      explain(kept);
      draw();
    });
    new ResizeObserver(() => chart.width !== Math.max(240, svg.clientWidth) && draw()).observe(svg);
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      keep(null);
      tip.hidden = true; // the point that has the focus would go on saying what it is
      explain(null);
    });
  }

  // A name in a table shows its point, where it has one, and else opens its entry among the cells in full.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("tbody th a");
    const point = link && points.get(link.closest("tr").dataset.cell);
    if (!link) return;
    if (!point || point.state[axis()] === "none") {
      byId(link.hash.slice(1)).open = true;
      return;
    }
    event.preventDefault();
    byId("group").value = String(point.group);
    offer();
    keep(point);
    byId("chart-title").scrollIntoView({ block: "start" });
    svg.querySelector(`[data-item="${point.cell}"]`)?.focus({ preventScroll: true });
  });
  const opened = () => {
    const target = location.hash && byId(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") target.open = true;
  };
  addEventListener("hashchange", opened);
  opened();
})();
