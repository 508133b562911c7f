// What is open: a pair with its flags, or a reject; and its history.

let itemsAsked = 0; // items that were asked for; only the last of them is shown, so that none takes the place of a form in use

async function item(now) {
  const row = now.get("row");
  byId("none").hidden = row !== null;
  if (row === null) {
    open = null;
    return byId("item").replaceChildren();
  }
  if (open && open.kind === table(now) && String(open.row) === row) return;
  historyShown = noting = false;
  const kind = table(now);
  const mine = ++itemsAsked;
  const found = await ask(kind.slice(0, -1), new URLSearchParams({ row }));
  if (mine !== itemsAsked || state().get("row") !== row || table() !== kind) return; // something else was opened meanwhile
  open = { ...found, kind };
  say(null);
  show();
  byId("one").scrollTop = 0;
  if (!WIDE.matches) scrollTo(0, 0);
}

function show() {
  byId("item").replaceChildren(...({ pairs: pair, labels: label, rejects: reject }[open.kind](open)));
  ends();
}

function ends() {
  const at = listed.rows.findIndex((row) => row.row === open?.row);
  if (!byId("previous")) return;
  byId("previous").disabled = at === 0 && byId("page-before").disabled;
  byId("next").disabled = at === listed.rows.length - 1 && byId("page-after").disabled;
}

function button(text, does, id) {
  const made = element("button", text);
  made.type = "button";
  if (id) made.id = id;
  made.addEventListener("click", does);
  return made;
}

function bar(...more) {
  const made = element("div", undefined, "bar-of-item");
  made.append(
    button("← list", () => go({ row: null }), "back"),
    button("← previous", () => move(-1), "previous"),
    button("next →", () => move(1), "next"),
    button(historyShown ? "Hide history" : "History", past, "history"),
    ...more,
  );
  return made;
}

function pair(row) {
  const text = (messages) => messages.at(-1).content;
  const [chosen, rejected] = marked
    ? differences(text(row.chosen), text(row.rejected))
    : [text(row.chosen), text(row.rejected)];
  const sides = element("div", undefined, "sides");
  sides.append(block(said(row, "chosen", "chosen"), chosen), block(said(row, "rejected", "rejected"), rejected));
  const differ = element("label");
  const box = element("input");
  Object.assign(box, { type: "checkbox", checked: marked, id: "differences" });
  box.addEventListener("change", () => differing(box.checked));
  differ.append(box, "Mark differing words");
  return [
    element("h2", `Pair ${row.pair_id.slice(0, 12)}…`),
    bar(ofPrompt(row), ...(isFlagged(row) ? [] : [button("⚑ Flag", note, "note-it")]), differ),
    flagForm(row),
    element("div", undefined, "past"),
    prompt(row.prompt),
    sides,
    facts([
      ["margin", number(row.margin)], ["source", row.source],
      ["language", language(row)], ["split", row.split],
      ["chosen by", row.chosen_model], ["rejected by", row.rejected_model], ["strategy", row.strategy],
      ["chosen from", place(row, "chosen")], ["rejected from", place(row, "rejected")],
      ["pair_id", row.pair_id], ["prompt_id", row.prompt_id], ["cluster_id", otherCluster(row)],
    ]),
  ];
}

// An answer that is good or bad by itself.
function label(row) {
  return [
    element("h2", `Answer ${row.answer_id.slice(0, 12)}…`),
    bar(ofPrompt(row), ...(isFlagged(row) ? [] : [button("⚑ Flag", note, "note-it")])),
    flagForm(row),
    element("div", undefined, "past"),
    prompt(row.prompt),
    block(said(row, "completion", verdict(row)), row.completion.at(-1).content),
    facts([
      ["label", verdict(row)], ["score", number(row.completion_score)], ["source", row.source],
      ["language", language(row)], ["split", row.split], ["by", row.completion_model], ["from", place(row, "completion")],
      ["answer_id", row.answer_id], ["prompt_id", row.prompt_id], ["cluster_id", otherCluster(row)],
    ]),
  ];
}

const said = (row, side, name) =>
  `${name}, score ${number(row[`${side}_score`])}, ${[...row[side].at(-1).content].length} characters`;
const place = (row, side) => `${row[`${side}_file`]}:${row[`${side}_row`]}, answer ${row[`${side}_index`]}`;
const language = (row) => row.lang && `${row.lang}, probability ${number(row.lang_prob)}`;
const otherCluster = (row) => (row.cluster_id === row.prompt_id ? null : row.cluster_id);

const ofPrompt = (row) => button(`${KIND === "pairs" ? "Pairs" : "Answers"} of this prompt`, () => only(row.prompt_id), "of-prompt");

