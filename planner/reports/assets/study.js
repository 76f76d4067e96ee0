// The study's page: one curve and one budget are chosen; everything else follows.
"use strict";

const USUAL_BUDGET = 256000;

const data = readData();
const rows = data.rows.map(readRow);
const curves = data.curves.map(readCurve);
const layerTable = makeLayerTable(byId("layers"));
const state = { curve: 0, row: null, measure: data.measures[0], axis: data.axes[0] ?? null };

function readRow(row, place) {
  const figures = Object.fromEntries((row.figures ?? []).map((value, field) => [data.figures[field], value]));
  const layers = row.layers?.map(([layer, ...values]) => readLayer(data.curves[row.curve].network, layer, values));
  return { ...row, ...figures, layers: layers ?? null, place, bought: row.figures !== undefined };
}

function readLayer(network, place, values) {
  const [name, kind, in_channels] = data.networks[network][place];
  const layer = { place, name, kind, in_channels };
  values.forEach((value, field) => (layer[data.layer_figures[field]] = value));
  layer.bytes = sum(LAYER_PARTS.map(([part]) => layer[part]));
  return layer;
}

function readCurve(curve, place) {
  const found = rows.filter((row) => row.curve === place).sort((one, other) => one.budget - other.budget);
  return { ...curve, place, rows: found };
}

function valueText(axis, value) {
  return ["model", "optimizer"].includes(axis.key) ? value : `${axis.name} ${value}`;
}

const curve = () => curves[state.curve];
const measureOf = (row) => row[state.measure.key];
const trains = (found) => found.filter((row) => row.bought);
const kneeOf = (found, measure = state.measure) => rows[found.knees[measure.key]];

/** What is chosen first: about 256 kB, or the knee where that is not among the budgets, of what trains something. */
function firstRow(found) {
  const usual = nearest(found.rows, USUAL_BUDGET);
  const isFar = Math.abs(Math.log(usual.budget / USUAL_BUDGET)) > Math.LN2;
  if (usual.bought && !isFar) return usual;
  return kneeOf(found) ?? trains(found.rows)[0] ?? usual;
}

function nearest(found, budget) {
  const distance = (row) => Math.abs(Math.log(row.budget / budget));
  return found.reduce((best, row) => (distance(row) < distance(best) ? row : best));
}

// --- choosing -------------------------------------------------------------------------------------------------------

function choose(row) {
  const moved = state.row === null || row.curve !== state.row.curve;
  state.row = row;
  state.curve = row.curve;
  showControls();
  showAnswer(row);
  showLedger(row);
  showLayers(row);
  markChosenLines();
  if (moved) drawChart();
  else moveMark();
}

/** The curve with an axis's new value that keeps most of the others. */
function chooseAxis(axis, value) {
  const now = curve().values;
  const kept = (found) => data.axes.filter(({ key }) => key !== axis.key && found.values[key] === now[key]).length;
  const fitting = curves.filter((found) => found.values[axis.key] === value);
  const best = fitting.reduce((one, other) => (kept(other) > kept(one) ? other : one));
  choose(nearest(best.rows, state.row.budget));
}

const valuesOf = (axis) => [...new Set(curves.map((found) => found.values[axis.key]))];

function makeAxisControls() {
  data.axes.forEach((axis) => {
    const select = element("select", { id: `axis-${axis.key}` });
    fillSelect(select, valuesOf(axis));
    select.addEventListener("change", () => chooseAxis(axis, valuesOf(axis)[Number(select.value)]));
    byId("budget-control").before(element("label", {}, axis.name, select));
  });
}

function showControls() {
  const slider = byId("budget");
  const found = curve().rows;
  slider.max = String(found.length - 1);
  slider.value = String(found.indexOf(state.row));
  slider.disabled = found.length === 1;
  slider.setAttribute("aria-valuetext", sizeText(state.row.budget));
  byId("budget-text").textContent = sizeText(state.row.budget);
  data.axes.forEach((axis) => {
    byId(`axis-${axis.key}`).value = String(valuesOf(axis).indexOf(curve().values[axis.key]));
  });
}

// --- the answer -----------------------------------------------------------------------------------------------------

function showAnswer(row) {
  byId("answer").classList.toggle("nothing", !row.bought);
  byId("said").textContent = row.bought ? saidOfBought(row) : saidOfNothing(row);
  byId("detail").textContent = row.bought ? detailOfBought(row) : detailOfNothing(row);
  showTiles(byId("tiles"), row.bought ? tilesOf(row) : []);
  byId("command").textContent = `trady-plan ${row.options} ${curve().ending}`;
  byId("command-row").hidden = !row.bought;
}

