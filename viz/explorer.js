"use strict";
// Positions index the rows and columns of a map: text tokens, regions, [END]. A layer or head of `null` is the mean over all.

const CATEGORY10 = ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf"];
const FILTERS = {ab: "Text → RoIs", ba: "RoIs → Text", aa: "Text → Text", bb: "RoIs → RoIs", all: "All"};
const DIRECTIONS = {to: "attends to", from: "is attended by"};
const THUMBNAIL = {width: 64, height: 92}; // pixels
const FAINT = 0.004; // weaker lines are invisible
const FRAME_BUDGET = 8; // milliseconds of drawing per frame
const ROWS = 6; // of the table

const data = JSON.parse(document.getElementById("data").textContent);
const names = [...data.tokens, ...data.labels, "[END]"];
const size = names.length;
const firstRegion = data.tokens.length;
const everything = names.map((_, position) => position);
const SIDES = {a: data.words, b: data.regions};
const WEIGHTS = Float32Array.from({length: 256}, (_, code) => (code / 255) ** 2);

const state = {
  layer: null,
  head: null,
  filter: null,
  rescale: {ab: true, ba: true, aa: true, bb: true, all: false},
  threshold: 0,
  direction: "to",
  // {position, side} under the mouse, with keyboard focus, and selected by a click
  hovered: null,
  focused: null,
  selected: null,
};
const find = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// ---- Weights

let codes; // one byte per weight: 255 * sqrt(weight)

