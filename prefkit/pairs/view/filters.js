// The controls: what is filtered by, the keys, and what happens at the start.

function nothing() {
  const names = [...FILTERS[KIND], ...FILTERS.rejects, "none", "sort", "order", "page", "row"];
  return Object.fromEntries(names.map((name) => [name, null]));
}

function controls(now) {
  const kind = table(now);
  for (const label of byId("filters").querySelectorAll("label"))
    label.hidden = label.dataset.of !== "both" && label.dataset.of !== kind;
  for (const one of document.querySelectorAll("[data-table]"))
    one.setAttribute("aria-pressed", String(one.dataset.table === kind));
  for (const name of FILTERS[kind]) {
    const control = byId(name);
    if (control.choices) control.selectedIndex = chosenIndex(control, name, now);
    else if (document.activeElement !== control || control.tagName === "SELECT") control.value = now.get(name) ?? "";
  }
  byId(`sort-${kind}`).value = now.get("sort") ? `${now.get("sort")} ${now.get("order") ?? "ascending"}` : "";
  byId("show-flagged").setAttribute("aria-pressed", String(now.get("flagged") === "yes"));
  byId("clear").disabled = ![...queryOf(now).keys()].length;
}

// A choice is everything, no value, or one value, whatever text that is.
function fill(name, { values, left_out }) {
  const control = byId(name);
  control.choices = [{ all: true }, ...values.map(([value]) => (value === null ? { none: true } : { value: String(value) }))];
  const named = (value) => (value === "" ? "(empty)" : name === "label" ? verdict({ label: value }) : value ?? "none");
  const options = values.map(([value, count]) => new Option(`${named(value)} (${count.toLocaleString("en")})`));
  control.replaceChildren(new Option("all"), ...options);
  if (left_out) {
    const more = new Option(`and ${left_out.toLocaleString("en")} rarer ones`);
    more.disabled = true;
    control.append(more);
    control.choices.push({}); // its place
  }
}

function chosenIndex(control, name, now) {
  if (now.get("none")?.split(",").includes(name)) return control.choices.findIndex((choice) => choice.none);
  if (!now.has(name)) return 0;
  const at = control.choices.findIndex((choice) => choice.value === now.get(name));
  if (at >= 0) return at;
  control.choices.push({ value: now.get(name) }); // one that the data set has not, or a rare one
  control.append(new Option(now.get(name)));
  return control.options.length - 1;
}

// What a control asks for, as changes of the state.
function changesOf(control) {
  const name = control.name;
  if (control.id.startsWith("sort-")) {
    const [sort, order] = control.value.split(" ");
    return { sort: sort || null, order: order || null };
  }
  if (!control.choices) {
    if (control.validity.badInput) return {};
    const value = name === "id" ? control.value.trim().toLowerCase() : control.value;
    return { [name]: value === "" ? null : value };
  }
  const choice = control.choices[control.selectedIndex];
  const others = (state().get("none") ?? "").split(",").filter((one) => one && one !== name);
  const none = [...others, ...(choice.none ? [name] : [])].join(",");
  return { [name]: choice.value ?? null, none: none || null };
}

const look = (kind) => go({ ...nothing(), table: kind === "rejects" ? kind : null });

// ---- keys ----

const KEYS = {
  j: () => move(1),
  k: () => move(-1),
  f: () => note(),
  u: () => open?.flags && isFlagged(open) && unflag(open.flags.pair !== null ? "pair" : "prompt"),
  h: () => past(),
  d: () => differing(!marked),
  "/": () => { byId("filter").open = true; document.body.classList.contains("reading") && !WIDE.matches && go({ row: null }); byId("text").focus(); },
  p: () => look(KIND),
  r: () => look("rejects"),
  "?": () => byId("help").showModal(),
  Escape: () => state().has("row") && go({ row: null }),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.matches("input, select")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (!Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

const touched = new Set(); // controls whose change is not in the state yet
let typing;
function apply() {
  clearTimeout(typing);
  const changes = Object.assign({ page: null, row: null }, ...[...touched].map(changesOf));
  const typed = [...touched].every((control) => control.tagName === "INPUT");
  touched.clear();
  go(changes, { replace: typed });
}
byId("filters").addEventListener("input", ({ target }) => {
  touched.add(target);
  clearTimeout(typing);
  if (target.tagName === "INPUT") typing = setTimeout(apply, TYPING);
  else apply();
});
byId("filters").addEventListener("change", () => touched.size && apply());
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("clear").addEventListener("click", () => go({ ...nothing() }));
byId("page-before").addEventListener("click", () => go({ page: listed.page - 1 || null, row: null }));
byId("page-after").addEventListener("click", () => go({ page: listed.page + 1, row: null }));
byId("show-help").addEventListener("click", () => byId("help").showModal());
byId("show-flagged").addEventListener("click", () =>
  go({ ...nothing(), table: null, flagged: state().get("flagged") === "yes" ? null : "yes" }));
for (const one of document.querySelectorAll("[data-table]"))
  one.addEventListener("click", () => look(one.dataset.table));
byId("skip").addEventListener("click", (event) => { event.preventDefault(); byId("list").focus(); });
addEventListener("hashchange", draw);

function fit() {
  byId("list").parentElement.style.setProperty("--above", `${byId("list").getBoundingClientRect().top + scrollY}px`);
}
for (const one of [byId("filter"), byId("said"), document.querySelector("header")]) new ResizeObserver(fit).observe(one);

if (!WIDE.matches) byId("filter").open = false;
ask("about").then(about).catch(say);
draw().then(() => ask("choices")).then((found) => { // which takes longer than the first page
  for (const kind of [KIND, "rejects"])
    for (const [name, held] of Object.entries(found[kind])) fill(name, held);
  controls(state());
}).catch(say);
