// What all pages share. Names of models and layers are foreign text: they reach the page as text, never as markup.
"use strict";

const SERIES = 7;
const NARROW = 600;
const CHART_CONFIG = {
  displaylogo: false,
  displayModeBar: innerWidth < NARROW ? false : "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  responsive: true,
};

const readData = () => JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const words = (name) => name.replaceAll("_", " ").replace(/\brgn\b/, "RGN").replace(/\bmacs\b/, "MACs");
const clip = (text, most) => (text.length <= most ? text : "…" + text.slice(1 - most));

/** An element with properties and children; strings become text. */
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Foreign text for plotly, which reads a little markup in its labels. */
function plotText(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

/** Bytes in decimal units, as everywhere in Trady. */
function bytesText(bytes) {
  if (bytes === null || bytes === undefined) return "not predicted";
  if (Math.abs(bytes) < 1000) return `${Math.round(bytes)} B`;
  let value = bytes / 1000;
  let unit = "kB";
  for (const larger of ["MB", "GB", "TB"]) {
    if (Math.abs(value) < 999.95) break;
    value /= 1000;
    unit = larger;
  }
  return `${value.toFixed(1)} ${unit}`;
}

/** A size without needless decimals, for axes and sentences: "256 kB". */
const sizeText = (bytes) => bytesText(bytes).replace(".0 ", " ");

/** A share in percent, never rounded to nothing or to all. */
function shareText(share, digits = 1) {
  const least = 10 ** -digits;
  const percent = 100 * share;
  if (percent > 0 && percent < least) return `< ${least.toFixed(digits)} %`;
  if (percent < 100 && percent > 100 - least) return `> ${(100 - least).toFixed(digits)} %`;
  return `${percent.toFixed(digits)} %`;
}

const countText = (count) => count.toLocaleString("en-US");

/** A large count in short: "6.8 M". */
function amountText(count) {
  if (Math.abs(count) < 10000) return countText(Math.round(count));
  let value = count / 1000;
  let unit = "k";
  for (const larger of ["M", "G", "T", "P"]) {
    if (Math.abs(value) < 999.95) break;
    value /= 1000;
    unit = larger;
  }
  return `${value.toFixed(1)} ${unit}`;
}

/** A colour of the style sheet's as it is now, in light or in dark. */
function resolved(text) {
  const probe = document.body.appendChild(element("i"));
  probe.style.color = text;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const colour = (name) => resolved(`var(--${name})`);

/** The colour of one of so many series: told apart by anyone where they are few, else from blue to red. */
function seriesColour(place, count = 1) {
  if (count <= SERIES) return colour(`series-${place % SERIES}`);
  const hue = Math.round(225 - (210 * place) / (count - 1));
  return resolved(`light-dark(hsl(${hue} 75% 40%), hsl(${hue} 75% 65%))`);
}

/** A button that turns light to dark; `redraw` is called after it, and when the system turns. */
function watchTheme(redraw) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const button = byId("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const label = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Use ${isDark() ? "light" : "dark"} colours`);
  };
  const turned = () => {
    label();
    redraw();
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    turned();
  });
  system.addEventListener("change", turned);
  label();
}

/** Layout of a chart in the page's colours; axes are merged with what all axes have. */
function chartLayout({ xaxis = {}, yaxis = {}, ...rest } = {}) {
  const lines = { gridcolor: colour("grid"), linecolor: colour("rule"), zeroline: false };
  const axis = { ...lines, automargin: true, tickfont: { size: 12 } };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 13, color: colour("ink") },
    hoverlabel: {
      bgcolor: colour("panel"),
      bordercolor: colour("quiet"),
      font: { family: "system-ui, sans-serif", color: colour("ink"), size: 12.5 },
      align: "left",
      namelength: 0,
    },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("quiet"), activecolor: colour("ink") },
    margin: { l: 56, r: 12, t: 28, b: 48 },
    showlegend: false,
    xaxis: { ...axis, ...xaxis },
    yaxis: { ...axis, ...yaxis },
    ...rest,
  };
}

/** Ticks of a logarithmic axis of bytes: 1, 2 and 5 of each power of ten, or the sizes where those are too few. */
function byteTicks(sizes, room) {
  const distinct = [...new Set(sizes)].sort((one, other) => one - other);
  const [least, most] = [distinct[0], distinct.at(-1)];
  const round = [];
  for (let power = 10 ** Math.floor(Math.log10(least)); power <= most; power *= 10) {
    round.push(...[1, 2, 5].map((digit) => digit * power));
  }
  const inside = round.filter((bytes) => bytes >= least / 1.1 && bytes <= most * 1.1);
  const found = inside.length > 2 ? inside : distinct;
  const step = Math.max(1, Math.ceil(found.length / room));
  return found.filter((_, place) => place % step === 0);
}

