// A plan's page.
"use strict";

const data = readData();
const layerTable = makeLayerTable(byId("layers"));

function showLedger({ lines, scopes, asked }) {
  const most = lines.reduce((found, line) => Math.max(found, line.bytes ?? 0), 1);
  const totals = scopes.map((scope) => totalLine(scope, scope.name === asked));
  byId("ledger").tBodies[0].replaceChildren(...lines.map((line) => ledgerLine(line, most)), ...totals);
}

function ledgerLine({ name, bytes, scopes, dense }, most) {
  return element(
    "tr",
    {},
    element("td", { textContent: words(name) }),
    element("td", { className: "number" }, barCell(Math.max(0, bytes ?? 0), most, bytesText(bytes))),
    element("td", { textContent: scopes.join(", ") }),
    element("td", { className: "number", textContent: denseText(dense, name === "saved_activations") }),
  );
}

function totalLine({ name, bytes, dense }, isAsked) {
  return element(
    "tr",
    { className: "total" },
    element("td", { textContent: `scope ${name}` }),
    element("td", { className: "number", textContent: bytesText(bytes) }),
    element("td", { textContent: isAsked ? "the budget's" : "" }),
    element("td", { className: "number", textContent: denseText(dense, false) }),
  );
}

const denseText = (bytes, isStarred) => (bytes === null ? "" : bytesText(bytes) + (isStarred ? "*" : ""));

function showSaved(rows) {
  const columns = [
    { name: "what", value: (row) => row[0] },
    { name: "saved", number: true, value: (row) => row[1], text: (row) => shareText(row[1], 2) },
    { name: "plan", number: true, value: (row) => row[2], text: (row) => amountText(row[2]) },
    { name: "all", number: true, value: (row) => row[3], text: (row) => amountText(row[3]) },
    { name: "unit", value: (row) => row[4] },
  ];
  new SortedTable(byId("saved"), columns).show(rows);
}

function begin() {
  ["title", "said", "detail"].forEach((name) => (byId(name).textContent = data[name]));
  byId("value-note").textContent = data.value_note;
  byId("ledger-note").textContent = data.ledger_note;
  byId("saved-note").textContent = data.saved_note;
  showTiles(byId("tiles"), data.tiles);
  showItems(byId("notes"), data.notes);
  showLedger(data.ledger);
  showSaved(data.saved);
  layerTable.show(data.layers);
  const draw = () => drawDepth(data.layers, data.names.length);
  watchTheme(draw);
  draw();
}

begin();
