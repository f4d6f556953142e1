"use strict";
// The image browser: filters choose cases, a case shows its pictures, the slider walks its steps.
(() => {
  const data = JSON.parse(document.getElementById("gallery-data").textContent);
  const at = (id) => document.getElementById(id);
  const [height, width, channels] = data.shape;
  const size = height * width * channels;
  const state = { shown: [], chosen: null, step: Infinity };  // opens on the last step

  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  const path = (item) => (item.bytes ??= bytes(item.path));
  const clean = (item) => (data.images[item.image].bytes ??= bytes(data.images[item.image].clean));
  const attacked = (item) => (item.attackedBytes ??= bytes(item.attacked));
  const frame = (item, step) => path(item).subarray(step * size, (step + 1) * size);

  function draw(canvas, pixels, label) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = pixels[i * channels + Math.min(c, channels - 1)];
      picture.data[4 * i + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
    if (label) canvas.setAttribute("aria-label", label);
  }

  const best = (chances) => chances.indexOf(Math.max(...chances));
  const name = (index) => data.classes[index];
  const verdict = (chances, label) => {
    const answer = best(chances);
    return `${name(answer)} (${chances[answer].toFixed(2)}), ${answer === label ? "right" : "wrong"}`;
  };

  function option(select, value, text) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    select.append(made);
  }

  function fillFilters() {
    data.attacks.forEach((attack, i) => option(at("by-attack"), i, attack));
    option(at("by-class"), "", "all");
    for (const label of [...new Set(data.images.map((i) => i.label))].sort((a, b) => a - b)) {
      option(at("by-class"), label, name(label));
    }
    for (const id of ["by-attack", "by-class", "by-outcome"]) at(id).addEventListener("change", filter);
    at("by-attack").closest("form").addEventListener("submit", (event) => event.preventDefault());
  }

  const matches = (item, outcome) =>
    item.attack === Number(at("by-attack").value) &&
    (at("by-class").value === "" || data.images[item.image].label === Number(at("by-class").value)) &&
    (outcome === "" || item.outcome === outcome);

  // The outcomes' counts follow the other two filters.
  function countOutcomes() {
    const select = at("by-outcome");
    const chosen = select.value;
    select.replaceChildren();
    const count = (outcome) => data.cases.filter((item) => matches(item, outcome)).length;
    option(select, "", `all (${count("")})`);
    for (const [key, words] of Object.entries(data.outcomes)) option(select, key, `${words} (${count(key)})`);
    select.value = chosen;
  }

  function filter() {
    countOutcomes();
    state.shown = data.cases.filter((item) => matches(item, at("by-outcome").value));
    const all = data.cases.filter((item) => item.attack === Number(at("by-attack").value)).length;
    at("count").textContent = `${state.shown.length} of ${all} images shown`;
    at("thumbs").replaceChildren(...state.shown.map(thumb));
    at("case").hidden = state.shown.length === 0;
    if (state.shown.length === 0) return;
    // The same image under another attack stays chosen, so that the two can be compared.
    choose(state.shown.find((item) => item.image === state.chosen?.image)
      ?? state.shown.find((item) => item.outcome === "saved")
      ?? state.shown.find((item) => item.outcome === "lost") ?? state.shown[0]);
  }

  function thumb(item) {
    const button = document.createElement("button");
    const canvas = document.createElement("canvas");
    const { index, label } = data.images[item.image];
    const right = best(item.answer) === label;
    const mark = document.createElement("span");
    mark.textContent = `${name(best(item.answer))} ${right ? "✓" : "✗"}`;
    mark.className = right ? "good" : "bad";
    button.type = "button";
    // The name that is read out holds the words that are seen, for who speaks to the browser.
    const words = `Image ${index}, class ${name(label)}: ${data.outcomes[item.outcome]}`;
    button.setAttribute("aria-label", `${words}; ${mark.textContent}`);
    canvas.setAttribute("aria-hidden", "true");
    mark.setAttribute("aria-hidden", "true");
    draw(canvas, attacked(item));
    button.append(canvas, mark);
    button.addEventListener("click", () => choose(item));
    return button;
  }

  function choose(item) {
    stop();
    state.chosen = item;
    // One stop for the tab key; the arrow keys do the rest.
    [...at("thumbs").children].forEach((button, i) => {
      const here = state.shown[i] === item;
      button.setAttribute("aria-pressed", here);
      button.tabIndex = here ? 0 : -1;
    });
    const { index, label, probabilities } = data.images[item.image];
    at("case-title").textContent = `Image ${index}, class ${name(label)}: ${data.outcomes[item.outcome]}`;
    caption("clean", clean(item), "Clean", verdict(probabilities, label));
    caption("attacked", attacked(item), `Attacked, ${data.attacks[item.attack]}`, verdict(item.attackedProbabilities, label));
    const change = attacked(item).map((value, i) =>
      Math.max(0, Math.min(255, 127.5 + data.factor * (value - clean(item)[i]))));
    caption("difference", change, `Attacked − clean, × ${data.factor}`, "mid-grey is no change");
    at("final-answer").textContent = `${verdict(item.answer, label)}; average of ${data.restarts}`;
    at("step").max = data.steps.length - 1;
    show(Math.min(state.step, data.steps.length - 1));
  }

  function caption(id, pixels, title, text) {
    draw(at(id), pixels, `${title}: ${text}`);
    at(`${id}-caption`).textContent = `${title}: ${text}`;
  }

  function show(step) {
    state.step = step;
    const item = state.chosen;
    const { label } = data.images[item.image];
    const chances = item.probabilities[step];
    const words = data.steps[step] === 0 ? "Noised, before the first step" : `After step ${data.steps[step]} of ${data.total}`;
    at("step").value = step;
    at("step").setAttribute("aria-valuetext", `${words}, classified ${verdict(chances, label)}`);
    at("step-words").textContent = words;
    caption("purified", frame(item, step), words, verdict(chances, label));
    at("step-size").textContent = item.sizes[step] ?? "none yet";
    at("score-norm").textContent = item.norms[step] ?? "none yet";
    at("answer").textContent = verdict(chances, label);
    // Of many classes the likeliest are listed, and the true one.
    const order = chances.map((_, i) => i);
    const listed = order.length <= 10 ? order
      : [...new Set([label, ...order.sort((a, b) => chances[b] - chances[a]).slice(0, 9)])];
    at("probabilities").replaceChildren(...listed.map((i) => probability(i, chances[i], i === label)));
  }

  // From the noised image to the last step, in three seconds; the slider, or another image, stops it. A screen
  // reader is told the end alone.
  function play() {
    stop();
    at("played").textContent = "";
    show(0);
    state.timer = setInterval(() => {
      show(state.step + 1);
      if (state.step < data.steps.length - 1) return;
      stop();
      at("played").textContent = at("step").getAttribute("aria-valuetext");
    }, Math.max(100, 3000 / data.steps.length));
  }

  function stop() {
    clearInterval(state.timer);
  }

  function probability(index, chance, right) {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    const value = document.createElement("td");
    const cell = document.createElement("td");
    const bar = document.createElement("div");
    head.scope = "row";
    head.textContent = name(index) + (right ? " (true)" : "");
    value.textContent = chance.toFixed(3);
    bar.className = right ? "bar right" : "bar";
    bar.style.width = `${100 * chance}%`;
    cell.append(bar);
    row.append(head, value, cell);
    return row;
  }

  function move(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const last = state.shown.length - 1;
    const next = Math.max(0, Math.min(last, state.shown.indexOf(state.chosen) + steps[event.key]));
    choose(state.shown[next]);
    at("thumbs").children[next].focus();
  }

  fillFilters();
  // Words need more room than numbers.
  at("thumbs").classList.toggle("words", Math.max(...data.classes.map((text) => text.length)) > 4);
  at("thumbs").addEventListener("keydown", move);
  at("step").addEventListener("input", () => {
    stop();
    show(Number(at("step").value));
  });
  at("play").addEventListener("click", play);
  at("gallery").hidden = false;
  filter();
})();
