// The page: opens pictures, takes files and keys, and passes what is drawn on to the server.

import * as api from "./api.js";
import {Editor} from "./editor.js";
import {described, scrollToCurrent, showGallery, shownVersion} from "./gallery.js";
import {addClass, prepareLearning, prepareSettings, showClasses, showLearning, showSettings} from "./panels.js";
import {answers, change, current, listen, onFailure, refresh, state} from "./state.js";

const $ = (id) => document.getElementById(id);
const drafts = new Map();  // by image: labels that are drawn and not yet used
const shown = {key: "", version: "", confidence: ""};
const editor = new Editor($("canvas"), () => {
  edits++;
  drafts.set(shown.key, editor.labels);
  showButtons();
});
// The picture before stays on the screen until the open one is there; what is drawn meanwhile would be for neither.
const loading = () => shown.key !== current.key;
editor.locked = loading;
let edits = 0;
let toastTimer = 0;

function toast(text, bad = false) {
  $("toast").textContent = text;
  $("toast").classList.toggle("bad", bad);
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, bad ? 8000 : 4000);
}

// ----------------------------------------------------------------------------------------------------- open picture

async function open(key) {
  current.key = key;
  $("canvas").focus({preventScroll: true});  // keys are for the picture: Enter would press its small picture again
  showButtons();
  await showPicture().catch(fail);
  showGallery(open);
  scrollToCurrent();
  refresh();
}

// Loads what is not shown yet of the open picture: its pixels, and its label or answer.
async function showPicture() {
  const image = state.images.get(current.key), key = current.key;
  $("empty").hidden = Boolean(image);
  if (!image) {
    shown.key = "";
    editor.open(null, null);
    return showButtons();
  }
  const what = image.label ? "label" : image.answer ? "answer" : "";
  const version = `${what}.${what === "label" ? image.label : `${image.answer}.${shownVersion()}`}`;
  if (shown.key !== key || (shown.version !== version && !drafts.has(key) && !editor.stroke)) {
    const picture = shown.key === key ? editor.image : await api.readPicture(key);
    const read = what && !drafts.has(key) ? await api.readNumbers(key, what) : null;
    if (key !== current.key) return;  // another one was opened meanwhile
    if (shown.key === key && (drafts.has(key) || editor.stroke)) return;  // or somebody has drawn on this one
    const labels = drafts.get(key) ?? read;
    editor.colors = state.colors;
    if (shown.key === key && labels) editor.setLabels(labels);
    else editor.open(picture, labels);
    Object.assign(shown, {key, version, confidence: ""});
  }
  await showConfidence(image, version);
  showButtons();
}

async function showConfidence(image, version) {
  const wanted = $("show-confidence").checked && image.answer && !image.label ? version : "";
  if (shown.confidence === wanted) return;
  shown.confidence = wanted;
  editor.view.showConfidence(wanted ? await api.readNumbers(image.key, "confidence") : null);
}

function showButtons() {
  const image = loading() ? null : state.images.get(current.key), draft = drafts.has(current.key);
  $("image-name").textContent = image?.name ?? "";
  $("badge").textContent = image ? (draft ? "Changed by hand, not in use yet" : described(image, true).text) : "";
  const kind = state.needs_examples ? "example" : "label";
  $("use").textContent = image?.label ? `Update ${kind}` : `Use as ${kind}`;
  $("drop-example").textContent = state.needs_examples ? "Not an example" : "Remove the label";
  $("use").disabled = !image || editor.empty || (Boolean(image.label) && !draft);
  $("drop-example").hidden = !image?.label;
  $("undo").disabled = !editor.history.length && !editor.corners.length;
  $("clear").disabled = !image || editor.empty;
  $("upload-mask").disabled = !image;
}

