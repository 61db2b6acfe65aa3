// The page: asks, keeps answers in the browser after each, and saves them as JSON lines.

const plan = JSON.parse(document.getElementById("plan").textContent);
const by = (id) => document.getElementById(id);
let subject = "", trials = [], answers = [], shown = 0;

const key = () => `study/${plan.study}/${subject}`;
const LOST = "This browser keeps no answers: leave this page open, and save them before you close it.";
const DAMAGED = "The answers that this browser kept cannot be read. They were put aside; you begin anew.";

// Storage may be blocked or full; the page then goes on with what it has in memory. What is damaged in it is put aside
// under another name, where the next answer does not overwrite it.
function kept() {
  try {
    const text = localStorage.getItem(key());
    const found = parsed(text || "[]");
    if (found) return found.map((answer) => ({ ...answer, of: trials.length }));
    localStorage.setItem(`${key()}/damaged/${Date.now()}`, text);
    localStorage.setItem(key(), "[]");
    notice(DAMAGED);
  } catch {
    notice(LOST);
  }
  return [];
}

// A list of answers, or null where the text is none.
function parsed(text) {
  try {
    const found = JSON.parse(text);
    return Array.isArray(found) && found.every((answer) => answer && typeof answer === "object") ? found : null;
  } catch {
    return null;
  }
}

function keep() {
  try {
    localStorage.setItem(key(), JSON.stringify(answers));
    notice("");
  } catch {
    notice(LOST);
  }
}

function notice(text) {
  by("notice").textContent = text;
  by("notice").hidden = !text;
}

const video = (file) => /\.(mp4|webm)$/i.test(file);

function media(file, label) {
  const element = document.createElement(video(file) ? "video" : "img");
  element.src = file;
  if (video(file)) Object.assign(element, { loop: true, muted: true, autoplay: true, playsInline: true });
  element.setAttribute(video(file) ? "aria-label" : "alt", label);
  return element;
}

function show() {
  const done = answers.length >= trials.length;
  by("trial").hidden = done;
  by("end").hidden = !done;
  by("progress").max = trials.length;
  by("progress").value = answers.length;
  by("count").textContent = `${answers.length} of ${trials.length} answered`;
  by("undo").disabled = !answers.length;
  if (done) return;
  const trial = trials[answers.length];
  by("question").textContent = plan.questions.find((q) => q.id === trial.question).text;
  by("caption").textContent = trial.caption || "";
  by("source").hidden = !trial.source;
  by("source").replaceChildren(...(trial.source ? [media(trial.source, "source")] : []));
  by("left").replaceChildren(media(trial.leftFile, "left"));
  by("right").replaceChildren(media(trial.rightFile, "right"));
  shown = Date.now();
}

function reply(choice) {
  if (by("trial").hidden) return;
  const trial = trials[answers.length];
  answers.push({
    study: plan.study, subject, trial: trial.number, of: trials.length, item: trial.item, question: trial.question,
    ours: plan.ours, baseline: trial.baseline, left: trial.left, right: trial.right, kind: trial.kind, answer: choice,
    milliseconds: Date.now() - shown,
  });
  keep();
  show();
}

function undo() {
  answers.pop();
  keep();
  show();
}

function save() {
  const lines = answers.map((answer) => JSON.stringify(answer) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
  // What a name lacks that a file may be called by, the number tells apart.
  const number = hash(`${plan.study}/${subject}`).toString(16).padStart(8, "0");
  link.download = `answers-${subject.replace(/[^\w-]+/g, "_")}-${number}.jsonl`;
  link.click();
}

by("start").addEventListener("submit", (event) => {
  event.preventDefault();
  subject = by("subject").value.trim();
  if (!subject) return;
  trials = order(plan, subject);
  answers = kept();
  by("start").hidden = true;
  by("run").hidden = false;
  show();
});
for (const choice of ["left", "tie", "right"]) by(`choose-${choice}`).addEventListener("click", () => reply(choice));
by("undo").addEventListener("click", undo);
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
const keys = { ArrowLeft: "left", 1: "left", 2: "tie", ArrowRight: "right", 3: "right" };
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (keys[event.key] && !by("run").hidden) {
    event.preventDefault();
    reply(keys[event.key]);
  }
});
