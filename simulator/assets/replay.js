// A replay's page: one measure is chosen; below it one step, moment by moment.
"use strict";

const data = readData();
const epochs = Array.from({ length: data.epochs }, (_, place) => place + 1);
const state = { measure: data.measures.find(({ key }) => key === "rgn_reached") ?? data.measures[0] };
const MOST_THEORY = 12;
const SUMMARY = ["rgn_reached", "channels_reached", "waiting_time", "captured_share", "running_cosine", "used_bytes"];
const TEXTS = {
  bytes: bytesText,
  count: amountText,
  number: (value) => value.toFixed(3),
  share: (value) => shareText(value, 2),
};

const textOf = (value) => (value === null ? "–" : TEXTS[state.measure.unit](value));

/** A colour of the page that lets what is behind shine through. */
const faint = (tint) => tint.replace("rgb(", "rgba(").replace(")", ", 0.18)");

// --- epoch by epoch -------------------------------------------------------------------------------------------------

function drawCourse() {
  const traces = data.policies.flatMap((policy, place) => policyTraces(policy, seriesColour(place)));
  Plotly.react("course", traces, courseLook(), CHART_CONFIG);
  showLegend(byId("course-legend"), courseLegend());
  byId("course-note").textContent = `${sentence(words(state.measure.key))}: ${state.measure.what}.`;
  const label = `${words(state.measure.key)} by epoch; the table has the last or mean values.`;
  byId("course").setAttribute("aria-label", label);
}

const sentence = (text) => text[0].toUpperCase() + text.slice(1);