async function decodeWeights() {
  const packed = Uint8Array.from(atob(data.weights), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  codes = new Uint8Array(await new Response(stream).arrayBuffer());
}

const means = new Map();

/** (size * size) weights of a head, or the mean over the heads of a layer or over all heads. */
function weightsOf(layer, head) {
  if (head !== null) {
    const start = (layer * data.heads + head) * size * size;
    return Float32Array.from(codes.subarray(start, start + size * size), (code) => WEIGHTS[code]);
  }
  if (!means.has(layer)) {
    const [start, end] = layer === null ? [0, data.layers * data.heads] : [layer * data.heads, (layer + 1) * data.heads];
    const mean = new Float32Array(size * size);
    for (let map = start; map < end; map++)
      for (let at = 0; at < mean.length; at++) mean[at] += WEIGHTS[codes[map * size * size + at]] / (end - start);
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

/** The weights shown as strength 0 and 1: the range of the block over all heads of the layer (of a mean: its own), or 0 and 1. */
function range(layer, head) {
  const {filter} = state;
  if (!state.rescale[filter]) return [0, 1];
  const key = [filter, layer, head === null].join();
  if (!ranges.has(key)) {
    const limits = [Infinity, -Infinity];
    const heads = head === null ? [null] : Array.from({length: data.heads}, (_, index) => index);
    for (const item of heads) extent(weightsOf(layer, item), ...sides(filter), limits);
    ranges.set(key, limits);
  }
  return ranges.get(key);
}

/** Strengths from 0 to 1, row by row, of the block selected by the filter; 0 below the threshold. */
function strengths(layer, head) {
  const [left, right] = sides(state.filter);
  const weights = weightsOf(layer, head);
  const [low, high] = range(layer, head);
  const links = new Float32Array(left.length * right.length);
  left.forEach((from, i) => right.forEach((to, j) => {
    const strength = (weights[from * size + to] - low) / (high - low || 1);
    links[i * right.length + j] = strength >= state.threshold ? strength : 0;
  }));
  return links;
}

const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const percent = (weight) => {
  const value = 100 * weight;
  return value >= 9.95 ? `${value.toFixed(0)} %` : value >= 0.05 ? `${value.toFixed(1)} %` : "< 0.1 %";
};
const selectionName = (layer, head) => (
  layer === null ? "Mean of all heads" : head === null ? `Layer ${layer}, mean of its heads` : `Layer ${layer}, Head ${head}`
);
const layerColor = (layer) => (layer === null ? getComputedStyle(document.body).getPropertyValue("--accent") : CATEGORY10[layer % 10]);

// ---- The grid of thumbnails

const cells = [];
let drawCount = 0;

const thickness = (rows, columns) => clamp(Math.round(THUMBNAIL.height / Math.max(rows, columns) / 2), 1, 3);

/** Rasterizes all lines of a block by adding their strengths: constant work per line, independent of overlap. */
function sumLines(links, rows, columns) {
  const {width, height} = THUMBNAIL;
  const ink = new Float32Array(width * height);
  const thick = thickness(rows, columns);
  const run = height - thick;
  for (let link = 0; link < links.length; link++) {
    const strength = links[link];
    if (strength < FAINT) continue;
    const start = ((Math.floor(link / columns) + 0.5) / rows) * run;
    const slope = (((link % columns) + 0.5) / columns * run - start) / width;
    for (let x = 0; x < width; x++) {
      const y = start + slope * x;
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
  const gain = 2.4 / Math.sqrt(Math.max(1, overlap / 4)); // keeps dense blocks from saturating
  const pixels = new ImageData(THUMBNAIL.width, THUMBNAIL.height);
  const color = parseInt(CATEGORY10[layer % 10].slice(1), 16);
  for (let at = 0; at < ink.length; at++) {
    pixels.data[4 * at] = color >> 16;
    pixels.data[4 * at + 1] = (color >> 8) & 255;
    pixels.data[4 * at + 2] = color & 255;
    pixels.data[4 * at + 3] = 255 * (1 - Math.exp(-gain * ink[at])); // opacity of overlapping lines
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** Draws all thumbnails, a few per frame, so that the page stays responsive. */
function drawGrid() {
  const drawId = ++drawCount;
  const pending = [...cells];
  let elapsed = 0;
  delete find("grid").dataset.milliseconds;
  const drawSome = () => {
    if (drawId !== drawCount) return;
    const start = performance.now();
    while (pending.length && performance.now() - start < FRAME_BUDGET) drawThumbnail(pending.shift());
    elapsed += performance.now() - start;
    if (pending.length) requestAnimationFrame(drawSome);
    else find("grid").dataset.milliseconds = elapsed.toFixed(0);
  };
  requestAnimationFrame(drawSome);
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
  makeRoving(grid, data.heads + 1);
}

// ---- One head in detail

let rowHeight = 20;

/** Builds the labels of both sides of the block; the shorter side is spread out, and centered if it stays in view. */
function buildDetail() {
  const [left, right] = sides(state.filter);
  const longest = Math.max(left.length, right.length);
  rowHeight = clamp(Math.floor(640 / longest), 13, 28);
  const [from, to] = FILTERS[state.filter].split(" → ");
  find("left-title").textContent = to ? from : "From";
  find("right-title").textContent = to ?? "To";
  for (const [side, positions] of [["left", left], ["right", right]]) {
    const labels = positions.map((position) => {
      const label = positionButton(position, side, "label");
      label.style.height = `${pitch(positions)}px`;
      return label;
    });
    find(side).replaceChildren(...labels);
    find(side).style.paddingTop = `${offset(positions)}px`;
    find(side).style.fontSize = `${Math.min(13, rowHeight - 2)}px`;
    makeRoving(find(side), 1);
  }
}

const detailHeight = () => Math.max(...sides(state.filter).map((positions) => positions.length)) * rowHeight;
const pitch = (positions) => Math.min(detailHeight() / positions.length, 2 * rowHeight);
const offset = (positions) => (detailHeight() > 720 ? 0 : (detailHeight() - pitch(positions) * positions.length) / 2);

/** The strength of each link of the block; 0 for links that do not belong to the current position. */
function currentLinks() {
  const [left, right] = sides(state.filter);
  const links = strengths(state.layer, state.head);
  const current = currentPosition();
  if (current === null) return links;
  const i = left.indexOf(current.position);
  const j = right.indexOf(current.position);
  if (i < 0 && j < 0) return links;
  const toward = directionOf(current) === "to";
  return links.map((strength, at) => ((toward ? Math.floor(at / right.length) === i : at % right.length === j) ? strength : 0));
}

/** Highlights labels as strongly as the lines of the current position. */
function markLabels(left, right, links) {
  const current = currentPosition();
  const byPosition = {left: new Float32Array(left.length), right: new Float32Array(right.length)};
  if (current !== null && left.length * right.length > 0) {
    links.forEach((strength, at) => {
      const [i, j] = [Math.floor(at / right.length), at % right.length];
      byPosition.left[i] = Math.max(byPosition.left[i], strength);
      byPosition.right[j] = Math.max(byPosition.right[j], strength);
    });
  }
  for (const side of ["left", "right"]) {
    [...find(side).children].forEach((label, at) => {
      const isCurrent = current !== null && Number(label.dataset.position) === current.position;
      label.style.setProperty("--strength", isCurrent ? 0 : byPosition[side][at].toFixed(3));
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
  context.strokeStyle = layerColor(state.layer);
  const links = currentLinks();
  markLabels(left, right, links);
  for (let at = 0; at < links.length; at++) {
    if (links[at] < FAINT) continue;
    const from = offset(left) + (Math.floor(at / right.length) + 0.5) * pitch(left);
    const to = offset(right) + ((at % right.length) + 0.5) * pitch(right);
    context.globalAlpha = Math.min(1, links[at]);
    context.beginPath();
    context.moveTo(0, from);
    context.bezierCurveTo(width / 2, from, width / 2, to, width, to);
    context.stroke();
  }
}

// ---- Image, text and table

const marked = []; // {node, position}: everything that shows the strength of a position
const chips = new Map(); // position -> chip

function positionButton(position, side, kind) {
  const special = !data.words.includes(position) && !data.regions.includes(position);
  const button = element("button", {type: "button", class: `${kind}${special ? " special" : ""}`, "data-position": position});
  const box = position >= firstRegion && position < size - 1 && !special;
  if (box) {
    button.style.setProperty("--hue", hue(position));
    button.classList.add("region-name");
  }
  button.append(names[position]);
  button.title = names[position];
  const target = {position, side};
  addPointerEvents(button, target);
  button.addEventListener("focus", () => {
    if (button.matches(":focus-visible")) setTarget("focused", target);
  });
  button.addEventListener("blur", () => setTarget("focused", null));
  return button;
}

function addPointerEvents(node, target) {
  node.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && setTarget("hovered", target));
  node.addEventListener("pointerleave", () => setTarget("hovered", null));
  node.addEventListener("click", () => {
    const same = state.selected && state.selected.position === target.position && state.selected.side === target.side;
    setTarget("selected", same ? null : target);
  });
}

const hue = (position) => Math.round(((position - firstRegion) * 137.5 + 210) % 360);
const boxOf = (position) => data.boxes[position - firstRegion];

function buildImage() {
  const [width, height] = data.size;
  const image = find("image");
  image.hidden = !(width > 0 && height > 0) || (!data.image && !data.regions.length);
  if (image.hidden) return;
  image.style.setProperty("--ratio", width / height);
  if (data.image) image.append(element("img", {src: data.image, alt: ""}));
  else image.classList.add("blank");
  image.append(element("canvas", {id: "shade", width: 400, height: Math.max(1, Math.round((400 * height) / width))}));
  const area = ([x1, y1, x2, y2]) => (x2 - x1) * (y2 - y1);
  const ordered = [...data.regions].sort((one, other) => area(boxOf(other)) - area(boxOf(one))); // small ones on top
  image.classList.toggle("many", ordered.length > 16);
  for (const position of ordered) {
    const [x1, y1, x2, y2] = boxOf(position);
    const tag = element("span", {}, number(position));
    const box = element("div", {class: "box", title: names[position], "data-position": position}, tag);
    box.style.setProperty("--hue", hue(position));
    Object.assign(box.style, {
      left: `${(100 * x1) / width}%`,
      top: `${(100 * y1) / height}%`,
      width: `${(100 * (x2 - x1 + 1)) / width}%`,
      height: `${(100 * (y2 - y1 + 1)) / height}%`,
    });
    addPointerEvents(box, {position, side: null});
    marked.push({node: box, position, tag});
    image.append(box);
  }
}

/** The number at the start of a label, else the index of the region from 1. */
const number = (position) => /^\d+/.exec(names[position])?.[0] ?? String(position - firstRegion + 1);

function buildChips() {
  for (const position of everything) {
    const chip = positionButton(position, null, "chip");
    if (names[position].startsWith("##")) chip.classList.add("piece");
    chip.setAttribute("aria-pressed", "false");
    find(position < firstRegion ? "words" : "regions").append(chip);
    marked.push({node: chip, position});
    chips.set(position, chip);
  }
  for (const id of ["words", "regions"]) {
    makeRoving(find(id), 1);
    find(id).classList.toggle("dense", find(id).children.length > 30);
  }
}

const currentPosition = () => state.hovered ?? state.focused ?? state.selected;
const directionOf = ({side}) => (side === "left" ? "to" : side === "right" ? "from" : state.direction);

/** The weights between the current position and all others: a row or a column of the map. */
function weightsFor(current) {
  const weights = weightsOf(state.layer, state.head);
  const toward = directionOf(current) === "to";
  return Float32Array.from(names, (_, other) => weights[toward ? current.position * size + other : other * size + current.position]);
}

/** Strengths on image and text, relative to the strongest word or region, because special tokens often get most of the weight. */
function relativeStrengths(weights) {
  const top = Math.max(1e-9, ...[...data.words, ...data.regions].map((position) => weights[position]));
  return weights.map((weight) => (weight / top >= state.threshold ? Math.min(1, weight / top) : 0));
}

function drawImageAndText() {
  const current = currentPosition();
  const weights = current && weightsFor(current);
  const strength = current && relativeStrengths(weights);
  find("reading").classList.toggle("active", current !== null);
  for (const {node, position, tag} of marked) {
    node.style.setProperty("--strength", strength ? strength[position].toFixed(3) : 0);
    node.classList.toggle("current", current !== null && position === current.position);
    node.classList.toggle("bright", strength !== null && strength[position] >= 0.25);
    if (tag) tag.textContent = strength && strength[position] >= 0.25 ? `${number(position)} · ${percent(weights[position])}` : number(position);
  }
  for (const [position, chip] of chips) {
    chip.setAttribute("aria-pressed", String(state.selected !== null && state.selected.position === position));
  }
  drawShade(current, strength);
  drawTable(current, weights, strength);
}

/** Darkens the image except for the attended regions. */
function drawShade(current, strength) {
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
  for (const position of data.regions) {
    const scale = [shade.width / data.size[0], shade.height / data.size[1]];
    const [x1, y1, x2, y2] = boxOf(position).map((value, at) => (value + (at > 1 ? 1 : 0)) * scale[at % 2]); // the last pixel is inside
    context.globalAlpha = position === current.position ? 1 : strength[position];
    context.fillRect(x1, y1, x2 - x1, y2 - y1);
  }
}

/** Lists the strongest weights of the current position, or the strongest links of the block if there is none. */
function drawTable(current, weights, strength) {
  const heading = selectionName(state.layer, state.head);
  let rows;
  if (current) {
    const direction = directionOf(current);
    find("table-title").replaceChildren(element("b", {}, names[current.position]), ` ${DIRECTIONS[direction]}`, element("small", {}, heading));
    rows = everything.filter((position) => strength[position] > 0).map((position) => [[position], weights[position]]);
    const sum = (positions) => percent(positions.reduce((total, position) => total + weights[position], 0));
    const rest = everything.filter((position) => !data.words.includes(position) && !data.regions.includes(position));
    find("totals").textContent = direction === "to"
      ? `Words ${sum(data.words)}, regions ${sum(data.regions)}, other positions ${sum(rest)}`
      : "";
  } else {
    find("table-title").replaceChildren(element("b", {}, "Strongest links"), ` ${FILTERS[state.filter]}`, element("small", {}, heading));
    const [left, right] = sides(state.filter);
    const weights = weightsOf(state.layer, state.head);
    const links = strengths(state.layer, state.head);
    rows = left.flatMap((from, i) => right.map((to, j) => [[from, to], links[i * right.length + j] && weights[from * size + to]]));
    find("totals").textContent = "Point at a word or region to see what it attends to.";
  }
  rows = rows.filter(([, weight]) => weight > 0).sort((one, other) => other[1] - one[1]).slice(0, ROWS);
  const largest = rows.length ? rows[0][1] : 1;
  find("table-rows").replaceChildren(...rows.map(([positions, weight]) => {
    const value = element("td", {}, percent(weight));
    value.style.setProperty("--fraction", weight / largest);
    return element("tr", {}, element("th", {scope: "row"}, ...positions.flatMap((position, at) => (at ? [" → ", name(position)] : [name(position)]))), value);
  }));
  while (find("table-rows").children.length < ROWS) find("table-rows").append(element("tr", {"aria-hidden": "true"}, element("th", {}, "\u00a0"), element("td")));
}

function name(position) {
  const node = element("span", {class: "name"}, names[position]);
  if (data.regions.includes(position)) {
    node.classList.add("region-name");
    node.style.setProperty("--hue", hue(position));
  }
  return node;
}

/** Announces the strongest weights of the selected position to screen readers. */
function announce() {
  const current = state.focused ?? state.selected;
  if (!current) return;
  const weights = weightsFor(current);
  const top = [...everything].sort((one, other) => weights[other] - weights[one]).slice(0, 3);
  find("announcement").textContent = `${names[current.position]} ${DIRECTIONS[directionOf(current)]} ${top.map((position) => `${names[position]} ${percent(weights[position])}`).join(", ")}`;
}

// ---- Controls

/** Makes a group of buttons one tab stop; arrow keys, Home and End move inside it, without wrapping between grid rows. */
function makeRoving(group, columns) {
  const buttons = () => [...group.querySelectorAll("button")];
  const stop = (chosen) => buttons().forEach((button) => { button.tabIndex = button === chosen ? 0 : -1; });
  stop(buttons()[0]);
  if (group.dataset.roves) return;
  group.dataset.roves = "yes";
  group.addEventListener("focusin", (event) => stop(event.target));
  group.addEventListener("keydown", (event) => {
    const all = buttons();
    const at = all.indexOf(event.target);
    const start = columns > 1 ? at - (at % columns) : 0;
    const end = columns > 1 ? start + columns - 1 : all.length - 1;
    const next = {
      ArrowRight: Math.min(at + 1, end), ArrowLeft: Math.max(at - 1, start),
      ArrowDown: at + columns, ArrowUp: at - columns, Home: start, End: end,
    }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    all[next]?.focus();
  });
}

/** Adds radio buttons, styled as pills. */
function addRadios(id, options, chosen, disabled, choose) {
  for (const [value, title] of Object.entries(options)) {
    const radio = element("input", {type: "radio", name: id, value, ...(value === chosen && {checked: ""}), ...(disabled(value) && {disabled: ""})});
    radio.addEventListener("change", () => choose(value));
    find(id).append(element("label", {}, radio, element("span", {}, title)));
  }
}

let scheduled = false;

/** Redraws whatever depends on the current position, at most once per frame. */
function refresh() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    drawImageAndText();
    drawDetail();
  });
}

function setTarget(kind, target) {
  state[kind] = target;
  if (kind !== "hovered") announce();
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
  find("lines").setAttribute("aria-label", `${FILTERS[state.filter]}, ${selectionName(state.layer, state.head)}: line opacity shows the weights; the table lists the strongest`);
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
  find("threshold-value").textContent = state.threshold.toFixed(2);
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
  const empty = (filter) => sides(filter).some((positions) => !positions.length);
  const first = Object.keys(FILTERS).find((filter) => !empty(filter));
  addRadios("filter", FILTERS, first, empty, setFilter);
  addRadios("direction", DIRECTIONS, state.direction, () => false, (direction) => {
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
    if (state.selected) setTarget("selected", null);
    else select(null, null);
  });
  window.addEventListener("resize", refresh);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  setThreshold();
  return first;
}

async function start() {
  if (!("DecompressionStream" in window)) {
    find("facts").textContent = "This browser is too old for this page: it has no DecompressionStream. Use Chrome 80, Firefox 113, Safari 16.4 or later.";
    document.querySelector("main").hidden = true;
    return;
  }
  await decodeWeights();
  find("name").textContent = data.name;
  find("facts").textContent = `${data.layers} layers × ${data.heads} heads, ${data.words.length} words, ${data.regions.length} regions`;
  buildImage();
  buildChips();
  buildGrid();
  const filter = buildControls();
  select(null, null);
  setFilter(filter);
}

start();
