// Crosshairs of curves: values at a step, by mouse, finger or arrow keys, in all charts of a group at once.

const SPACE = "http://www.w3.org/2000/svg";
const PLOT = { left: 62, right: 472, top: 16, bottom: 218, width: 480 }; // as in curves.py

function shortly(value) {
  if (value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1000) return Math.round(value).toLocaleString("en").replace("-", "−");
  if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
  if (Number.isInteger(value)) return String(value).replace("-", "−");
  return value.toFixed(Math.max(0, 3 - Math.floor(Math.log10(size)))).replace("-", "−");
}

function listed(element, name) {
  const text = element.dataset[name];
  return text ? text.split(" ").map((word) => (word === "-" ? NaN : Number(word))) : null;
}

// The place in sorted steps of the last one that is not behind `step`, or of the first.
function placeOf(steps, step) {
  let low = 0, high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return Math.max(0, low - 1);
}

function linesOf(figure) {
  return [...figure.querySelectorAll("svg [data-x]")].map((line) => ({
    name: line.dataset.name,
    held: line.classList.contains("held"),
    steps: listed(line, "x") ?? [],
    ...Object.fromEntries(["mean", "least", "greatest", "low", "high"].map((name) => [name, listed(line, name)])),
  }));
}

// What a line says at a step: its value, the mean if that is another, an interval or a range if it has one.
function said(line, step) {
  const at = placeOf(line.steps, step);
  if (line.steps.length === 0 || line.steps[0] > step) return "–";
  const mean = shortly(line.mean[at]);
  if (line.low) return `${mean} [${shortly(line.low[at])}, ${shortly(line.high[at])}]`;
  if (line.greatest) return `${mean} (${shortly(line.least[at])} to ${shortly(line.greatest[at])})`;
  return line.least[at] === line.mean[at] ? mean : `${shortly(line.least[at])} (mean ${mean})`;
}

const charts = new Map(); // figure -> its lines, read once

function prepare(figure) {
  const svg = figure.querySelector(":scope > svg");
  const lines = linesOf(figure);
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  if (steps.length === 0) return;
  charts.set(figure, { svg, lines, steps, last: Number(svg.dataset.last) });
  const label = svg.getAttribute("aria-label");
  for (const [name, value] of Object.entries({
    role: "slider", tabindex: "0", "aria-label": `${label.split(".")[0]}: arrow keys move along the steps`,
    "aria-valuemin": steps[0], "aria-valuemax": steps.at(-1), "aria-valuenow": steps.at(-1), "aria-valuetext": label,
  })) svg.setAttribute(name, value);
  svg.addEventListener("pointermove", (event) => point(figure, stepUnder(figure, event)));
  svg.addEventListener("pointerdown", (event) => point(figure, stepUnder(figure, event)));
  svg.addEventListener("pointerleave", () => point(figure, null));
  svg.addEventListener("blur", () => point(figure, null));
  svg.addEventListener("keydown", (event) => walk(figure, event));
}

function stepUnder(figure, event) {
  const { svg, steps, last } = charts.get(figure);
  const box = svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * PLOT.width;
  const step = ((x - PLOT.left) / (PLOT.right - PLOT.left)) * last;
  const at = placeOf(steps, step);
  return at + 1 < steps.length && steps[at + 1] - step < step - steps[at] ? steps[at + 1] : steps[at];
}

function walk(figure, event) {
  const { svg, steps } = charts.get(figure);
  const now = placeOf(steps, Number(svg.getAttribute("aria-valuenow")));
  const far = Math.max(1, Math.round(steps.length / 10));
  const to = { ArrowLeft: now - 1, ArrowRight: now + 1, PageDown: now - far, PageUp: now + far,
               Home: 0, End: steps.length - 1 }[event.key];
  if (event.key === "Escape") point(figure, null);
  if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  point(figure, steps[Math.max(0, Math.min(steps.length - 1, to))]);
}

// Show the values at a step in every chart of the group; their last ones for none.
function point(figure, step) {
  for (const [other, chart] of charts)
    if (other === figure || (figure.dataset.group && other.dataset.group === figure.dataset.group)) show(other, chart, step);
}

function show(figure, { svg, lines, steps, last }, step) {
  svg.querySelector(".cross")?.remove();
  const outputs = figure.querySelectorAll(".legend output");
  lines.forEach((line, at) => {
    outputs[at].textContent = step === null ? shortly(line.mean?.at(-1)) : said(line, step);
  });
  figure.querySelector(".at").textContent = step === null ? "" : `step ${step.toLocaleString("en")}`;
  if (step === null) return;
  const x = PLOT.left + (step / last) * (PLOT.right - PLOT.left);
  const cross = document.createElementNS(SPACE, "line");
  for (const [name, value] of Object.entries({ class: "cross", x1: x, x2: x, y1: PLOT.top, y2: PLOT.bottom }))
    cross.setAttribute(name, value);
  svg.append(cross);
  const near = steps[placeOf(steps, step)];
  svg.setAttribute("aria-valuenow", near);
  svg.setAttribute("aria-valuetext", `step ${near}: ${lines.map((line) => `${line.name} ${said(line, step)}`).join(", ")}`);
}

function prepareAll() {
  for (const figure of charts.keys()) if (!figure.isConnected) charts.delete(figure);
  for (const figure of document.querySelectorAll("figure.curves")) if (!charts.has(figure)) prepare(figure);
}

prepareAll();