function showProgress() {
  const {answered, total, rate, seconds} = state.progress;
  const left = seconds > 90 ? `${Math.round(seconds / 60)} min left` : seconds && `${Math.ceil(seconds)} s left`;
  const words = state.ready ? [] : ["Loading the network"];
  if (!state.order.length) words.push("Add images to start");
  else if (!answers()) words.push("Draw on one picture, then press Use as example");
  else words.push(`${answered} of ${total} answered${state.needs_examples ? "" : " with the learned prompt"}`);
  if (answers() && answered < total) {
    words.push(...state.settings.paused ? ["paused"] : [rate && `${rate.toFixed(1)} a second`, left].filter(Boolean));
  }
  $("progress-text").textContent = words.join(", ");
  $("progress-bar").max = Math.max(total, 1);
  $("progress-bar").value = answered;
}

// ---------------------------------------------------------------------------------------------------------- actions

async function use() {
  const image = state.images.get(current.key);
  if (!image || $("use").disabled) return;
  $("use").disabled = true;
  const draft = drafts.get(image.key), sent = edits;
  const request = draft ? api.putLabel(image.key, draft, image.width, image.height) : api.promote(image.key);
  const worked = await change(request.then(() => { if (edits === sent) drafts.delete(image.key); }));
  const what = state.needs_examples ? "is an example. The others are answered again." : "has a label.";
  if (worked) toast(`${image.name} ${what}`);
}

async function dropExample() {
  drafts.delete(current.key);
  shown.version = "";
  await change(api.clearLabel(current.key));
}

// Sends files to the server, three at a time.
async function addFiles(files) {
  const waiting = [...files].filter((file) => !file.name.startsWith(".")), problems = [], count = waiting.length;
  let added = 0;
  const work = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      await api.addFile(file).then((told) => { added += told.added; }, (error) => problems.push(error.message));
      toast(`Adding: ${count - waiting.length} of ${count}`);
    }
  };
  await Promise.all([work(), work(), work()]);
  await refresh();
  const words = [`${added} image${added === 1 ? "" : "s"} added`];
  if (problems.length) words.push(`${problems.length} not: ${problems[0]}`);
  toast(words.join(". "), problems.length > 0);
}

async function readMask(file) {
  const key = current.key;
  try {
    const labels = await api.readMask(key, file, current.classIndex);
    if (key === shown.key) editor.replace(labels);
  } catch (error) {
    toast(error.message, true);
  }
}

async function removeAll() {
  $("clear-dialog").close();
  drafts.clear();
  await change(api.removeAll($("keep").checked));
}

async function endSession() {
  if (!confirm("Delete all images and labels of this session?")) return;
  drafts.clear();
  await api.endSession();
  location.reload();
}

function chooseClass(index) {
  if (index < 1 || index > state.classes.length) return;
  current.classIndex = editor.classIndex = index;
  if (editor.tool === "eraser" || editor.tool === "pan") chooseTool("brush");
  showClasses(chooseClass);
  showSettings();
}

function chooseTool(tool) {
  if (tool !== "polygon") editor.cancelPolygon();
  editor.tool = tool;
  $("canvas").style.cursor = tool === "pan" ? "grab" : "crosshair";
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  }
}

function step(by) {
  const place = state.order.indexOf(current.key) + by;
  if (state.order[place]) open(state.order[place]);
}

function setSize(size) {
  editor.size = Math.min(100, Math.max(1, size));
  $("size").value = editor.size;
  editor.view.draw();
}

// --------------------------------------------------------------------------------------------------- files and keys

const KEYS = {
  b: () => chooseTool("brush"), e: () => chooseTool("eraser"), p: () => chooseTool("polygon"),
  m: () => chooseTool("pan"),
  z: () => { editor.undo(); showButtons(); }, c: () => $("show-confidence").click(), 0: () => editor.view.fit(),
  "[": () => setSize(editor.size - 4), "]": () => setSize(editor.size + 4), "+": () => editor.view.zoom(1.25),
  "-": () => editor.view.zoom(0.8), Escape: () => editor.cancelPolygon(),
  Enter: () => editor.corners.length ? editor.closePolygon() : use(),
  ArrowRight: () => step(1), ArrowDown: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1),
};

