"use strict";
// Texts come from data and models and are never trusted: they reach a page through textContent alone.

const MOST_CELLS = 4e6; // of the table that finds common words; longer texts are shown unmarked
const byId = (id) => document.getElementById(id);

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function block(title, content) {
  const made = element("div");
  const text = element("div", undefined, "text");
  text.append(...[content].flat());
  made.append(element("h3", title), text);
  return made;
}

function facts(entries) {
  const list = element("dl");
  for (const [name, value] of entries)
    if (value !== null && value !== undefined) list.append(element("dt", name), element("dd", String(value)));
  return list;
}

// Two texts as nodes, with the words marked that are not in their longest common subsequence.
function differences(left, right) {
  const [a, b] = [left, right].map((text) => text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? []);
  if ((a.length + 1) * (b.length + 1) > MOST_CELLS) return [left, right];
  const wide = b.length + 1;
  const common = new Uint16Array((a.length + 1) * wide);
  for (let i = a.length - 1; i >= 0; i--)
    for (let j = b.length - 1; j >= 0; j--)
      common[i * wide + j] = a[i] === b[j]
        ? common[(i + 1) * wide + j + 1] + 1
        : Math.max(common[(i + 1) * wide + j], common[i * wide + j + 1]);
  const sides = [[], []];
  const add = (side, word, mark) => {
    const last = sides[side].at(-1);
    if (last && last.mark === mark) last.text += word;
    else sides[side].push({ text: word, mark });
  };
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) {
      add(0, a[i++], false);
      add(1, b[j++], false);
    } else if (j === b.length || (i < a.length && common[(i + 1) * wide + j] >= common[i * wide + j + 1]))
      add(0, a[i++], true);
    else add(1, b[j++], true);
  }
  return sides.map((runs, side) =>
    runs.map((run) => (run.mark ? element(side ? "del" : "ins", run.text) : document.createTextNode(run.text))));
}
