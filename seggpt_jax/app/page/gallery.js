// The row of small pictures, and the name and state of the one that is open.

import {thumbnailAddress} from "./api.js";
import {current, state} from "./state.js";

const $ = (id) => document.getElementById(id), list = $("thumbnails");
const buttons = new Map();

// What the state of an image is called.
export function described(image, long = false) {
  if (image.error) return {text: long ? `Could not be answered: ${image.error}` : "failed", kind: "failed"};
  if (image.label && !state.needs_examples) {
    const why = "Labeled, for training and downloads; what has learned needs no example";
    return {text: long ? why : "label", kind: "example"};
  }
  if (image.label) {
    const used = state.examples.includes(image.key);
    const why = used ? "Example: answers use it" : "Example, but answers do not use it at the moment";
    return {text: long ? why : "example", kind: used ? "example" : "unused"};
  }
  const names = image.used.map((key) => state.images.get(key)?.name).filter(Boolean).join(", ");
  const how = state.needs_examples ? `Answered by the network, from ${names}` : "Answered by what has learned";
  if (image.done) return {text: long ? `Done. ${how}` : "done", kind: "example"};
  if (image.answer === state.round) return {text: long ? how : "", kind: ""};
  if (image.answer) return {text: long ? "Answered before the last change; a new answer comes" : "…", kind: ""};
  return {text: long ? "Not answered yet" : "…", kind: ""};
}

// What an answer's picture depends on, apart from the image's own changes.
export const shownVersion = () => `${state.settings.sensitivity.join("_")}.${state.settings.least_area}`;

function make(key, open) {
  const item = document.createElement("li"), button = document.createElement("button");
  const picture = document.createElement("img"), label = document.createElement("span");
  button.type = "button";
  picture.alt = "";
  picture.loading = "lazy";
  label.className = "state";
  button.append(picture, label);
  button.addEventListener("click", () => open(key));
  item.append(button);
  buttons.set(key, {item, button, picture, label, version: ""});
  return buttons.get(key);
}

const FILTERS = {
  "": () => true, open: (image) => !image.label && !image.done, labeled: (image) => image.label, done: (image) => image.done,
};

// The keys of the pictures that are shown, in their order; the open one is always among them.
export function shownOrder() {
  const filter = $("filter").value, index = Number(filter), pictures = state.order.map((key) => state.images.get(key));
  const wanted = FILTERS[filter] ?? ((image) => (image.label ? image.holds : image.shows).includes(index));
  const found = pictures.filter((image) => image && (image.key === current.key || wanted(image)));
  // Answers first, the least sure one at the top.
  if ($("order").value === "sure") found.sort((a, b) => rank(a) - rank(b));
  return found.map((image) => image.key);
}

const rank = (image) => image.label || image.done ? 2 : image.answer ? image.sure : 1;

function showFilter() {
  const names = state.classes.map((name, place) => [String(place + 1), `with ${name}`]);
  const wanted = [["", "all"], ["open", "to check"], ["labeled", "labeled"], ["done", "done"], ...names];
  const shown = [...$("filter").options].map((each) => [each.value, each.text]);
  if (JSON.stringify(shown) !== JSON.stringify(wanted)) {
    const value = $("filter").value;
    $("filter").replaceChildren(...wanted.map(([value, text]) => new Option(text, value)));
    $("filter").value = wanted.some(([each]) => each === value) ? value : "";
  }
  const images = [...state.images.values()], count = (name) => images.filter(FILTERS[name]).length;
  $("counts").textContent = `${count("labeled")} labeled, ${count("done")} done, ${count("open")} to check`;
}

export function showGallery(open) {
  showFilter();
  const order = shownOrder(), colors = state.settings.colors.join("_");
  for (const [key, {item}] of buttons) {
    if (!order.includes(key)) {
      item.remove();
      buttons.delete(key);
    }
  }
  order.forEach((key, place) => {
    const image = state.images.get(key);
    if (!image) return;
    const shown = buttons.get(key) ?? make(key, open);
    const {text, kind} = described(image), version = `${image.label}.${image.label ? "" : `${image.answer}.${shownVersion()}`}.${colors}`;
    if (shown.version !== version) shown.picture.src = thumbnailAddress(key, version);
    shown.version = version;
    shown.label.textContent = text;
    shown.label.className = `state ${kind}`;
    shown.button.title = image.name;
    shown.button.setAttribute("aria-label", `${image.name}. ${described(image, true).text}`);
    shown.button.setAttribute("aria-current", String(key === current.key));
    if (list.children[place] !== shown.item) list.insertBefore(shown.item, list.children[place] ?? null);
  });
}

export const scrollToCurrent = () => {
  buttons.get(current.key)?.button.scrollIntoView({block: "nearest", inline: "nearest"});
};