function onKey(event) {
  const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
  const sliding = event.target.matches("input[type=range]") && event.key.startsWith("Arrow");
  const pressing = event.target.matches("button, a, summary") && event.key === "Enter";
  const plain = !event.altKey && !event.metaKey && (!event.ctrlKey || event.key === "z");
  if (typing || sliding || pressing || !plain || $("clear-dialog").open) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const action = /^[1-9]$/.test(key) ? () => chooseClass(Number(key)) : KEYS[key];
  if (!action) return;
  event.preventDefault();
  action();
}

// All files of a dropped file or folder, with those in folders below.
async function filesOf(entry) {
  if (entry instanceof File) return [entry];
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader(), found = [];
  for (let more = [null]; more.length;) {
    more = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    found.push(...more);
  }
  return (await Promise.all(found.map(filesOf))).flat();
}

function prepareDrop() {
  const stage = $("stage");
  const over = (on) => (event) => {
    event.preventDefault();
    stage.classList.toggle("dragging", on);
  };
  document.addEventListener("dragover", over(true));
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false)(event); });
  document.addEventListener("drop", async (event) => {
    over(false)(event);
    // Entries are gone once this handler has returned.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry() ?? item.getAsFile());
    const files = (await Promise.all(entries.filter(Boolean).map(filesOf))).flat();
    if (files.length) addFiles(files);
  });
}

// A button that opens a dialog for files.
function choosesFiles(button, input, take) {
  $(button).addEventListener("click", () => $(input).click());
  $(input).addEventListener("change", () => {
    const files = [...$(input).files];
    $(input).value = "";
    if (files.length) take(files);
  });
}

function prepare() {
  choosesFiles("add", "files", addFiles);
  choosesFiles("add-folder", "folder", addFiles);
  choosesFiles("load", "archive", addFiles);
  choosesFiles("upload-mask", "mask-file", ([file]) => readMask(file));
  const clicks = {
    "add-boards": () => change(api.addBoards()),
    "clear-all": () => {
      $("keep").checked = false;
      $("clear-dialog").showModal();
    },
    "clear-no": () => $("clear-dialog").close(),
    "clear-yes": removeAll,
    "end": endSession,
    "use": use, "drop-example": dropExample, "undo": KEYS.z,
    "clear": () => editor.replace(new Uint8Array(editor.labels.length)),
    "zoom-in": () => editor.view.zoom(1.25), "zoom-out": () => editor.view.zoom(0.8),
    "zoom-fit": () => editor.view.fit(),
    "add-class": () => addClass(chooseClass),
  };
  for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);
  for (const button of document.querySelectorAll("[data-tool]")) {
    button.addEventListener("click", () => chooseTool(button.dataset.tool));
  }
  $("size").addEventListener("input", () => setSize(Number($("size").value)));
  $("opacity").addEventListener("input", () => {
    editor.view.opacity = Number($("opacity").value) / 100;
    editor.view.draw();
  });
  $("show-confidence").addEventListener("change", showPicture);
  document.addEventListener("click", (event) => {
    if (event.target.closest(".sheet") || !event.target.closest("#file-menu")) $("file-menu").open = false;
  });
  document.addEventListener("keydown", onKey);
  window.addEventListener("beforeunload", (event) => { if (drafts.size) event.preventDefault(); });
  $("canvas").addEventListener("pointerup", showButtons);  // corners of a polygon can be undone
  prepareDrop();
  prepareSettings();
  prepareLearning();
}

function fail(error) {
  toast(error.message, true);
  $("progress-text").textContent = error.message;
}
onFailure(fail);
listen(async () => {
  for (const key of drafts.keys()) if (!state.images.has(key)) drafts.delete(key);
  editor.colors = state.colors;
  if (current.classIndex > state.classes.length) current.classIndex = editor.classIndex = 1;
  showProgress();
  showGallery(open);
  showClasses(chooseClass);
  showSettings();
  showLearning();
  await showPicture();
});
prepare();
refresh();