function saidOfBought(row) {
  const { epochs } = curve();
  const reach = state.measure.key === "rgn_reached"
    ? `reaches ${shareText(row.rgn_reached)} of the RGN by epoch ${epochs}`
    : `reaches ${shareText(measureOf(row))} ${state.measure.whole}`;
  return `${sizeText(row.budget)} trains ${row.trained} of ${row.num_layers} layers, ${countText(row.num_channels)} of `
    + `${countText(row.all_channels)} channels, and ${reach}; ${nextText(row)}.`;
}

function nextText(row) {
  if (row.next_kilobyte === 0) return "more bytes add nothing";
  return `the next kilobyte adds ${shareText(row.next_kilobyte, 2)} of the value`;
}

function detailOfBought(row) {
  const parts = [];
  const knee = kneeOf(curve());
  const last = trains(curve().rows).at(-1);
  if (knee) parts.push(`The curve bends at ${sizeText(knee.budget)}, with ${shareText(measureOf(knee))}.`);
  if (last !== row) parts.push(`Its largest budget, ${sizeText(last.budget)}, reaches ${shareText(measureOf(last))}.`);
  parts.push(row.gap === 0 ? "The choice is proven best." : `The choice is within ${gapText(row.gap)} of the best.`);
  return parts.join(" ");
}

const gapText = (gap) => `${(Math.ceil(gap * 1e4) / 1e2).toFixed(2)} %`;

function saidOfNothing(row) {
  const where = curve().label ? ` with ${curve().label}` : "";
  if (row.needed === null) return `${sizeText(row.budget)}${where} could not be planned.`;
  return `${sizeText(row.budget)} trains nothing${where}: the smallest budget that does is ${sizeText(row.needed)}.`;
}

function detailOfNothing(row) {
  const change = row.remedy ? ` The change that alters training least: ${remedyText(row)}.` : "";
  return row.why + change;
}

function remedyText(row) {
  if (!row.remedy) return row.needed === null ? "" : `raise the budget to ${sizeText(row.needed)}`;
  const [change, options, needed] = row.remedy;
  return `${change} (${options}), which trains from ${sizeText(needed)} on`;
}

function tilesOf(row) {
  return [
    [`used in scope ${curve().scope}`, bytesText(row.used_bytes)],
    ["RGN reached", shareText(row.rgn_reached)],
    ["captured share", shareText(row.captured_share)],
    ["inputs saved", shareText(row.activation_sparsity)],
    ["weight gradients saved", shareText(row.weight_derivative_sparsity)],
    ["backward MACs", amountText(row.backward_macs)],
  ];
}

// --- ledger and layers ----------------------------------------------------------------------------------------------

function showLedger(row) {
  byId("bought").hidden = !row.bought;
  byId("layers-section").hidden = !row.bought;
  if (!row.bought) return;
  const most = Math.max(...row.lines.map((bytes) => bytes ?? 0));
  const lines = data.lines.map((name, place) => ledgerLine(words(name), row.lines[place], most));
  const totals = Object.keys(data.scopes).map((name, place) => totalLine(name, row.scopes[place]));
  byId("ledger").tBodies[0].replaceChildren(...lines, ...totals);
}

function ledgerLine(name, bytes, most) {
  const cell = element("td", { className: "number" }, barCell(Math.max(0, bytes ?? 0), most, bytesText(bytes)));
  return element("tr", {}, element("td", { textContent: name }), cell);
}

function totalLine(name, bytes) {
  const held = name === curve().scope ? " (the budget's)" : "";
  const cell = element("td", { className: "number", textContent: bytesText(bytes) });
  return element("tr", { className: "total" }, element("td", { textContent: `scope ${name}${held}` }), cell);
}

function showLayers(row) {
  if (!row.bought) return;
  byId("layers-section").hidden = row.layers === null;
  byId("depth").hidden = row.layers === null;
  byId("depth-note").textContent = depthNote(row);
  if (row.layers === null) return;
  layerTable.show(row.layers);
  drawDepth(row.layers, data.networks[curve().network].length);
}

function depthNote(row) {
  if (row.layers === null) {
    return `This page keeps the layers of one row in ${data.detail_step}; those of all are in the study's rows.jsonl.`;
  }
  const { scope } = curve();
  const rest = scope === "update" ? "" : ` What else scope ${scope} holds is in the ledger.`;
  return `Input left, output right: layers that any row of this model trains. Diamonds: share of the value.${rest}`;
}

// --- tables ---------------------------------------------------------------------------------------------------------

