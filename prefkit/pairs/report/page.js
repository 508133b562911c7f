// The sample of the data report.

const sample = JSON.parse(byId("data").textContent);
const LABELS = sample.kind === "labels";
const FILTERS = { rows: ["source", "lang", "split", ...(LABELS ? ["label"] : [])], rejects: ["reason"] };
const AMOUNT = LABELS ? "completion_score" : "margin";

for (const row of sample.rows) if (LABELS) row.label = row.label ? "good" : "bad";
for (const reject of sample.rejects) reject.reason = `${reject.stage}: ${reject.reason}`;
let shown = [];
let at = 0;

function fillChoices() {
  for (const [kind, names] of Object.entries(FILTERS)) {
    for (const name of names) {
      const values = [...new Set(sample[kind].map((row) => row[name]).filter((value) => value !== null))];
      if (name !== "reason") values.sort();
      byId(name).append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    }
  }
}

function wanted(row, kind, words) {
  if (FILTERS[kind].some((name) => byId(name).value !== "" && row[name] !== byId(name).value)) return false;
  if (kind === "rows") {
    if (byId("least").value !== "" && row[AMOUNT] < Number(byId("least").value)) return false;
    if (byId("most").value !== "" && row[AMOUNT] > Number(byId("most").value)) return false;
  }
  const text = Object.values(row).filter((value) => value !== null).join("\n").toLowerCase();
  return words.every((word) => text.includes(word));
}

function update() {
  const kind = byId("kind").value;
  for (const control of byId("controls").querySelectorAll("select, input"))
    if (control.id !== "kind" && control.id !== "search")
      control.parentElement.hidden = (control.id === "reason") !== (kind === "rejects");
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  shown = sample[kind].filter((row) => wanted(row, kind, words));
  at = 0;
  show();
}

function show() {
  byId("position").textContent = shown.length ? `${at + 1} of ${shown.length}` : "nothing matches";
  byId("previous").disabled = at === 0;
  byId("next").disabled = at + 1 >= shown.length;
  const row = shown[at];
  if (row === undefined) byId("item").replaceChildren();
  else byId("item").replaceChildren(...(byId("kind").value === "rejects" ? reject(row) : LABELS ? answer(row) : pair(row)));
}

const place = (row, side) => `${row[`${side}_file`]}:${row[`${side}_row`]}, answer ${row[`${side}_index`]}`;
const size = (row, side) => `score ${row[`${side}_score`]}, ${row[`${side}_chars`]} characters`;

function pair(row) {
  const [chosen, rejected] = byId("differences").checked
    ? differences(row.chosen, row.rejected)
    : [row.chosen, row.rejected];
  const sides = element("div", undefined, "sides");
  sides.append(block(`chosen, ${size(row, "chosen")}`, chosen), block(`rejected, ${size(row, "rejected")}`, rejected));
  return [
    block("prompt", row.prompt),
    sides,
    facts([
      ["margin", row.margin], ["source", row.source], ["language", row.lang], ["split", row.split],
      ["chosen by", row.chosen_model], ["rejected by", row.rejected_model], ["strategy", row.strategy],
      ["chosen from", place(row, "chosen")], ["rejected from", place(row, "rejected")], ["pair_id", row.pair_id],
    ]),
  ];
}

function answer(row) {
  const side = element("div", undefined, `side ${row.label}`);
  side.append(block(`${row.label}, ${size(row, "completion")}`, row.completion));
  return [
    block("prompt", row.prompt),
    side,
    facts([
      ["label", row.label], ["score", row.completion_score], ["source", row.source], ["language", row.lang],
      ["split", row.split], ["by", row.completion_model], ["from", place(row, "completion")], ["answer_id", row.answer_id],
    ]),
  ];
}

function reject(row) {
  const parts = [
    facts([
      ["fell at", row.reason], ["because", row.detail], ["stands in", `${row.origin_file}:${row.origin_row}`],
      ["which answer", row.completion_index], ["prompt_id", row.prompt_id],
    ]),
  ];
  if (row.prompt !== null) parts.push(block("prompt", row.prompt));
  if (row.cluster_prompt !== null) parts.push(block("prompt of its near-duplicates", row.cluster_prompt));
  if (row.raw !== null) parts.push(block("the raw row", row.raw));
  if (parts.length === 1)
    parts.push(element("p", "Nothing of its prompt is left. The raw row has its text.", "quiet"));
  return parts;
}

function move(steps) {
  at = Math.max(0, Math.min(shown.length - 1, at + steps));
  show();
}

function choose(kind, reason) {
  byId("controls").reset();
  byId("kind").value = kind;
  byId("reason").value = reason;
  update();
}

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  [LABELS ? "a" : "p"]: () => choose("rows", ""),
  r: () => choose("rejects", ""),
  "/": () => byId("search").focus(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});
for (const link of document.querySelectorAll("[data-reason]"))
  link.addEventListener("click", () => choose("rejects", link.dataset.reason));
byId("controls").addEventListener("input", update);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
byId("previous").addEventListener("click", () => move(-1));
byId("next").addEventListener("click", () => move(1));
fillChoices();
update();
