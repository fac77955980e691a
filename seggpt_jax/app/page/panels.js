// The panels at the side: classes, how images are answered, and the training run.

import {panelAddress, setClasses, setSettings, startLearning, stopLearning} from "./api.js";
import {change, current, state} from "./state.js";

const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------------------------------------------------- classes

let shownClasses = "";
export const hidden = new Set();  // classes that are not shown on pictures

export function showClasses(choose, remove) {
  const list = $("classes"), wanted = JSON.stringify([state.classes, state.colors, current.classIndex, [...hidden]]);
  const typing = list.contains(document.activeElement) && document.activeElement.tagName === "INPUT";
  if (typing || shownClasses === wanted) return;
  shownClasses = wanted;
  list.replaceChildren(...state.classes.map((name, place) => classRow(name, place, choose, remove)));
  $("chips").replaceChildren(...state.classes.map((name, place) => classChip(name, place, choose)));
}

function classChip(name, place, choose) {
  const chip = document.createElement("button"), color = state.colors[place] ?? [128, 128, 128];
  chip.type = "button";
  chip.className = "chip";
  chip.textContent = place < 9 ? String(place + 1) : "•";
  chip.style.backgroundColor = `rgb(${color.join(" ")})`;
  // The ink that is easier to read on the color.
  chip.style.color = 0.3 * color[0] + 0.59 * color[1] + 0.11 * color[2] > 140 ? "#000" : "#fff";
  chip.title = name;
  chip.setAttribute("aria-label", `Draw class ${name}`);
  chip.setAttribute("aria-pressed", String(current.classIndex === place + 1));
  chip.addEventListener("click", () => choose(place + 1));
  return chip;
}

const hex = (color) => `#${color.map((value) => value.toString(16).padStart(2, "0")).join("")}`;

function classRow(name, place, choose, remove) {
  const tags = ["li", "button", "input", "input", "button"];
  const [item, eye, input, color, cross] = tags.map((name) => document.createElement(name));
  item.classList.toggle("chosen", current.classIndex === place + 1);
  eye.type = "button";
  eye.className = "eye";
  eye.textContent = hidden.has(place + 1) ? "Show" : "Hide";
  eye.setAttribute("aria-label", `${eye.textContent} class ${name}`);
  eye.addEventListener("click", () => {
    if (!hidden.delete(place + 1)) hidden.add(place + 1);
    choose(place + 1);
  });
  input.type = "text";
  input.value = name;
  input.maxLength = 80;
  input.setAttribute("aria-label", `Name of class ${place + 1}`);
  input.addEventListener("focus", () => { if (current.classIndex !== place + 1) choose(place + 1); });
  input.addEventListener("change", () => {
    const names = state.classes.map((each, other) => other === place ? input.value.trim() : each);
    input.blur();
    change(setClasses(names));
  });
  input.addEventListener("keydown", (event) => { if (event.key === "Enter") input.blur(); });
  color.type = "color";
  color.value = hex(state.colors[place] ?? [128, 128, 128]);
  color.setAttribute("aria-label", `Color of class ${name}`);
  color.addEventListener("change", () => {
    const colors = state.classes.map((_, other) => other === place ? color.value : state.settings.colors[other] ?? "");
    color.blur();
    change(setSettings({colors}));
  });
  cross.type = "button";
  cross.className = "eye";
  cross.textContent = "×";
  cross.title = "Remove this class";
  cross.disabled = state.classes.length < 2;
  cross.setAttribute("aria-label", `Remove class ${name}`);
  cross.addEventListener("click", () => remove(place + 1));
  item.append(classChip(name, place, choose), input, color, eye, cross);
  return item;
}

export async function addClass(choose) {
  let number = state.classes.length + 1;
  while (state.classes.includes(`class ${number}`)) number++;
  if (await change(setClasses([...state.classes, `class ${number}`]))) choose(state.classes.length);
}

// --------------------------------------------------------------------------------------------------------- settings

const NUMBERS = {split: "split", examples: "examples", "least-area": "least_area"};

export function prepareSettings() {
  for (const [id, name] of Object.entries(NUMBERS)) {
    const number = () => Math.max(0, Math.round(Number($(id).value) || 0));
    $(id).addEventListener("change", () => change(setSettings({[name]: number()})));
  }
  for (const name of ["flips", "choice", "network"]) {
    $(name).addEventListener("change", () => change(setSettings({[name]: $(name).value})));
  }
  $("paused").addEventListener("change", () => change(setSettings({paused: $("paused").checked})));
  $("sensitivity").addEventListener("input", showSensitivityValue);
  $("sensitivity").addEventListener("change", () => {
    const values = state.classes.map((_, place) => state.settings.sensitivity[place] ?? 1);
    values[current.classIndex - 1] = factor();
    change(setSettings({sensitivity: values}));
  });
}

