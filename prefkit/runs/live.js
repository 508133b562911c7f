// A page that is watched: it asks for itself, and replaces the parts that are different.

const EVERY = 2000; // milliseconds
const known = new Map(); // id -> the part's HTML as it came, before this page's scripts worked on it
let tag = null;

const PARTS = "header[id], main > section[id]";
const REACHED = "summary, svg[tabindex], [tabindex], a";

function replaceParts(text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  for (const part of fresh.querySelectorAll(PARTS)) {
    const html = part.outerHTML;
    if (known.get(part.id) === html) continue;
    const first = !known.has(part.id);
    known.set(part.id, html);
    const old = byId(part.id);
    if (old === null) return location.reload(); // a phase that was not there: another outline
    if (first && old.outerHTML === html) continue;
    replacePart(old, document.adoptNode(part));
  }
}

// Open details stay open, and what has the focus keeps it.
function replacePart(old, part) {
  const open = [...old.querySelectorAll("details")].map((details) => details.open);
  const reached = [...old.querySelectorAll(REACHED)].indexOf(document.activeElement);
  const pointed = [...charts].find(([figure]) => old.contains(figure) && figure.querySelector(".cross"));
  const step = pointed ? Number(pointed[1].svg.getAttribute("aria-valuenow")) : null;
  old.replaceWith(part);
  part.querySelectorAll("details").forEach((details, at) => { details.open = open[at] ?? false; });
  prepareAll();
  const figure = part.querySelector("figure.curves[data-group]");
  if (reached >= 0) part.querySelectorAll(REACHED)[reached]?.focus({ preventScroll: true });
  if (step !== null && figure !== null && charts.has(figure)) point(figure, step);
}

async function look() {
  let said, ended = false;
  try {
    const answer = await fetch(location.href, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    if (answer.status === 200) {
      tag = answer.headers.get("ETag");
      replaceParts(await answer.text());
    }
    said = answer.status === 200 || answer.status === 304
      ? `Live. Newest of ${new Date().toLocaleTimeString()}.`
      : await answer.text();
  } catch {
    said = "prefkit report --watch has ended; this is what it showed last.";
    ended = true;
  }
  const live = byId("live");
  if (ended) live.setAttribute("role", "alert"); // read aloud, as the time of every look is not
  else live.removeAttribute("role");
  if (live.textContent !== said) live.textContent = said;
  setTimeout(look, EVERY);
}

look();
