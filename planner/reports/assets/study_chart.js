// The chart of a study: budgets against what they buy. It reads the choice that study.js keeps.
"use strict";

const DASHES = [["solid", "solid"], ["dash", "dashed"], ["dot", "dotted"]];
const MOST_MARKED = 3000;

function colourOf(found) {
  if (!state.axis) return seriesColour(0);
  const values = valuesOf(state.axis);
  return seriesColour(values.indexOf(found.values[state.axis.key]), values.length);
}

const dashAxis = () => data.axes.find((axis) => axis !== state.axis) ?? null;

function dashOf(found) {
  const axis = dashAxis();
  return DASHES[axis ? valuesOf(axis).indexOf(found.values[axis.key]) % DASHES.length : 0];
}

function drawChart() {
  const ordered = [...curves.filter((found) => found !== curve()), curve()];
  const traces = [frontTrace(), ...ordered.map(curveTrace), nothingTrace(), kneeTrace(), chosenTrace()];
  Plotly.react("chart", traces, chartLook(), CHART_CONFIG);
  showLegend(byId("legend"), legendEntries());
  byId("chart-note").textContent = chartNote();
  byId("chart").setAttribute("aria-label", `${state.measure.name} against budget; the slider above moves the mark.`);
}

function moveMark() {
  const { x, y, marker } = chosenTrace();
  const { shapes, annotations } = chartLook();
  Plotly.update("chart", { x: [x], y: [y], marker: [marker] }, { shapes, annotations }, [curves.length + 3]);
}

function curveTrace(found) {
  const shown = trains(found.rows);
  const isChosen = found.place === state.curve;
  const tint = colourOf(found);
  return {
    ...pointsOf(shown),
    mode: rows.length > MOST_MARKED && shown.length > 1 ? "lines" : "lines+markers",
    opacity: isChosen || curves.length < 4 ? 1 : 0.55,
    line: { color: tint, width: isChosen ? 3 : 1.5, dash: dashOf(found)[0] },
    marker: { color: tint, size: isChosen || shown.length === 1 ? 8 : 5 },
  };
}

function pointsOf(shown) {
  return {
    x: shown.map((row) => row.budget),
    y: shown.map((row) => (row.bought ? measureOf(row) : 0)),
    customdata: shown.map((row) => row.place),
    hovertext: shown.map(hoverText),
    hovertemplate: "%{hovertext}<extra></extra>",
    type: "scatter",
    cliponaxis: false,
  };
}

function frontTrace() {
  const shown = data.fronts[state.measure.key].map((place) => rows[place]);
  const line = { color: colour("series-4"), width: 11 };
  return { ...pointsOf(shown), mode: "lines", opacity: 0.3, line, hoverinfo: "skip", hovertemplate: null };
}

function nothingTrace() {
  const marker = { symbol: "x-thin", size: 9, line: { width: 2, color: colour("warning") } };
  return { ...pointsOf(rows.filter((row) => !row.bought)), mode: "markers", marker };
}

function kneeTrace() {
  const shown = curves.map((found) => kneeOf(found)).filter((row) => row !== undefined);
  const tints = shown.map((row) => colourOf(curves[row.curve]));
  const marker = { symbol: "diamond", size: 13, color: tints, line: { color: colour("paper"), width: 2 } };
  return { ...pointsOf(shown), mode: "markers", marker };
}

function chosenTrace() {
  const marker = { symbol: "circle-open", size: 17, color: colour("ink"), line: { width: 3 } };
  return { ...pointsOf([state.row]), mode: "markers", marker, hoverinfo: "skip", hovertemplate: null };
}

function hoverText(row) {
  const head = [`<b>${sizeText(row.budget)}</b>`, plotText(clip(curves[row.curve].label, 60))].filter((text) => text);
  return [head.join(" · "), ...(row.bought ? hoverLines(row) : hoverNothing(row))].join("<br>");
}

function hoverLines(row) {
  const ledger = ledgerLines(row).filter((line) => line.bytes);
  return [
    `${state.measure.name} ${shareText(measureOf(row))} · ${row.trained} of ${row.num_layers} layers`,
    ...ledger.map((line) => `${words(line.name)}: ${bytesText(line.bytes)}`),
    `<b>${curves[row.curve].scope}: ${bytesText(row.used_bytes)}</b>`,
  ];
}

function hoverNothing(row) {
  const needs = row.needed === null ? "could not be planned" : `trains nothing: needs ${sizeText(row.needed)}`;
  return [needs, plotText(clip(remedyText(row), 70))].filter((text) => text);
}

function ledgerLines(row) {
  const held = data.scopes[curves[row.curve].scope];
  const lines = data.lines.map((name, place) => ({ name, bytes: row.lines[place] }));
  return lines.filter((line) => held.includes(line.name));
}

function chartLook() {
  const budgets = rows.map((row) => row.budget);
  const [least, most] = [budgets.reduce((a, b) => Math.min(a, b)), budgets.reduce((a, b) => Math.max(a, b))];
  const ticks = byteTicks(budgets, byId("chart").clientWidth / 70);
  const pad = Math.max(0.05, 0.03 * Math.log10(most / least));
  const range = [Math.log10(least) - pad, Math.log10(most) + pad];
  return chartLayout({
    hovermode: "closest",
    xaxis: { type: "log", title: { text: "budget" }, tickvals: ticks, ticktext: ticks.map(sizeText), range },
    yaxis: { title: { text: state.measure.name }, tickformat: ".0%", rangemode: "tozero" },
    shapes: chartShapes(),
    annotations: chartNames(),
  });
}

function chartShapes() {
  const line = { color: colour("quiet"), width: 1, dash: "dot" };
  const across = { type: "line", xref: "paper", x0: 0, x1: 1, y0: data.target, y1: data.target, line };
  const budget = { type: "line", yref: "paper", y0: 0, y1: 1, x0: state.row.budget, x1: state.row.budget, line };
  return data.target !== null && state.measure.key === "rgn_reached" ? [budget, across] : [budget];
}

function chartNames() {
  const name = { showarrow: false, yref: "paper", y: 1, yanchor: "bottom", font: { size: 13, color: colour("ink") } };
  return [{ ...name, x: Math.log10(state.row.budget), text: `<b>${sizeText(state.row.budget)}</b>` }];
}

function legendEntries() {
  const values = state.axis ? valuesOf(state.axis) : [];
  const texts = values.map((value) => clip(valueText(state.axis, value), 48));
  const entries = texts.map((text, place) => ({ text, colour: seriesColour(place, texts.length) }));
  const axis = dashAxis();
  if (axis) entries.push(...valuesOf(axis).map((value, place) => dashEntry(valueText(axis, value), place)));
  if (data.fronts[state.measure.key].length > 1) {
    entries.push({ text: "Pareto front", colour: colour("series-4"), kind: "halo" });
  }
  const mark = (text, sign, name) => entries.push({ text, mark: sign, kind: "mark", colour: colour(name) });
  if (curves.some((found) => kneeOf(found))) mark("knee", "◆", "ink");
  if (rows.some((row) => !row.bought)) mark("trains nothing", "✕", "warning");
  return entries;
}

function dashEntry(text, place) {
  return { text: clip(text, 48), colour: colour("quiet"), dash: DASHES[place % DASHES.length][1] };
}

function chartNote() {
  const { name, whole, what } = state.measure;
  const hidden = data.axes.length > 2 ? " Hover to tell apart lines that look alike." : "";
  return `${name[0].toUpperCase()}${name.slice(1)}: the share ${whole} ${what}. `
    + `Choose a point with a click, or move the slider.${hidden}`;
}
