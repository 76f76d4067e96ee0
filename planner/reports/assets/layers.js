// Layers that train: bars of bytes along the network's depth, and their table. Needs page.js.
"use strict";

const LAYER_PARTS = [
  ["stored_bytes", "stored inputs"],
  ["gradient_bytes", "gradients"],
  ["optimizer_bytes", "optimizer state"],
  ["index_bytes", "draw index"],
];
const PART_SERIES = { "stored inputs": 4, gradients: 0, "optimizer state": 2, "draw index": 7 };
const partColour = (text) => colour(`series-${PART_SERIES[text]}`);

/** Bytes of the chosen layers among all there are, stacked, with their value. */
function drawDepth(layers, count) {
  const parts = LAYER_PARTS.filter(([part]) => layers.some((layer) => layer[part] > 0));
  const traces = [...parts.map((part) => partTrace(layers, part)), valueTrace(layers)];
  Plotly.react("depth", traces, depthLook(layers, count), CHART_CONFIG);
  const entries = parts.map(([, text]) => ({ text, kind: "block", colour: partColour(text) }));
  showLegend(byId("depth-legend"), [...entries, { text: "value", kind: "mark", mark: "◆", colour: colour("ink") }]);
  byId("depth").setAttribute("aria-label", "Bytes of each layer; the table below has the same figures.");
}

function partTrace(layers, [part, text]) {
  return {
    type: "bar",
    width: 0.85, // of one place, however few layers train
    x: layers.map((layer) => layer.place),
    y: layers.map((layer) => layer[part]),
    hovertext: layers.map(layerHover),
    hovertemplate: "%{hovertext}<extra></extra>",
    marker: { color: partColour(text) },
  };
}

function valueTrace(layers) {
  return {
    type: "scatter",
    mode: "markers",
    yaxis: "y2",
    x: layers.map((layer) => layer.place),
    y: layers.map((layer) => layer.value_share),
    hovertext: layers.map(layerHover),
    hovertemplate: "%{hovertext}<extra></extra>",
    marker: { symbol: "diamond", size: 8, color: colour("ink"), line: { color: colour("paper"), width: 1 } },
  };
}

function layerHover(layer) {
  const held = LAYER_PARTS.filter(([part]) => layer[part] > 0);
  const parts = held.map(([part, text]) => `${text}: ${bytesText(layer[part])}`);
  const channels = `${countText(layer.channels)} of ${countText(layer.in_channels)} channels`;
  const head = `<b>${plotText(clip(layer.name, 50))}</b>`;
  return [head, channels, ...parts, `value: ${shareText(layer.value_share, 2)}`].join("<br>");
}

function depthLook(layers, count) {
  const width = byId("depth").clientWidth;
  const most = layers.reduce((found, layer) => Math.max(found, layer.bytes), 1);
  const valuable = layers.reduce((found, layer) => Math.max(found, layer.value_share), 1e-4);
  const step = Math.max(1, Math.ceil(layers.length / (width / 26)));
  const named = width < NARROW ? [] : layers.filter((_, place) => place % step === 0);
  return chartLayout({
    barmode: "stack",
    bargap: 0.15,
    hovermode: "closest",
    margin: { l: 62, r: 52, t: 12, b: 40 },
    xaxis: {
      range: [-0.7, count - 0.3],
      tickvals: named.map((layer) => layer.place),
      ticktext: named.map((layer) => plotText(clip(layer.name, 24))),
      tickangle: -55,
      tickfont: { size: 11 },
      title: named.length ? {} : { text: "input → output" },
    },
    yaxis: { range: [0, most * 1.08], ...linearByteTicks(most) },
    yaxis2: {
      overlaying: "y",
      side: "right",
      range: [0, valuable * 1.08],
      tickformat: ".1~%",
      tickmode: "auto",
      nticks: 6,
      showgrid: false,
      zeroline: false,
    },
  });
}

const channelsText = (layer) => `${countText(layer.channels)} / ${countText(layer.in_channels)}`;

/** An empty table of layers, to be sorted by any column. */
function makeLayerTable(table) {
  return new SortedTable(table, [
    { name: "#", number: true, value: (layer) => layer.place + 1 },
    { name: "layer", className: "name", value: (layer) => layer.name },
    { name: "kind", value: (layer) => layer.kind },
    { name: "channels", number: true, value: (layer) => layer.channels, text: channelsText },
    number("stored inputs", "stored_bytes", bytesText),
    number("gradients", "gradient_bytes", bytesText),
    number("state", "optimizer_bytes", bytesText),
    number("bytes", "bytes", bytesText),
    number("value", "value_share", (share) => shareText(share, 2)),
  ]);
}