function prompt(messages, title = "prompt") {
  if (messages.length === 1) return block(title, messages[0].content);
  const turns = messages.flatMap(({ role, content }) => [element("div", role, "role"), element("div", content)]);
  return block(`${title}, ${messages.length} turns`, turns);
}

function reject(row) {
  const parts = [
    element("h2", `Rejected at ${row.stage}: ${row.reason}`),
    row.prompt === null ? bar() : bar(ofPrompt(row)),
    element("div", undefined, "past"),
    facts([
      ["because", row.detail], ["stands in", `${row.origin_file}:${row.origin_row}`],
      ["which answer", row.completion_index ?? "the whole row"], ["prompt_id", row.prompt_id], ["cluster_id", row.cluster_id],
    ]),
  ];
  if (row.prompt !== null) parts.push(prompt(row.prompt));
  if (row.cluster_prompt !== null) parts.push(prompt(row.cluster_prompt, "prompt of its near-duplicates"));
  if (row.raw !== null) parts.push(block("the raw row", row.raw));
  if (row.prompt === null && row.cluster_prompt === null && row.raw === null)
    parts.push(element("p", `No ${UNIT} of its prompt is left. The raw row has its text.`, "quiet"));
  return parts;
}

async function past() {
  if (!open) return;
  const here = open;
  const place = byId("item").querySelector(".past");
  historyShown = !historyShown;
  byId("history").textContent = historyShown ? "Hide history" : "History";
  if (!historyShown) return place.replaceChildren();
  place.replaceChildren(element("div", "looking through the data set…", "history"));
  try {
    const path = `${here.kind.slice(0, -1)}/why`;
    const { lines } = await ask(path, new URLSearchParams({ row: here.row }));
    if (open === here && historyShown) place.replaceChildren(element("div", lines.join("\n"), "history"));
  } catch (error) {
    place.replaceChildren();
    historyShown = false;
    say(error);
  }
}

function differing(on) {
  marked = on;
  if (open?.kind !== "pairs") return;
  const shown = byId("item").querySelector(".past").firstChild;
  show();
  if (shown) byId("item").querySelector(".past").append(shown);
}

const only = (id) => go({ ...nothing(), table: null, id });

// ---- flags ----

const isFlagged = (row) => row.flags.pair !== null || row.flags.prompt !== null;

function flagForm(row) {
  const kind = row.flags.pair === null && row.flags.prompt !== null ? "prompt" : "pair";
  const held = row.flags[kind];
  const form = element("form");
  form.id = "flag";
  form.hidden = !noting && !isFlagged(row);
  const noteLabel = element("label", "Why it should go");
  const text = element("input");
  Object.assign(text, { id: "note", type: "text", maxLength: 2000, value: held ?? "" });
  noteLabel.append(text);
  const whatLabel = element("label", "Flag");
  const what = element("select");
  what.id = "flag-kind";
  what.append(new Option(`this ${UNIT}`, "pair"), new Option(`all ${UNIT}s of its prompt`, "prompt"));
  what.value = kind;
  whatLabel.append(what);
  const save = element("button", held === null ? "⚑ Flag" : "Change");
  form.append(whatLabel, noteLabel, save);
  const state = [["pair", `this ${UNIT}`], ["prompt", "its prompt"]].filter(([name]) => row.flags[name] !== null);
  for (const [name, said] of state) form.append(button(`Unflag ${said}`, () => unflag(name), `unflag-${name}`));
  if (state.length) form.prepend(element("div", `⚑ flagged: ${state.map(([, said]) => said).join(", ")}`, "flagged"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    changeFlag("flag", { row: row.row, kind: what.value, note: text.value });
  });
  return form;
}

function note() {
  if (!open || open.kind === "rejects") return;
  noting = true;
  byId("flag").hidden = false;
  byId("note").select();
}

const unflag = (kind) => changeFlag("unflag", { kind, id: kind === "prompt" ? open.prompt_id : open[`${UNIT}_id`] });

async function changeFlag(path, body) {
  try {
    about(await tell(path, body));
    const row = String(open.row);
    open = null;
    listed.query = null; // its flags are others now, and its rows where they are filtered by
    document.activeElement?.blur();
    if (state().get("row") === row) await draw();
  } catch (error) {
    alertHere(error.message);
  }
}

function alertHere(message) {
  const form = byId("flag");
  form?.querySelector(".look")?.remove();
  const said = element("p", message, "look");
  said.setAttribute("role", "alert");
  form?.append(said);
}

function about(now) {
  byId(`${KIND}-count`).textContent = now[KIND].toLocaleString("en");
  byId("rejects-count").textContent = now.rejects.toLocaleString("en");
  byId("flag-count").textContent = now.flags.toLocaleString("en");
}
