"use strict";
// A place is an index into a map: text tokens, regions, [END]. `null` as a layer or head is the mean over all.

const CATEGORY10 = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];
const FILTERS = {ab: "Text → RoIs", ba: "RoIs → Text", aa: "Text → Text", bb: "RoIs → RoIs", all: "All"};
const DIRECTIONS = {to: "looks at", from: "is seen by"};
const THUMBNAIL = {width: 64, height: 92}; // pixels
const FAINT = 0.004; // strengths below it would not be seen
const FRAME_BUDGET = 8; // milliseconds of drawing per frame
const ROWS = 6; // of the table

const data = JSON.parse(document.getElementById("data").textContent);
const names = [...data.tokens, ...data.labels, "[END]"];
const size = names.length;
const firstRegion = data.tokens.length;
const everything = names.map((_, place) => place);
const SIDES = {a: data.words, b: data.regions};
const WEIGHTS = Float32Array.from({length: 256}, (_, code) => (code / 255) ** 2);

const state = {
  layer: null,
  head: null,
  filter: null,
  rescale: {ab: true, ba: true, aa: true, bb: true, all: false},
  threshold: 0,
  direction: "to",
  pointed: null, // {place, side} under the mouse, with the keyboard's focus, or chosen by a click
  focused: null,
  pinned: null,
};
const find = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// ---- Weights

let codes; // one byte per weight, its square root in 255 steps