/** Ticks of a linear axis of bytes. */
function linearByteTicks(most, room = 5) {
  const raw = most / room || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((size) => size >= raw);
  const values = Array.from({ length: Math.floor((most * 1.05) / step) + 1 }, (_, place) => place * step);
  return { tickvals: values, ticktext: values.map(sizeText) };
}

/** Entries of a legend: `{ text, colour, kind, dash, mark }`. */
function showLegend(list, entries) {
  list.replaceChildren(...entries.map((entry) => {
    const className = `swatch ${entry.kind ?? ""}`;
    const swatch = element("span", { className, textContent: entry.mark ?? "", ariaHidden: "true" });
    swatch.style.color = entry.colour;
    if (entry.dash) swatch.style.borderTopStyle = entry.dash;
    return element("li", {}, swatch, element("span", { textContent: entry.text }));
  }));
}

/** Options of a select; values are their places. */
function fillSelect(select, texts, chosen = 0) {
  select.replaceChildren(...texts.map((text, place) => element("option", { value: String(place), textContent: text })));
  select.value = String(chosen);
}

/** Terms and values as tiles. */
function showTiles(list, pairs) {
  const tile = (term, value) => [element("dt", { textContent: term }), element("dd", { textContent: value })];
  list.replaceChildren(...pairs.map(([term, value]) => element("div", {}, ...tile(term, value))));
}

/** Paragraphs as a list of notes. */
function showItems(list, texts) {
  list.replaceChildren(...texts.map((text) => element("li", { textContent: text })));
  list.hidden = texts.length === 0;
}

/** A button that copies a text; where the browser forbids it, the text is selected instead. */
function watchCopy(button, source) {
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);
      button.textContent = "Selected: press Ctrl+C";
    }
    setTimeout(() => (button.textContent = "Copy"), 2000);
  });
}

/**
 * A table sorted by a click, or a key, on the head of a column; long ones are shown in parts.
 *
 * Columns are `{ name, value(row), text(row), number, className, cell(row) }`.
 */
class SortedTable {
  constructor(table, columns, { part = 200, rowMade = () => {} } = {}) {
    Object.assign(this, { table, columns, part, rowMade, rows: [], by: null, sign: 1, shown: part });
    this.heads = columns.map((column) => this.head(column));
    this.body = element("tbody");
    this.more = element("button", { type: "button", className: "more", hidden: true });
    this.more.addEventListener("click", () => this.showMore());
    table.append(element("thead", {}, element("tr", {}, ...this.heads)), this.body);
    (table.closest(".scroll") ?? table).after(this.more);
  }

  head(column) {
    const button = element("button", { type: "button", textContent: column.name });
    const head = element("th", { scope: "col", className: column.number ? "number" : "" }, button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => this.sortBy(column));
    return head;
  }

  show(rows) {
    this.rows = rows;
    this.shown = this.part;
    this.draw();
  }

  sortBy(column) {
    this.sign = this.by === column ? -this.sign : column.number ? -1 : 1;
    this.by = column;
    this.heads.forEach((head, place) => head.setAttribute("aria-sort", this.direction(this.columns[place])));
    this.draw();
  }

  direction(column) {
    if (column !== this.by) return "none";
    return this.sign > 0 ? "ascending" : "descending";
  }

  sorted() {
    if (this.by === null) return this.rows;
    const { value } = this.by;
    return [...this.rows].sort((one, other) => this.sign * compare(value(one), value(other)));
  }

  showMore() {
    this.shown += this.part;
    this.draw();
  }

  draw() {
    const rows = this.sorted();
    this.body.replaceChildren(...rows.slice(0, this.shown).map((row) => this.line(row)));
    const left = rows.length - this.shown;
    this.more.hidden = left <= 0;
    this.more.textContent = `Show ${Math.min(left, this.part)} more of ${countText(rows.length)}`;
  }

  line(row) {
    const line = element("tr", {}, ...this.columns.map((column) => cellOf(column, row)));
    this.rowMade(line, row);
    return line;
  }
}

/** A column of numbers; empty where a row has none. */
function number(name, key, text) {
  const shown = (row) => (row[key] === undefined ? "" : text(row[key]));
  return { name, number: true, value: (row) => row[key] ?? null, text: shown };
}

function cellOf(column, row) {
  const cell = element("td", { className: `${column.number ? "number" : ""} ${column.className ?? ""}` });
  if (column.cell) cell.append(column.cell(row));
  else cell.textContent = column.text ? column.text(row) : column.value(row);
  return cell;
}

/** Order of two values; what is missing comes first. */
function compare(one, other) {
  if (one === other) return 0;
  if (one === null || one === undefined) return -1;
  if (other === null || other === undefined) return 1;
  if (typeof one === "string") return one.localeCompare(other, "en", { numeric: true });
  return one - other;
}

/** A bar in a cell, as long as its part of the whole. */
function barCell(part, whole, text) {
  const bar = element("span", { className: "bar", ariaHidden: "true" });
  bar.style.width = `${Math.round(60 * (whole ? part / whole : 0))}px`;
  return element("span", {}, `${text} `, bar);
}
