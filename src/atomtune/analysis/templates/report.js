"use strict";
// An atom's row: rank, address, name, how much the answer changes without it, share of all that is added, share of the
// places it acts in, the atom it is a near duplicate of, evidence.
const atoms = JSON.parse(document.getElementById("atoms-data").textContent);
const [RANK, ADDRESS, NAME, CHANGE, SHARE, RATE, LIKE, EVIDENCE] = Array(8).keys();
const PAGE = 50;
const element = (id) => document.getElementById(id);
const percent = (share) => (share === 0 ? "0" : (100 * share).toPrecision(2) + "\u00a0%");
const anchor = (address) => address.replace("[", "-").replace("]", "");

// Heatmaps: one choice of phase for all cards.
for (const choice of document.querySelectorAll("input[name=phase]"))
  choice.addEventListener("change", () => { document.body.dataset.phase = choice.value; });

// Density: show the step the slider is at.
const dial = element("density-dial");
if (dial) {
  const steps = [...document.querySelectorAll(".density")];
  const turn = () => {
    steps.forEach((step, place) => { step.hidden = place !== Number(dial.value); });
    element("density-says").textContent = steps[dial.value].dataset.says;
    dial.setAttribute("aria-valuetext", steps[dial.value].dataset.says);
  };
  dial.addEventListener("input", turn);
  turn();
}

// The table: filter, sort, show a page at a time.
const body = document.querySelector(".sortable tbody");
const most = Math.max(...atoms.map((atom) => atom[CHANGE]));
let column = RANK, direction = 1, shown = PAGE;

const number = (address) => address.match(/\d+/g).map(Number);
function compare(a, b) {
  if (column === ADDRESS) {
    const [one, two] = [number(a[ADDRESS]), number(b[ADDRESS])];
    return direction * (one[0] - two[0] || one[1] - two[1]);
  }
  const [one, two] = [a[column], b[column]];
  const empty = (value) => value === "" || value === null;
  if (empty(one) || empty(two)) return empty(one) - empty(two) || a[RANK] - b[RANK]; // what is missing comes last
  return direction * (one > two ? 1 : one < two ? -1 : 0) || a[RANK] - b[RANK];
}

function cell(row, text, classes) {
  const made = row.insertCell();
  made.textContent = text;
  if (classes) made.className = classes;
  return made;
}

function show() {
  const words = element("find").value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = atoms.filter((atom) => {
    const text = `${atom[ADDRESS]} ${atom[NAME]}`.toLowerCase();
    return words.every((word) => text.includes(word)) && (!element("named").checked || atom[NAME])
      && (!element("once").checked || !atom[LIKE]);
  }).sort(compare);
  body.replaceChildren();
  for (const atom of found.slice(0, shown)) {
    const row = body.insertRow();
    cell(row, atom[RANK]);
    const address = cell(row, "");
    if (element(anchor(atom[ADDRESS]))) {
      const link = address.appendChild(document.createElement("a"));
      link.href = "#" + anchor(atom[ADDRESS]);
      link.textContent = atom[ADDRESS];
    } else address.textContent = atom[ADDRESS];
    const name = cell(row, atom[NAME] || "–");
    name.title = atom[EVIDENCE];
    if (atom[LIKE]) name.appendChild(document.createElement("small")).textContent = " like " + atom[LIKE];
    const change = cell(row, "");
    const text = change.appendChild(document.createElement("span"));
    text.className = "change";
    text.textContent = percent(atom[CHANGE]);
    const bar = document.createElement("i");
    bar.className = "share-bar";
    bar.style.setProperty("--part", (100 * atom[CHANGE]) / most + "%");
    change.prepend(bar);
    cell(row, percent(atom[SHARE]), "wide");
    cell(row, percent(atom[RATE]), "wide");
  }
  element("count").textContent = `${found.length.toLocaleString("en")} of ${atoms.length.toLocaleString("en")} atoms`;
  element("more").hidden = found.length <= shown;
}

for (const head of document.querySelectorAll(".sortable th"))
  head.firstElementChild.addEventListener("click", () => {
    const chosen = Number(head.dataset.column);
    const numeric = chosen !== RANK && chosen !== ADDRESS && chosen !== NAME;
    direction = chosen === column ? -direction : numeric ? -1 : 1;
    column = chosen;
    document.querySelectorAll(".sortable th").forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    show();
  });
for (const id of ["find", "named", "once"]) element(id).addEventListener("input", () => { shown = PAGE; show(); });
element("more").addEventListener("click", () => { shown += PAGE; show(); });

// The map: say which atom is under the pointer; press to find it in the table.
const byAddress = new Map(atoms.map((atom) => [atom[ADDRESS], atom]));
const columns = Number(document.querySelector(".map").dataset.columns);
function pointed(event) {
  const place = event.offsetX / event.target.clientWidth;
  const id = Math.min(columns - 1, Math.max(0, Math.floor(place * columns)));
  return byAddress.get(`L${event.target.dataset.layer}[${id}]`);
}
for (const layer of document.querySelectorAll(".maprow img")) {
  layer.addEventListener("pointermove", (event) => {
    const atom = pointed(event);
    if (atom) element("map-says").textContent = `${atom[ADDRESS]}: ${percent(atom[SHARE])} of all that is added, ${atom[NAME] || "no name"}`;
  });
  layer.addEventListener("click", (event) => {
    const atom = pointed(event);
    if (!atom) return;
    element("find").value = atom[ADDRESS];
    element("named").checked = element("once").checked = false;
    show();
    element("table").scrollIntoView();
  });
}

show();