async function decodeWeights() {
  const packed = Uint8Array.from(atob(data.weights), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  codes = new Uint8Array(await new Response(stream).arrayBuffer());
}

const means = new Map();

/** (size * size) weights of a head, or their mean over heads or over all. */
function weightsOf(layer, head) {
  if (head !== null) {
    const begin = (layer * data.heads + head) * size * size;
    return Float32Array.from(codes.subarray(begin, begin + size * size), (code) => WEIGHTS[code]);
  }
  if (!means.has(layer)) {
    const [begin, end] = layer === null ? [0, data.layers * data.heads] : [layer * data.heads, (layer + 1) * data.heads];
    const mean = new Float32Array(size * size);
    for (let map = begin; map < end; map++)
      for (let at = 0; at < mean.length; at++) mean[at] += WEIGHTS[codes[map * size * size + at]] / (end - begin);
    means.set(layer, mean);
  }
  return means.get(layer);
}

const sides = (filter) => (filter === "all" ? [everything, everything] : [SIDES[filter[0]], SIDES[filter[1]]]);

/** Smallest and largest weight of a block. */
function extent(weights, left, right, range = [Infinity, -Infinity]) {
  for (const from of left)
    for (const to of right) {
      const weight = weights[from * size + to];
      if (weight < range[0]) range[0] = weight;
      if (weight > range[1]) range[1] = weight;
    }
  return range;
}

const ranges = new Map();

/** What strength 0 and 1 stand for: 0 and 1, or the extremes of a layer's block over its heads, of a mean its own. */
function range(layer, head) {
  const {filter} = state;
  if (!state.rescale[filter]) return [0, 1];
  const key = [filter, layer, head === null].join();
  if (!ranges.has(key)) {
    const found = [Infinity, -Infinity];
    const heads = head === null ? [null] : Array.from({length: data.heads}, (_, index) => index);
    for (const one of heads) extent(weightsOf(layer, one), ...sides(filter), found);
    ranges.set(key, found);
  }
  return ranges.get(key);
}

/** Strengths 0 to 1, row by row, of the block that the filter shows; 0 below the threshold. */
function strengths(layer, head) {
  const [left, right] = sides(state.filter);
  const weights = weightsOf(layer, head);
  const [low, high] = range(layer, head);
  const found = new Float32Array(left.length * right.length);
  left.forEach((from, i) => right.forEach((to, j) => {
    const strength = (weights[from * size + to] - low) / (high - low || 1);
    found[i * right.length + j] = strength >= state.threshold ? strength : 0;
  }));
  return found;
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const percent = (weight) => {
  const value = 100 * weight;
  return value >= 9.95 ? `${value.toFixed(0)} %` : value >= 0.05 ? `${value.toFixed(1)} %` : "< 0.1 %";
};
const selectionName = (layer, head) => (
  layer === null ? "Mean of all heads" : head === null ? `Layer ${layer}, mean of its heads` : `Layer ${layer}, Head ${head}`
);
const layerColour = (layer) => (layer === null ? getComputedStyle(document.body).getPropertyValue("--accent") : CATEGORY10[layer % 10]);

// ---- The grid of thumbnails

const cells = [];
let turn = 0;

const thickness = (rows, columns) => clamp(Math.round(THUMBNAIL.height / Math.max(rows, columns) / 2), 1, 3);

/** Adds up all lines of a block, column of pixels by column: constant work per line, whatever overlaps. */
function sumLines(found, rows, columns) {
  const {width, height} = THUMBNAIL;
  const ink = new Float32Array(width * height);
  const thick = thickness(rows, columns);
  const run = height - thick;
  for (let link = 0; link < found.length; link++) {
    const strength = found[link];
    if (strength < FAINT) continue;
    const begin = ((Math.floor(link / columns) + 0.5) / rows) * run;
    const slope = (((link % columns) + 0.5) / columns * run - begin) / width;
    for (let x = 0; x < width; x++) {
      const y = begin + slope * x;
      const row = y | 0;
      let at = row * width + x;
      ink[at] += strength * (1 - y + row);
      for (let more = 1; more < thick; more++) ink[at += width] += strength;
      ink[at + width] += strength * (y - row);
    }
  }
  return ink;
}

function drawThumbnail({canvas, layer, head}) {
  const [left, right] = sides(state.filter);
  const ink = sumLines(strengths(layer, head), left.length, right.length);
  const overlap = left.length * right.length * thickness(left.length, right.length) / THUMBNAIL.height;
  const gain = 2.4 / Math.sqrt(Math.max(1, overlap / 4)); // many lines would else be one plain patch
  const pixels = new ImageData(THUMBNAIL.width, THUMBNAIL.height);
  const colour = parseInt(CATEGORY10[layer % 10].slice(1), 16);
  for (let at = 0; at < ink.length; at++) {
    pixels.data[4 * at] = colour >> 16;
    pixels.data[4 * at + 1] = (colour >> 8) & 255;
    pixels.data[4 * at + 2] = colour & 255;
    pixels.data[4 * at + 3] = 255 * (1 - Math.exp(-gain * ink[at])); // lines over lines, as paint
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Draws all thumbnails, some per frame, so that the page answers meanwhile. */
function drawGrid() {
  const mine = ++turn;
  const waiting = [...cells];
  let busy = 0;
  delete find("grid").dataset.milliseconds;
  const some = () => {
    if (mine !== turn) return;
    const begin = performance.now();
    while (waiting.length && performance.now() - begin < FRAME_BUDGET) drawThumbnail(waiting.shift());
    busy += performance.now() - begin;
    if (waiting.length) requestAnimationFrame(some);
    else find("grid").dataset.milliseconds = busy.toFixed(0);
  };
  requestAnimationFrame(some);
}

function buildGrid() {
  const grid = find("grid");
  grid.style.setProperty("--heads", data.heads);
  const titles = element("div", {role: "row"}, element("span", {role: "columnheader", "aria-label": "Layer"}));
  titles.append(element("span", {role: "columnheader"}, "mean"));
  for (let head = 0; head < data.heads; head++) titles.append(element("span", {role: "columnheader"}, head));
  grid.append(titles);
  for (let layer = 0; layer < data.layers; layer++) {
    const row = element("div", {role: "row"}, element("span", {role: "rowheader"}, layer));
    for (let head = -1; head < data.heads; head++) {
      const cell = {layer, head: head < 0 ? null : head};
      cell.canvas = element("canvas", THUMBNAIL);
      cell.button = element("button", {type: "button", role: "gridcell", "aria-label": selectionName(layer, cell.head), title: selectionName(layer, cell.head)}, cell.canvas);
      cell.button.addEventListener("click", () => {
        select(cell.layer, cell.head);
        if (find("detail").getBoundingClientRect().top > 0.6 * innerHeight) find("detail").scrollIntoView();
      });
      cells.push(cell);
      row.append(cell.button);
    }
    grid.append(row);
  }
  rove(grid, data.heads + 1);
}

// ---- One head in detail

let rowHeight = 20;

/** Labels of both sides of the filter; a short side spreads out and is centred where that is still in view. */
function buildDetail() {
  const [left, right] = sides(state.filter);
  const longest = Math.max(left.length, right.length);
  rowHeight = clamp(Math.floor(640 / longest), 13, 28);
  const [from, to] = FILTERS[state.filter].split(" → ");
  find("left-title").textContent = to ? from : "From";
  find("right-title").textContent = to ?? "To";
  for (const [side, places] of [["left", left], ["right", right]]) {
    const labels = places.map((place) => {
      const label = placeButton(place, side, "label");
      label.style.height = `${pitch(places)}px`;
      return label;
    });
    find(side).replaceChildren(...labels);
    find(side).style.paddingTop = `${offset(places)}px`;
    find(side).style.fontSize = `${Math.min(13, rowHeight - 2)}px`;
    
    rove(find(side), 1);
  }
}

const detailHeight = () => Math.max(...sides(state.filter).map((places) => places.length)) * rowHeight;
const pitch = (places) => Math.min(detailHeight() / places.length, 2 * rowHeight);
const offset = (places) => (detailHeight() > 720 ? 0 : (detailHeight() - pitch(places) * places.length) / 2);

/** The strength of each link of the block, 0 for those that the current place leaves out. */
function currentLinks() {
  const [left, right] = sides(state.filter);
  const found = strengths(state.layer, state.head);
  const current = currentPlace();
  if (current === null) return found;
  const i = left.indexOf(current.place);
  const j = right.indexOf(current.place);
  if (i < 0 && j < 0) return found;
  const toward = directionOf(current) === "to";
  return found.map((strength, at) => ((toward ? Math.floor(at / right.length) === i : at % right.length === j) ? strength : 0));
}

/** Shows at the labels what the lines show, when there are only those of the current place. */
function markLabels(left, right, found) {
  const current = currentPlace();
  const byPlace = {left: new Float32Array(left.length), right: new Float32Array(right.length)};
  if (current !== null && left.length * right.length > 0) {
    found.forEach((strength, at) => {
      const [i, j] = [Math.floor(at / right.length), at % right.length];
      byPlace.left[i] = Math.max(byPlace.left[i], strength);
      byPlace.right[j] = Math.max(byPlace.right[j], strength);
    });
  }
  for (const side of ["left", "right"]) {
    [...find(side).children].forEach((label, at) => {
      const isCurrent = current !== null && Number(label.dataset.place) === current.place;
      label.style.setProperty("--strength", isCurrent ? 0 : byPlace[side][at].toFixed(3));
      label.classList.toggle("current", isCurrent);
    });
  }
}

function drawDetail() {
  const [left, right] = sides(state.filter);
  const canvas = find("lines");
  const {width} = canvas.getBoundingClientRect();
  const height = detailHeight();
  const density = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  const context = canvas.getContext("2d");
  context.scale(density, density);
  context.lineWidth = Math.min(2, rowHeight / 8);
  context.strokeStyle = layerColour(state.layer);
  const found = currentLinks();
  markLabels(left, right, found);
  for (let at = 0; at < found.length; at++) {
    if (found[at] < FAINT) continue;
    const from = offset(left) + (Math.floor(at / right.length) + 0.5) * pitch(left);
    const to = offset(right) + ((at % right.length) + 0.5) * pitch(right);
    context.globalAlpha = Math.min(1, found[at]);
    context.beginPath();
    context.moveTo(0, from);
    context.bezierCurveTo(width / 2, from, width / 2, to, width, to);
    context.stroke();
  }
}

// ---- Picture, text and table

const marked = []; // {node, place}: everything that shows the strength of a place
const chips = new Map(); // place -> its chip

function placeButton(place, side, kind) {
  const special = !data.words.includes(place) && !data.regions.includes(place);
  const button = element("button", {type: "button", class: `${kind}${special ? " special" : ""}`, "data-place": place});
  const box = place >= firstRegion && place < size - 1 && !special;
  if (box) {
    button.style.setProperty("--hue", hue(place));
    button.classList.add("region-name");
  }
  button.append(names[place]);
  button.title = names[place];
  const here = {place, side};
  listen(button, here);
  button.addEventListener("focus", () => {
    if (button.matches(":focus-visible")) point("focused", here);
  });
  button.addEventListener("blur", () => point("focused", null));
  return button;
}

function listen(node, here) {
  node.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && point("pointed", here));
  node.addEventListener("pointerleave", () => point("pointed", null));
  node.addEventListener("click", () => {
    const same = state.pinned && state.pinned.place === here.place && state.pinned.side === here.side;
    point("pinned", same ? null : here);
  });
}

const hue = (place) => Math.round(((place - firstRegion) * 137.5 + 210) % 360);
const boxOf = (place) => data.boxes[place - firstRegion];

function buildPicture() {
  const [width, height] = data.size;
  const picture = find("picture");
  picture.hidden = !(width > 0 && height > 0) || (!data.image && !data.regions.length);
  if (picture.hidden) return;
  picture.style.setProperty("--ratio", width / height);
  if (data.image) picture.append(element("img", {src: data.image, alt: ""}));
  else picture.classList.add("blank");
  picture.append(element("canvas", {id: "shade", width: 400, height: Math.max(1, Math.round((400 * height) / width))}));
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const ordered = [...data.regions].sort((one, other) => area(boxOf(other)) - area(boxOf(one))); // small ones on top
  picture.classList.toggle("many", ordered.length > 16);
  for (const place of ordered) {
    const [x1, y1, x2, y2] = boxOf(place);
    const tag = element("span", {}, number(place));
    const box = element("div", {class: "box", title: names[place], "data-place": place}, tag);
    box.style.setProperty("--hue", hue(place));
    Object.assign(box.style, {
      left: `${(100 * x1) / width}%`,
      top: `${(100 * y1) / height}%`,
      width: `${(100 * (x2 - x1 + 1)) / width}%`,
      height: `${(100 * (y2 - y1 + 1)) / height}%`,
    });
    listen(box, {place, side: null});
    marked.push({node: box, place, tag});
    picture.append(box);
  }
}

/** The number that a label starts with, else the region's own. */
const number = (place) => /^\d+/.exec(names[place])?.[0] ?? String(place - firstRegion + 1);

function buildChips() {
  for (const place of everything) {
    const chip = placeButton(place, null, "chip");
    if (names[place].startsWith("##")) chip.classList.add("piece");
    chip.setAttribute("aria-pressed", "false");
    find(place < firstRegion ? "words" : "regions").append(chip);
    marked.push({node: chip, place});
    chips.set(place, chip);
  }
  for (const id of ["words", "regions"]) {
    rove(find(id), 1);
    find(id).classList.toggle("dense", find(id).children.length > 30);
  }
}

const currentPlace = () => state.pointed ?? state.focused ?? state.pinned;
const directionOf = ({side}) => (side === "left" ? "to" : side === "right" ? "from" : state.direction);

/** The weight of every place for a current one: its row, or its column. */
function lookOf(current) {
  const weights = weightsOf(state.layer, state.head);
  const toward = directionOf(current) === "to";
  return Float32Array.from(names, (_, other) => weights[toward ? current.place * size + other : other * size + current.place]);
}

/** Strengths on picture and text, relative to the strongest word or region: [SEP] and its like often take most. */
function lights(look) {
  const top = Math.max(1e-9, ...[...data.words, ...data.regions].map((place) => look[place]));
  return look.map((weight) => (weight / top >= state.threshold ? Math.min(1, weight / top) : 0));
}

function drawReading() {
  const current = currentPlace();
  const look = current && lookOf(current);
  const lit = current && lights(look);
  find("reading").classList.toggle("asked", current !== null);
  for (const {node, place, tag} of marked) {
    node.style.setProperty("--strength", lit ? lit[place].toFixed(3) : 0);
    node.classList.toggle("current", current !== null && place === current.place);
    node.classList.toggle("bright", lit !== null && lit[place] >= 0.25);
    if (tag) tag.textContent = lit && lit[place] >= 0.25 ? `${number(place)} · ${percent(look[place])}` : number(place);
  }
  for (const [place, chip] of chips) {
    chip.setAttribute("aria-pressed", String(state.pinned !== null && state.pinned.place === place));
  }
  drawShade(current, lit);
  drawTable(current, look, lit);
}

/** Darkens the picture except where it is looked at. */
function drawShade(current, lit) {
  const shade = find("shade");
  if (!shade) return;
  const context = shade.getContext("2d");
  context.globalCompositeOperation = "source-over";
  context.globalAlpha = 1;
  context.clearRect(0, 0, shade.width, shade.height);
  if (current === null) return;
  context.fillStyle = "rgb(10 10 14 / 68%)";
  context.fillRect(0, 0, shade.width, shade.height);
  context.globalCompositeOperation = "destination-out";
  context.fillStyle = "#000";
  for (const place of data.regions) {
    const scale = [shade.width / data.size[0], shade.height / data.size[1]];
    const [x1, y1, x2, y2] = boxOf(place).map((value, at) => (value + (at > 1 ? 1 : 0)) * scale[at % 2]); // the last pixel is inside
    context.globalAlpha = place === current.place ? 1 : lit[place];
    context.fillRect(x1, y1, x2 - x1, y2 - y1);
  }
}

/** The strongest places of the current one, else the strongest links of the block that the filter shows. */
function drawTable(current, look, lit) {
  const where = selectionName(state.layer, state.head);
  let rows;
  if (current) {
    const way = directionOf(current);
    find("question").replaceChildren(element("b", {}, names[current.place]), ` ${DIRECTIONS[way]}`, element("small", {}, where));
    rows = everything.filter((place) => lit[place] > 0).map((place) => [[place], look[place]]);
    const sum = (places) => percent(places.reduce((total, place) => total + look[place], 0));
    const rest = everything.filter((place) => !data.words.includes(place) && !data.regions.includes(place));
    find("shares").textContent = way === "to"
      ? `Words ${sum(data.words)}, regions ${sum(data.regions)}, other places ${sum(rest)}`
      : "";
  } else {
    find("question").replaceChildren(element("b", {}, "Strongest links"), ` ${FILTERS[state.filter]}`, element("small", {}, where));
    const [left, right] = sides(state.filter);
    const weights = weightsOf(state.layer, state.head);
    const found = strengths(state.layer, state.head);
    rows = left.flatMap((from, i) => right.map((to, j) => [[from, to], found[i * right.length + j] && weights[from * size + to]]));
    find("shares").textContent = "Point at a word or a region to see what it looks at.";
  }
  rows = rows.filter(([, weight]) => weight > 0).sort((one, other) => other[1] - one[1]).slice(0, ROWS);
  const largest = rows.length ? rows[0][1] : 1;
  find("answers").replaceChildren(...rows.map(([places, weight]) => {
    const value = element("td", {}, percent(weight));
    value.style.setProperty("--share", weight / largest);
    return element("tr", {}, element("th", {scope: "row"}, ...places.flatMap((place, at) => (at ? [" → ", name(place)] : [name(place)]))), value);
  }));
  while (find("answers").children.length < ROWS) find("answers").append(element("tr", {"aria-hidden": "true"}, element("th", {}, "\u00a0"), element("td")));
}

function name(place) {
  const made = element("span", {class: "name"}, names[place]);
  if (data.regions.includes(place)) {
    made.classList.add("region-name");
    made.style.setProperty("--hue", hue(place));
  }
  return made;
}

/** Says for a screen reader what a chosen place looks at. */
function speak() {
  const current = state.focused ?? state.pinned;
  if (!current) return;
  const look = lookOf(current);
  const top = [...everything].sort((one, other) => look[other] - look[one]).slice(0, 3);
  find("spoken").textContent = `${names[current.place]} ${DIRECTIONS[directionOf(current)]} ${top.map((place) => `${names[place]} ${percent(look[place])}`).join(", ")}`;
}

// ---- Controls

/** One tab stop for a group of buttons; arrow keys, Home and End move inside it. Of a grid, rows do not run over. */
function rove(group, columns) {
  const buttons = () => [...group.querySelectorAll("button")];
  const stop = (chosen) => buttons().forEach((button) => { button.tabIndex = button === chosen ? 0 : -1; });
  stop(buttons()[0]);
  if (group.dataset.roves) return;
  group.dataset.roves = "yes";
  group.addEventListener("focusin", (event) => stop(event.target));
  group.addEventListener("keydown", (event) => {
    const all = buttons();
    const at = all.indexOf(event.target);
    const begin = columns > 1 ? at - (at % columns) : 0;
    const end = columns > 1 ? begin + columns - 1 : all.length - 1;
    const next = {
      ArrowRight: Math.min(at + 1, end), ArrowLeft: Math.max(at - 1, begin),
      ArrowDown: at + columns, ArrowUp: at - columns, Home: begin, End: end,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    all[next]?.focus();
  });
}

/** Radio buttons, drawn as pills. */
function choices(id, options, chosen, disabled, choose) {
  for (const [value, title] of Object.entries(options)) {
    const radio = element("input", {type: "radio", name: id, value, ...(value === chosen && {checked: ""}), ...(disabled(value) && {disabled: ""})});
    radio.addEventListener("change", () => choose(value));
    find(id).append(element("label", {}, radio, element("span", {}, title)));
  }
}

let asked = false;

/** Draws what depends on the current place once per frame. */
function refresh() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    drawReading();
    drawDetail();
  });
}

function point(how, here) {
  state[how] = here;
  if (how !== "pointed") speak();
  refresh();
}

function select(layer, head) {
  Object.assign(state, {layer, head: layer === null ? null : head});
  find("layer").value = state.layer ?? "";
  find("head").value = state.head ?? "";
  find("head").disabled = state.layer === null;
  find("detail-title").textContent = selectionName(state.layer, state.head);
  for (const cell of cells) {
    cell.button.setAttribute("aria-selected", String(cell.layer === state.layer && cell.head === state.head));
  }
  describe();
  refresh();
}

function describe() {
  find("lines").setAttribute("aria-label", `${FILTERS[state.filter]}, ${selectionName(state.layer, state.head)}: lines as strong as the weights; the table has the strongest`);
}

function setFilter(filter) {
  state.filter = filter;
  find("rescale").checked = state.rescale[filter];
  buildDetail();
  describe();
  redraw();
}

function setThreshold() {
  state.threshold = Number(find("threshold").value);
  find("least").textContent = state.threshold.toFixed(2);
}

function redraw() {
  drawGrid();
  refresh();
}

function buildControls() {
  const number = (node) => (node.value === "" ? null : Number(node.value));
  for (const [id, count, mean] of [["layer", data.layers, "all"], ["head", data.heads, "mean"]]) {
    find(id).append(element("option", {value: ""}, mean), ...Array.from({length: count}, (_, at) => element("option", {value: at}, at)));
    find(id).addEventListener("change", () => select(number(find("layer")), number(find("head"))));
  }
  const empty = (filter) => sides(filter).some((places) => !places.length);
  const first = Object.keys(FILTERS).find((filter) => !empty(filter));
  choices("filter", FILTERS, first, empty, setFilter);
  choices("direction", DIRECTIONS, state.direction, () => false, (direction) => {
    state.direction = direction;
    refresh();
  });
  find("threshold").addEventListener("input", () => {
    setThreshold();
    redraw();
  });
  find("rescale").addEventListener("change", () => {
    state.rescale[state.filter] = find("rescale").checked;
    redraw();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (state.pinned) point("pinned", null);
    else select(null, null);
  });
  window.addEventListener("resize", refresh);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  setThreshold();
  return first;
}

async function start() {
  if (!("DecompressionStream" in window)) {
    find("facts").textContent = "This browser is too old for this page: it has no DecompressionStream. Chrome 80, Firefox 113, Safari 16.4 and later ones have it.";
    document.querySelector("main").hidden = true;
    return;
  }
  await decodeWeights();
  find("name").textContent = data.name;
  find("facts").textContent = `${data.layers} layers × ${data.heads} heads, ${data.words.length} words, ${data.regions.length} regions`;
  buildPicture();
  buildChips();
  buildGrid();
  const filter = buildControls();
  select(null, null);
  setFilter(filter);
}

start();