// The slider is logarithmic: each step to the right looks a little harder for the class.
const factor = () => Number((2 ** Number($("sensitivity").value)).toFixed(3));
const showSensitivityValue = () => {
  $("sensitivity-value").textContent = `${state.classes[current.classIndex - 1] ?? ""} × ${factor().toFixed(2)}`;
};

export function showSettings() {
  const {settings} = state;
  for (const [id, name] of Object.entries(NUMBERS)) if (document.activeElement !== $(id)) $(id).value = settings[name];
  $("flips").value = settings.flips;
  $("choice").value = settings.choice;
  const networks = [["start", "as started"], ...(state.plain ? [["plain", "no adapter"]] : [])];
  networks.push(...state.learned.map((name) => [name, `learned here, ${name}`]));
  if ($("network").options.length !== networks.length) {
    $("network").replaceChildren(...networks.map(([value, text]) => new Option(text, value)));
  }
  $("network").value = settings.network;
  $("paused").checked = settings.paused;
  if (document.activeElement !== $("sensitivity")) {
    $("sensitivity").value = Math.log2(settings.sensitivity[current.classIndex - 1] ?? 1);
  }
  showSensitivityValue();
}

// --------------------------------------------------------------------------------------------------------- learning

export function prepareLearning() {
  $("learn").addEventListener("click", () => {
    change(startLearning(Math.round(Number($("steps").value)), $("again").checked));
  });
  $("stop").addEventListener("click", () => change(stopLearning()));
  $("steps").addEventListener("input", showHint);
}

const minutes = (value) => {
  return value < 1.5 ? `${Math.max(10, Math.round(value * 6) * 10)} seconds` : `${Math.round(value)} minutes`;
};

function showHint() {
  const labeled = [...state.images.values()].filter((image) => image.label).length;
  const steps = Number($("steps").value), left = state.step_seconds && steps * state.step_seconds / 60;
  $("learn-hint").textContent = labeled < 2
    ? "Trains the network on your examples. It needs at least two."
    : `Trains the network on your ${labeled} examples${left ? `, about ${minutes(left)}` : ""}. Then it answers.`;
  $("learn").disabled = labeled < 2;
}

const STATES = {
  running: "Training", stopping: "Stopping after this step", stopped: "Stopped; what it learned is in use",
  done: "Done; the network that learned is in use", failed: "Failed",
};

export function showLearning() {
  const run = state.learning, active = ["running", "stopping"].includes(run?.state);
  showHint();
  $("again-row").hidden = $("network-download").hidden = !state.learned.length;
  $("network-download").href = `api/learned/${state.learned.at(-1)}`;
  if (!state.learned.length) $("again").checked = false;
  $("learn").hidden = active;
  $("stop").hidden = !active;
  $("stop").disabled = run?.state === "stopping";
  $("run").hidden = !run;
  if (!run) return;
  $("run-bar").max = run.steps;
  $("run-bar").value = run.step;
  const loss = run.curve.at(-1)?.[1], score = run.scores.at(-1)?.[1];
  $("run-text").textContent = [
    run.step || !active ? `${STATES[run.state]}: step ${run.step} of ${run.steps}` : "Starting, about half a minute",
    loss != null && `loss ${loss.toFixed(3)}`, score != null && `mIoU ${score.toFixed(3)}`,
    run.minutes != null && `${minutes(run.minutes)} left`, run.error,
  ].filter(Boolean).join(", ");
  drawCurve($("curve"), run);
  $("panel").hidden = !run.panel;
  if (run.panel && $("panel").dataset.name !== run.panel) {
    $("panel").dataset.name = run.panel;
    $("panel").src = panelAddress(run.panel);
  }
}

function drawCurve(canvas, run) {
  const context = canvas.getContext("2d"), {width, height} = canvas;
  context.clearRect(0, 0, width, height);
  canvas.hidden = run.curve.length < 2;
  const line = (points, most, color, text, y) => {
    const known = points.filter(([, value]) => value != null);
    context.strokeStyle = context.fillStyle = color;
    context.lineWidth = 3;
    context.beginPath();
    const place = ([step, value]) => [10 + step / run.steps * (width - 20), height - 10 - value / most * (height - 46)];
    known.forEach((point) => context.lineTo(...place(point)));
    context.stroke();
    context.font = "600 20px system-ui, sans-serif";
    context.fillText(text, y, 24);
  };
  const most = Math.max(...run.curve.map(([, loss]) => loss ?? 0), 1e-6);
  line(run.curve, most, "#0b5cad", "loss", 12);
  if (run.scores.length > 1) line(run.scores, 1, "#b34b00", "mIoU", 70);
}