function policyTraces(policy, tint) {
  const { mean, low, high, theory } = policy.series[state.measure.key];
  const edge = { x: epochs, type: "scatter", mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
  const band = [{ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: faint(tint) }];
  const hovertext = epochs.map((_, place) => courseHover(policy, place));
  const hovertemplate = "%{hovertext}<extra></extra>";
  const mode = epochs.length === 1 ? "markers" : "lines";
  const look = { line: { color: tint, width: 2.5 }, marker: { color: tint, size: 9 } };
  const course = { x: epochs, y: mean, type: "scatter", mode, ...look, hovertext, hovertemplate };
  return [...band, course, ...theoryTraces(theory, tint)];
}

function theoryTraces(theory, tint) {
  if (theory === null) return [];
  const step = Math.max(1, Math.floor(epochs.length / MOST_THEORY));
  const places = epochs.map((_, place) => place).filter((place) => place % step === 0 && theory[place] !== null);
  const marker = { symbol: "circle-open", size: 8, color: tint, line: { width: 2 } };
  const [x, y] = [places.map((place) => epochs[place]), places.map((place) => theory[place])];
  return [{ x, y, type: "scatter", mode: "markers", marker, hoverinfo: "skip" }];
}

function courseHover(policy, place) {
  const { mean, low, high, theory } = policy.series[state.measure.key];
  const closed = theory === null || theory[place] === null ? [] : [`closed form: ${textOf(theory[place])}`];
  return [
    `<b>${plotText(policy.name)}</b>, epoch ${epochs[place]}`,
    `mean: ${textOf(mean[place])}`,
    `5 to 95 %: ${textOf(low[place])} to ${textOf(high[place])}`,
    ...closed,
  ].map((line) => line.replaceAll("< ", "&lt; ")).join("<br>");
}

function courseLook() {
  const { unit, key } = state.measure;
  const highest = Math.max(0, ...data.policies.flatMap((policy) => policy.series[key].high));
  const ticks = { bytes: linearByteTicks(highest), share: { tickformat: ".0~%" } }[unit] ?? { tickformat: "~s" };
  return chartLayout({
    hovermode: "closest",
    xaxis: { title: { text: "epoch" }, nticks: 8 },
    yaxis: { title: { text: words(key) }, rangemode: key === "cosine" ? "normal" : "tozero", ...ticks },
  });
}

function courseLegend() {
  const policies = data.policies.map(({ name }, place) => ({ text: name, colour: seriesColour(place) }));
  const band = { text: "5 to 95 % of the trials", kind: "halo", colour: colour("quiet") };
  const closed = { text: "closed form", kind: "mark", mark: "○", colour: colour("quiet") };
  const hasTheory = data.policies.some((policy) => policy.series[state.measure.key].theory !== null);
  return [...policies, band, ...(hasTheory ? [closed] : [])];
}

// --- policies compared ----------------------------------------------------------------------------------------------

function showSummary() {
  const known = data.measures.map((measure) => measure.key);
  const measures = SUMMARY.filter((key) => known.includes(key)).map((key) => ({
    name: words(key), number: true, value: (policy) => policy.shown[key][0], text: (policy) => policy.shown[key][1],
  }));
  const columns = [
    { name: "policy", value: (policy) => policy.name },
    { name: "layers", number: true, value: (policy) => policy.eligible },
    ...measures,
    number("highest use", "highest", bytesText),
  ];
  new SortedTable(byId("summary"), columns).show(data.policies);
  byId("summary-note").textContent = "RGN and channels reached and the running cosine are those of the last epoch; "
    + "waiting time, captured share and used bytes are means over the epochs.";
}

// --- one step -------------------------------------------------------------------------------------------------------

function drawStep() {
  const { parts, moments } = data.timeline;
  const traces = parts.map(([name, tint], place) => partArea(moments, name, colour(`series-${tint}`), place));
  Plotly.react("step", traces, stepLook(), CHART_CONFIG);
  const entries = parts.map(([name, tint]) => ({ text: words(name), kind: "block", colour: colour(`series-${tint}`) }));
  showLegend(byId("step-legend"), entries);
  byId("step").setAttribute("aria-label", data.timeline.said);
}

function partArea(moments, name, tint, place) {
  return {
    x: moments.map((_, moment) => moment),
    y: moments.map((moment) => moment[2 + place]),
    type: "bar",
    marker: { color: tint, line: { width: 0 } },
    hovertext: moments.map(momentHover),
    hovertemplate: "%{hovertext}<extra></extra>",
  };
}

const totalOf = ([, , ...bytes]) => sum(bytes);

function momentHover(moment) {
  const [kind, name, ...bytes] = moment;
  const lines = data.timeline.parts.map(([part], place) => [part, bytes[place]]).filter(([, held]) => held !== 0);
  const head = `<b>${plotText(clip(name, 50))}</b> (${kind})`;
  const texts = lines.reverse().map(([part, held]) => `${words(part)}: ${bytesText(held)}`);
  return [head, ...texts, `<b>all: ${bytesText(totalOf(moment))}</b>`].join("<br>");
}

function stepLook() {
  const { moments, peak } = data.timeline;
  const most = totalOf(moments[peak]);
  return chartLayout({
    barmode: "stack",
    bargap: 0,
    hovermode: "closest",
    xaxis: {
      showticklabels: false,
      showgrid: false,
      title: { text: "operations in order" },
      range: [-1, moments.length],
    },
    yaxis: { title: { text: "live bytes" }, range: [0, most * 1.12], ...linearByteTicks(most) },
    annotations: [peakNote(peak, most), ...phaseNotes(moments)],
    shapes: phaseShapes(moments),
  });
}

function peakNote(peak, most) {
  const right = peak > data.timeline.moments.length / 2;
  const text = `<b>peak ${bytesText(most)}</b>`;
  const side = right ? { ax: -14, xanchor: "right" } : { ax: 14, xanchor: "left" };
  return { x: peak, y: most, text, showarrow: true, ay: -12, arrowcolor: colour("ink"), ...side };
}

const phaseOf = ([kind]) => ({ forward: "forward", recording: "forward", optimizer: "optimizer" })[kind] ?? "backward";

/** Phases as `[name, first, last]`. */
function phasesOf(moments) {
  const found = [];
  moments.forEach((moment, place) => {
    const phase = phaseOf(moment);
    if (found.at(-1)?.[0] === phase) found.at(-1)[2] = place;
    else found.push([phase, place, place]);
  });
  return found;
}

/** The names of the phases; the optimizer is too short for its name where the window is narrow. */
function phaseNotes(moments) {
  const look = { yref: "paper", y: 1, yanchor: "bottom", showarrow: false, font: { size: 12, color: colour("quiet") } };
  const named = phasesOf(moments).filter(([text]) => text !== "optimizer" || innerWidth > NARROW);
  return named.map(([text, first, last]) => {
    const isLast = text === "optimizer";
    return { ...look, text, x: isLast ? last : (first + last) / 2, xanchor: isLast ? "right" : "center" };
  });
}

function phaseShapes(moments) {
  const line = { color: colour("quiet"), width: 1, dash: "dot" };
  const begins = phasesOf(moments).slice(1).map(([, first]) => first - 0.5);
  return begins.map((x) => ({ type: "line", yref: "paper", y0: 0, y1: 1, x0: x, x1: x, line }));
}

// --- start ----------------------------------------------------------------------------------------------------------

function draw() {
  drawCourse();
  if (data.timeline) drawStep();
}

function begin() {
  ["title", "said", "detail"].forEach((name) => (byId(name).textContent = data[name]));
  fillSelect(byId("measure"), data.measures.map(({ key }) => words(key)), data.measures.indexOf(state.measure));
  byId("measure").addEventListener("change", (event) => {
    state.measure = data.measures[Number(event.target.value)];
    drawCourse();
  });
  showSummary();
  showItems(byId("notes"), data.notes);
  byId("step-section").hidden = data.timeline === null;
  if (data.timeline) byId("step-said").textContent = data.timeline.said;
  watchTheme(draw);
  draw();
}

begin();
