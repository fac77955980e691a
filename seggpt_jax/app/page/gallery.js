// The row of small pictures, and the name and state of the one that is open.

import {thumbnailAddress} from "./api.js";
import {current, state} from "./state.js";

const list = document.getElementById("thumbnails");
const buttons = new Map();

// What the state of an image is called.
export function described(image, long = false) {
  if (image.error) return {text: long ? `Could not be answered: ${image.error}` : "failed", kind: "failed"};
  if (image.label && !state.needs_examples) {
    const why = "Labeled, for training and downloads; the learned prompt needs no example";
    return {text: long ? why : "label", kind: "example"};
  }
  if (image.label) {
    const used = state.examples.includes(image.key);
    const why = used ? "Example: answers use it" : "Example, but answers do not use it at the moment";
    return {text: long ? why : "example", kind: used ? "example" : "unused"};
  }
  const names = image.used.map((key) => state.images.get(key)?.name).filter(Boolean).join(", ");
  const how = state.needs_examples ? `Answered by the network, from ${names}` : "Answered with the learned prompt";
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

export function showGallery(open) {
  for (const [key, {item}] of buttons) {
    if (!state.images.has(key)) {
      item.remove();
      buttons.delete(key);
    }
  }
  state.order.forEach((key, place) => {
    const image = state.images.get(key);
    if (!image) return;
    const shown = buttons.get(key) ?? make(key, open);
    const {text, kind} = described(image), version = `${image.changed}.${image.label ? "" : shownVersion()}`;
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
