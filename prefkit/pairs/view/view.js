// The browser of a data set. What is shown stands in the address behind the #, so that a reload, a bookmark and the
// back button work; the page is drawn from there alone.

const KIND = document.body.dataset.kind; // pairs or labels
const UNIT = { pairs: "pair", labels: "answer" }[KIND];
const FILTERS = {
  pairs: ["text", "within", "source", "lang", "least", "most", "chosen_model", "rejected_model", "strategy", "split", "flagged", "id"],
  labels: ["text", "within", "source", "lang", "least", "most", "label", "completion_model", "split", "flagged", "id"],
  rejects: ["text", "reason", "stage", "origin_file", "id"],
};
const TYPING = 300; // milliseconds without a key until a search begins
const WIDE = matchMedia("(min-width: 801px)");

let listed = { query: null, rows: [], page: 0, found: 0, complete: true };
let open = null; // what is open, as the server gave it
let historyShown = false;
let noting = false; // whether the form of the flag is shown
let marked = true;
let waiting = null; // the AbortController of the list's requests

const state = () => new URLSearchParams(location.hash.slice(1));
const table = (now = state()) => (now.get("table") === "rejects" ? "rejects" : KIND);

// ---- the server ----

async function ask(path, query, options) {
  const answer = await fetch(`api/${path}${query ? `?${query}` : ""}`, options).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("prefkit view does not answer; is it still running?");
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
}

const tell = (path, body) =>
  ask(path, "", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

function say(error) {
  if (error?.name === "AbortError") return;
  byId("said").hidden = !error;
  byId("said").textContent = error ? error.message : "";
}

// ---- the state ----

function go(changes, { replace = false } = {}) {
  const now = state();
  for (const [name, value] of Object.entries(changes)) value === null ? now.delete(name) : now.set(name, value);
  if (replace) history.replaceState(null, "", `#${now}`);
  else history.pushState(null, "", `#${now}`);
  draw();
}

function queryOf(now) {
  const asked = new URLSearchParams();
  for (const name of FILTERS[table(now)]) if (now.has(name)) asked.set(name, now.get(name));
  for (const name of ["none", "sort", "order"]) if (now.get(name)) asked.set(name, now.get(name));
  return asked;
}

async function draw() {
  const now = state();
  controls(now);
  const left = document.body.classList.contains("reading") && !now.has("row");
  document.body.classList.toggle("reading", now.has("row"));
  if (!WIDE.matches && now.has("row")) byId("one").focus(); // what had the focus is hidden now
  if (!WIDE.matches && left) (byId("rows").querySelector("[aria-current]") ?? byId("list")).focus();
  const asked = queryOf(now);
  const query = `${table(now)}?${asked}`;
  const page = Number(now.get("page") ?? 0);
  try {
    if (query !== listed.query || page !== listed.page) await list(now, asked, query, page);
    mark(now);
    await item(now);
  } catch (error) {
    say(error);
  }
}

// ---- the list ----

async function list(now, asked, query, page) {
  waiting?.abort();
  waiting = new AbortController();
  const { signal } = waiting;
  byId("list").classList.add("waiting");
  byId("position").textContent = "searching…";
  try {
    const paged = new URLSearchParams(asked);
    if (page) paged.set("page", page);
    const found = await ask(table(now), paged, { signal });
    listed = { ...found, query, kind: table(now) };
    say(null);
    byId("rows").replaceChildren(...found.rows.map((row) => entry(row, table(now))));
    if (!now.has("row") || !WIDE.matches) byId("list").scrollTop = 0;
    position();
    if (!found.complete) count(asked, signal).catch(say);
  } catch (error) {
    if (error.name !== "AbortError") {
      listed = { query: null, page, rows: [], found: 0, complete: true };
      byId("rows").replaceChildren();
      position();
      byId("position").textContent = "";
    }
    throw error;
  } finally {
    if (!signal.aborted) byId("list").classList.remove("waiting");
  }
}

async function count(asked, signal) {
  const { found } = await ask(`${listed.kind}/count`, asked, { signal });
  Object.assign(listed, { found, complete: true });
  position();
}

function position() {
  const { page, size, rows, found, complete } = listed;
  const first = page * size + 1;
  const many = `${complete ? "" : "more than "}${(complete ? found : found - 1).toLocaleString("en")}`;
  byId("position").textContent = rows.length
    ? `${first.toLocaleString("en")}–${(first + rows.length - 1).toLocaleString("en")} of ${many}`
    : "nothing matches";
  byId("page-before").disabled = page === 0;
  byId("page-after").disabled = !rows.length || first + rows.length - 1 >= found;
}

function entry(row, kind) {
  const made = element("li");
  const link = element("a");
  link.dataset.row = row.row;
  link.append(
    element("div", kind === "rejects" ? row.detail ?? "no detail" : row.head, "head"),
    kind === "rejects" ? aboutReject(row) : aboutKept(row),
  );
  made.append(link);
  return made;
}

function line(parts) {
  const made = element("div", undefined, "meta");
  for (const part of parts) if (part !== null) made.append(typeof part === "string" ? element("span", part) : part);
  return made;
}

const verdict = (row) => (row.label ? "good" : "bad");

function aboutKept(row) {
  const flag = row.flag === null ? null : element("span", `⚑ ${row.flag || "flagged"}`, "flag");
  const rated = KIND === "pairs" ? `margin ${number(row.margin)}` : `${verdict(row)}, score ${number(row.completion_score)}`;
  const models = KIND === "labels" ? row.completion_model
    : row.chosen_model && row.rejected_model && `${row.chosen_model} over ${row.rejected_model}`;
  return line([rated, models, row.source, row.lang, row.split === "test" ? "test" : null, flag]);
}

function aboutReject(row) {
  const answer = row.completion_index === null ? "the row" : `answer ${row.completion_index}`;
  return line([`${row.stage}: ${row.reason}`, `${row.origin_file}:${row.origin_row}`, answer]);
}

const number = (value) => (typeof value === "number" ? String(Number(value.toPrecision(6))) : String(value));

function mark(now) {
  for (const link of byId("rows").querySelectorAll("a")) {
    const here = new URLSearchParams(now);
    here.set("row", link.dataset.row);
    link.href = `#${here}`;
    if (link.dataset.row === now.get("row")) {
      link.setAttribute("aria-current", "true");
      if (WIDE.matches) link.scrollIntoView({ block: "nearest" });
    } else link.removeAttribute("aria-current");
  }
  ends();
}

// The next or previous of the list, on the next or previous page where this one ends.
async function move(step) {
  const now = state();
  const at = listed.rows.findIndex((row) => String(row.row) === now.get("row"));
  const next = at < 0 ? (step > 0 ? 0 : -1) : at + step;
  if (listed.rows[next]) return go({ row: listed.rows[next].row }, { replace: now.has("row") });
  if (next < 0 ? byId("page-before").disabled : byId("page-after").disabled) return;
  now.set("page", listed.page + step);
  try {
    await list(now, queryOf(now), listed.query, listed.page + step);
    go({ page: listed.page || null, row: listed.rows.at(step > 0 ? 0 : -1).row }, { replace: true });
  } catch (error) {
    say(error);
  }
}
