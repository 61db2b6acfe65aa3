// The order and the sides of a subject's trials: the same for the same study and subject, whatever the browser.

function hash(text) {
  let h = 2166136261;
  for (const c of unescape(encodeURIComponent(text))) h = Math.imul(h ^ c.charCodeAt(0), 16777619);
  return h >>> 0;
}

function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

function shuffle(list, random) {
  for (let i = list.length - 1; i > 0; i--) {
    const j = Math.floor(random() * (i + 1));
    [list[i], list[j]] = [list[j], list[i]];
  }
  return list;
}

// One block of trials for each question: every pair once, a tenth again with the sides exchanged, and a few catches
// that show the same file on both sides.
function order(plan, subject) {
  const random = generator(hash(plan.study + "/" + subject));
  const trials = [];
  for (const question of plan.questions) {
    const block = shuffle(plan.pairs.map((pair) => ({ pair, question: question.id, kind: "trial" })), random);
    for (const trial of block) trial.left = random() < 0.5 ? "ours" : "baseline";
    const first = block.slice(0, Math.max(1, Math.floor(block.length / 2)));
    const repeats = shuffle(first, random).slice(0, Math.ceil(plan.pairs.length * plan.repeats));
    const later = repeats.map((t) => ({ ...t, kind: "repeat", left: t.left === "ours" ? "baseline" : "ours" }));
    const caught = shuffle(block.slice(), random).slice(0, Math.ceil(plan.pairs.length * plan.catches));
    const catches = caught.map((t) => ({ ...t, kind: "catch", left: "ours" }));
    const half = Math.max(1, Math.floor(block.length / 2));
    trials.push(...block.slice(0, half), ...shuffle([...block.slice(half), ...later, ...catches], random));
  }
  return trials.map((trial, i) => {
    const other = trial.left === "ours" ? "baseline" : "ours";
    const right = trial.kind === "catch" ? "ours" : other;
    const set = (side) => (side === "ours" ? plan.ours : trial.pair.baseline);
    const file = (side) => (side === "ours" ? trial.pair.ours : trial.pair.other);
    return {
      number: i, kind: trial.kind, question: trial.question, item: trial.pair.item, caption: trial.pair.caption,
      source: trial.pair.source, baseline: trial.pair.baseline,
      left: set(trial.left), right: set(right), leftFile: file(trial.left), rightFile: file(right),
    };
  });
}
