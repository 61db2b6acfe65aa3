// The page: asks, keeps answers in the browser after each, and saves them as JSON lines.

const plan = JSON.parse(document.getElementById("plan").textContent);
const by = (id) => document.getElementById(id);
let subject = "", trials = [], answers = [], shown = 0;

const key = () => `study/${plan.study}/${subject}`;
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
  by("count").textContent = `${answers.length} of ${trials.length}`;
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
    study: plan.study, subject, trial: trial.number, item: trial.item, question: trial.question, ours: plan.ours,
    baseline: trial.baseline, left: trial.left, right: trial.right, kind: trial.kind, answer: choice,
    milliseconds: Date.now() - shown,
  });
  localStorage.setItem(key(), JSON.stringify(answers));
  show();
}

function save() {
  const lines = answers.map((answer) => JSON.stringify(answer) + "\n");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
  link.download = `answers-${subject.replace(/[^\w-]+/g, "_")}.jsonl`;
  link.click();
}

by("start").addEventListener("submit", (event) => {
  event.preventDefault();
  subject = by("subject").value.trim();
  if (!subject) return;
  trials = order(plan, subject);
  answers = JSON.parse(localStorage.getItem(key()) || "[]");
  by("start").hidden = true;
  by("run").hidden = false;
  show();
});
for (const choice of ["left", "tie", "right"]) by(`choose-${choice}`).addEventListener("click", () => reply(choice));
for (const button of document.querySelectorAll(".save")) button.addEventListener("click", save);
const keys = { ArrowLeft: "left", 1: "left", ArrowDown: "tie", 2: "tie", ArrowRight: "right", 3: "right" };
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (keys[event.key] && !by("run").hidden) {
    event.preventDefault();
    reply(keys[event.key]);
  }
});