const axisColumns = () => data.axes.map((axis) => ({
  name: axis.name,
  className: axis.key === "model" ? "name" : "",
  value: (row) => curves[row.curve].values[axis.key],
}));

function choosing(text, row) {
  const button = element("button", { type: "button", textContent: text });
  button.addEventListener("click", () => {
    choose(row);
    byId("answer").scrollIntoView({ block: "start" });
  });
  return button;
}

const budgetColumn = {
  name: "budget", number: true, value: (row) => row.budget, cell: (row) => choosing(sizeText(row.budget), row),
};

function makeTables() {
  new SortedTable(byId("rows"), rowColumns(), { rowMade: keepLine }).show(rows);
  const nothing = rows.filter((row) => !row.bought);
  byId("nothing-section").hidden = nothing.length === 0;
  new SortedTable(byId("nothing"), nothingColumns(), { part: 50, rowMade: keepLine }).show(nothing);
  byId("curves-section").hidden = curves.length < 2;
  new SortedTable(byId("curves"), curveColumns()).show(curves);
}

function rowColumns() {
  return [
    ...axisColumns(),
    budgetColumn,
    number("used", "used_bytes", bytesText),
    number("RGN reached", "rgn_reached", shareText),
    number("captured", "captured_share", shareText),
    number("value", "value", shareText),
    number("layers", "trained", countText),
    number("channels", "num_channels", countText),
    number("next kB adds", "next_kilobyte", (share) => shareText(share, 2)),
    { name: "status", value: (row) => row.status },
  ];
}

function nothingColumns() {
  return [
    ...axisColumns(),
    budgetColumn,
    number("needs at least", "needed", (bytes) => (bytes === null ? "unknown" : bytesText(bytes))),
    { name: "least change", className: "long", value: remedyText },
    { name: "why", className: "long", value: (row) => row.why },
  ];
}

function curveColumns() {
  const at = (row, text) => (row ? text(row) : "–");
  const first = (found) => trains(found.rows)[0];
  const last = (found) => trains(found.rows).at(-1);
  const knee = (found) => kneeOf(found, data.measures[0]);
  const chooser = (found) => choosing(found.label, nearest(found.rows, state.row.budget));
  const column = (name, pick, value, text) => ({
    name, number: true, value: (found) => (pick(found) ? value(pick(found)) : null),
    text: (found) => at(pick(found), (row) => text(value(row))),
  });
  return [
    { name: "setting", className: "name", value: (found) => found.label, cell: chooser },
    column("trains from", first, (row) => row.budget, sizeText),
    column("knee", knee, (row) => row.budget, sizeText),
    column("RGN at the knee", knee, (row) => row.rgn_reached, shareText),
    column("largest budget", last, (row) => row.budget, sizeText),
    column("RGN there", last, (row) => row.rgn_reached, shareText),
  ];
}

let madeLines = [];

function keepLine(line, row) {
  madeLines.push([line, row]);
  line.setAttribute("aria-selected", String(row === state.row));
}

function markChosenLines() {
  madeLines = madeLines.filter(([line]) => line.isConnected);
  madeLines.forEach(([line, row]) => line.setAttribute("aria-selected", String(row === state.row)));
}

// --- start ----------------------------------------------------------------------------------------------------------

function redraw() {
  drawChart();
  if (state.row.bought) showLayers(state.row);
}

function listen() {
  byId("budget").addEventListener("input", (event) => choose(curve().rows[Number(event.target.value)]));
  byId("measure").addEventListener("change", (event) => {
    state.measure = data.measures[Number(event.target.value)];
    showAnswer(state.row);
    drawChart();
  });
  byId("colour").addEventListener("change", (event) => {
    state.axis = data.axes[Number(event.target.value)];
    drawChart();
  });
  byId("chart").on("plotly_click", ({ points }) => choose(rows[points[0].customdata]));
  watchCopy(byId("copy"), byId("command"));
}

function begin() {
  byId("title").textContent = data.title;
  byId("facts").textContent = data.facts;
  byId("failures-section").hidden = data.failures.length === 0;
  showItems(byId("failures"), data.failures);
  watchTheme(rows.length ? redraw : () => {});
  if (rows.length) beginRows();
  else document.querySelectorAll("main > :not(#failures-section)").forEach((part) => (part.hidden = true));
}

function beginRows() {
  fillSelect(byId("measure"), data.measures.map((measure) => measure.name));
  fillSelect(byId("colour"), data.axes.map((axis) => axis.name));
  byId("colour-control").hidden = data.axes.length < 2;
  makeAxisControls();
  const chosen = curves.map(firstRow);
  choose(chosen.find((row) => row.bought) ?? chosen[0]);
  makeTables();
  listen();
}

begin();
