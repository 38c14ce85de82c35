"use strict";
const choices = ["left", "right", "tie", "both bad"];
const questions = ["alignment", "aesthetics"];
const base = location.pathname.replace(/\/$/, "");
const at = (id) => document.getElementById(id);
let task = null, answers = {}, shown = 0, sending = false;

for (const question of questions) {
  for (const choice of choices) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = choice;
    button.dataset.choice = choice;
    button.addEventListener("click", () => answer(question, choice));
    at(question).append(button);
  }
}
at("submit").addEventListener("click", submit);
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("pair").hidden) return;
  const place = "1234".indexOf(event.key);
  if (place >= 0) answer(current() || "aesthetics", choices[place]);
  else if (event.key === "Backspace") { delete answers[questions.filter((q) => answers[q]).pop()]; draw(); }
  else if (event.key === "Enter") submit();
  else return;
  event.preventDefault();
});

function current() { return questions.find((question) => !answers[question]); }

function answer(question, choice) { if (!sending) { answers[question] = choice; draw(); } }

function draw() {
  for (const question of questions) {
    at(question).classList.toggle("current", current() === question);
    for (const button of at(question).querySelectorAll("button"))
      button.setAttribute("aria-pressed", String(answers[question] === button.dataset.choice));
  }
  at("submit").disabled = sending || Boolean(current());
}

function say(text) { at("message").textContent = text; }

async function ask(path, options) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const response = await fetch(base + path, options);
      if (response.status < 500) return response;
    } catch (error) { /* no connection: try again */ }
    say("No connection. Your answer is kept here and sent again …");
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}

async function next() {
  const response = await ask("/task");
  const told = await response.json();
  if (!response.ok) { at("pair").hidden = true; say(told.detail); return; }
  at("progress").max = told.total;
  at("progress").value = told.done;
  at("count").textContent = `${told.done} of ${told.total}`;
  task = told.task;
  answers = {};
  at("pair").hidden = !task;
  say(task ? "" : "That was all. Thank you!");
  if (!task) return;
  at("prompt").textContent = task.prompt;
  for (const side of ["left", "right"]) at(side).src = `${base}/${task.id}/${side}.png`;
  shown = performance.now();
  draw();
  scrollTo(0, 0);
}

async function submit() {
  if (sending || current() || !task) return;
  sending = true;
  draw();
  const body = JSON.stringify({ task: task.id, ...answers, seconds: (performance.now() - shown) / 1000 });
  const response = await ask("/vote", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  sending = false;
  if (!response.ok && response.status !== 409) { say((await response.json()).detail); draw(); return; }
  await next();
}

next();
