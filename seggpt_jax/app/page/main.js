// The page: opens pictures, takes files and keys, and passes what is drawn on to the server.

import * as api from "./api.js";
import {Editor} from "./editor.js";
import {described, scrollToCurrent, showGallery, shownOrder, shownVersion} from "./gallery.js";
import {addClass, hidden, prepareLearning, prepareSettings, showClasses, showLearning, showSettings} from "./panels.js";
import {answers, change, current, listen, onFailure, refresh, state} from "./state.js";
import {zipped} from "./zip.js";

const $ = (id) => document.getElementById(id);
// Files of labels, and folders of label maps: such files belong together.
const LABELS = /\.(json|xml|ya?ml|txt)$|(^|\/)(labels?|masks?|annotations|gt|ground_truth|ann_dir)\//i;
const SAVE_AFTER = 300;  // milliseconds without a stroke
const drafts = new Map();  // by image: labels that are drawn and not yet used
const unsaved = new Set();  // images whose drafts, or the lack of one, the server does not know yet
const shown = {key: "", version: "", confidence: ""};
const editor = new Editor($("canvas"), () => {
  edits++;
  if (editor.touched) drafts.set(shown.key, editor.labels);
  else drafts.delete(shown.key);
  unsaved.add(shown.key);
  clearTimeout(saveTimer);
  saveTimer = setTimeout(save, SAVE_AFTER);
  showButtons();
});
// The picture before stays on the screen until the open one is there; what is drawn meanwhile would be for neither.
const loading = () => shown.key !== current.key;
editor.locked = loading;
editor.view.hidden = hidden;
editor.cutOut = (box, seed) => api.cutOut(shown.key, box, seed).catch(fail);
let numbering = 0;  // of the classes: it grows when one is removed
let edits = 0, saveTimer = 0, saving = Promise.resolve();
let toastTimer = 0;

function toast(text, bad = false) {
  $("toast").textContent = text;
  $("toast").classList.toggle("bad", bad);
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, bad ? 8000 : 4000);
}

// Stores all drafts on the server, one request after the other.
function save() {
  clearTimeout(saveTimer);
  saving = saving.then(async () => {
    for (const key of [...unsaved]) {
      const draft = drafts.get(key), image = state.images.get(key);
      unsaved.delete(key);
      if (!image) continue;
      await (draft ? api.putLabels(image, "draft", draft) : api.clearDraft(key)).catch((error) => {
        if (!error.status) {  // the server is not there: tried again
          unsaved.add(key);
          saveTimer = setTimeout(save, 10 * SAVE_AFTER);
        }
        fail(error);
      });
    }
    showButtons();
  });
  return saving;
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
    const read = what ? await api.readNumbers(key, what) : null;
    const stored = image.draft && shown.key !== key && !drafts.has(key) ? await api.readNumbers(key, "draft") : null;
    if (key !== current.key) return;  // another one was opened meanwhile
    if (shown.key === key && (drafts.has(key) || editor.stroke)) return;  // or somebody has drawn on this one
    if (stored) drafts.set(key, stored);
    editor.colors = state.colors;
    editor.open(picture, drafts.get(key) ?? read, read ?? new Uint8Array(image.width * image.height));
    Object.assign(shown, {key, version, confidence: ""});
    showSize();
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
  const changed = `Changed by hand${unsaved.has(current.key) ? "" : ", saved"}, not in use yet`;
  $("badge").textContent = image ? (draft ? changed : described(image, true).text) : "";
  const kind = state.needs_examples ? "example" : "label";
  $("use").textContent = image?.label ? `Update ${kind}` : `Use as ${kind}`;
  $("drop-example").textContent = state.needs_examples ? "Not an example" : "Remove the label";
  $("use").disabled = !image || editor.empty || (Boolean(image.label) && !draft);
  $("drop-example").hidden = !image?.label;
  $("undo").disabled = !editor.history.length && !editor.corners.length;
  $("redo").disabled = !editor.undone.length;
  $("remove").hidden = $("done").hidden = !image;
  $("done").setAttribute("aria-pressed", String(Boolean(image?.done)));
  const unseen = (image?.unseen ?? []).filter((index) => state.classes[index - 1]);
  $("unseen").hidden = !unseen.length;
  const asked = JSON.stringify([image?.key, unseen, state.classes]);
  if ($("unseen").dataset.asked === asked) return;  // a button that is pressed at the moment must stay
  $("unseen").dataset.asked = asked;
  $("unseen").replaceChildren("Not looked for yet: ", ...unseen.map((index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `No ${state.classes[index - 1]} here`;
    button.title = "Until then, answers and training do not take the rest of this picture for background";
    button.addEventListener("click", () => change(api.look(image.key, index)));
    return button;
  }));
  $("clear").disabled = !image || editor.empty;
  $("upload-mask").disabled = !image;
}

function showProgress() {
  const {answered, total, rate, seconds} = state.progress;
  const left = seconds > 90 ? `${Math.round(seconds / 60)} min left` : seconds && `${Math.ceil(seconds)} s left`;
  const words = state.ready ? [] : ["Loading the network"];
  if (!state.order.length) words.push("Add images to start");
  else if (!answers()) words.push("Draw on one picture, then press Use as example");
  else words.push(`${answered} of ${total} answered${state.needs_examples ? "" : " by what has learned"}`);
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
  clearTimeout(saveTimer);
  await saving;  // a draft that came later would take the place of nothing
  const request = draft ? api.putLabels(image, "label", draft) : api.promote(image.key);
  const worked = await change(request.then(() => {
    if (edits !== sent) return;
    unsaved.delete(image.key);
    drafts.delete(image.key);
  }));
  if (unsaved.size) save();
  const what = state.needs_examples ? "is an example. The others are answered again." : "has a label.";
  if (worked) toast(`${image.name} ${what}`);
}

async function dropExample() {
  drafts.delete(current.key);
  unsaved.delete(current.key);
  shown.version = "";
  await change(api.clearLabel(current.key));
}

// Sends files to the server, three at a time.
async function addFiles(files) {
  const isLabel = (file) => LABELS.test(file.path || file.webkitRelativePath || file.name), problems = [];
  let waiting = [...files].filter((file) => !file.name.startsWith(".")), added = 0, opened = false;
  if (waiting.length > 1 && waiting.some(isLabel)) {
    toast("Reading images and labels");
    const told = await api.addFile(await zipped(waiting)).catch((error) => { problems.push(error.message); });
    added = told?.added ?? 0;
    waiting = told ? [] : waiting.filter((file) => !isLabel(file));  // the images alone
  }
  const count = waiting.length;
  const work = async () => {
    for (let file = waiting.shift(); file; file = waiting.shift()) {
      const told = await api.addFile(file).catch((error) => { problems.push(error.message); });
      added += told?.added ?? 0;
      if (told?.key && !opened) {
        opened = true;
        await refresh();
        open(told.key);
      }
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

// Asks first if labels show the class, or a network has learned it.
function askToRemoveClass(index) {
  const images = [...state.images.values()].filter((image) => image.holds.includes(index) || image.draft);
  $("class-dialog").dataset.index = index;
  $("class-labels").value = "background";
  if (!images.length && !unsaved.size && !state.learned.length) return removeClass();
  const count = images.length === 1 ? "1 picture has" : `${images.length} pictures have`;
  $("class-question").textContent = `Remove the class ${state.classes[index - 1]}? ${count} labels that may show it.`;
  $("class-dialog").showModal();
}

async function removeClass() {
  $("class-dialog").close();
  await save();  // the server gives drafts their new classes
  await change(api.removeClass($("class-dialog").dataset.index, $("class-labels").value));
}

async function remove() {
  const {key, name, label} = state.images.get(current.key), place = state.order.indexOf(key);
  if ((label || drafts.has(key)) && !confirm(`Remove ${name} with what is drawn on it?`)) return;
  drafts.delete(key);
  unsaved.delete(key);
  current.key = state.order[place + 1] ?? state.order[place - 1] ?? "";
  await change(api.removeImage(key));
}

function chooseClass(index) {
  if (index < 1 || index > state.classes.length) return;
  current.classIndex = editor.classIndex = index;
  if (["eraser", "pan", "ignore"].includes(editor.tool)) chooseTool("brush");
  editor.repaint();
  showClasses(chooseClass, askToRemoveClass);
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
  const order = shownOrder(), next = order[order.indexOf(current.key) + by];
  if (next) open(next);
}

async function toggleDone() {
  const image = state.images.get(current.key);
  if (image) await change(api.setDone(image.key, !image.done));
}

function setSize(size) {
  editor.size = Math.min(100, Math.max(1, size));
  $("size").value = editor.size;
  showSize();
  editor.view.draw();
}

// Shows the diameter of the brush in pixels of the picture.
function showSize() {
  $("size-value").textContent = editor.image ? `${Math.round(2 * editor.radius)} px` : "";
}

// --------------------------------------------------------------------------------------------------- files and keys

const KEYS = {
  b: () => chooseTool("brush"), e: () => chooseTool("eraser"), p: () => chooseTool("polygon"),
  m: () => chooseTool("pan"), o: () => chooseTool("box"), i: () => chooseTool("ignore"), d: toggleDone,
  " ": () => editor.moveBrush(0, 0),
  z: () => { editor.undo(); showButtons(); }, y: () => editor.redo(), c: () => $("show-confidence").click(), 0: () => editor.view.fit(),
  "[": () => setSize(editor.size - 4), "]": () => setSize(editor.size + 4), "+": () => editor.view.zoom(1.25),
  "-": () => editor.view.zoom(0.8), Escape: () => editor.cancelPolygon(),
  Enter: () => editor.corners.length ? editor.closePolygon() : use(),
  ArrowRight: () => step(1), ArrowDown: () => step(1), ArrowLeft: () => step(-1), ArrowUp: () => step(-1),
};

function onKey(event) {
  const typing = event.target.matches("input:not([type=range]):not([type=checkbox]), select, textarea");
  const sliding = event.target.matches("input[type=range]") && event.key.startsWith("Arrow");
  const pressing = event.target.matches("button, a, summary, input") && ["Enter", " "].includes(event.key);
  const plain = !event.altKey && !event.metaKey && (!event.ctrlKey || "zy".includes(event.key));
  if (typing || sliding || pressing || !plain || document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const by = event.shiftKey && {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[key];
  const action = by ? () => editor.moveBrush(...by) : /^[1-9]$/.test(key) ? () => chooseClass(Number(key)) : KEYS[key];
  if (!action) return;
  event.preventDefault();
  action();
}

// All files of a dropped file or folder, with those in folders below.
async function filesOf(entry) {
  if (entry instanceof File) return [entry];
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [Object.assign(file, {path: entry.fullPath.slice(1)})];
  }
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
    "class-no": () => $("class-dialog").close(),
    "class-yes": removeClass,
    "use": use, "drop-example": dropExample, "undo": KEYS.z, "redo": KEYS.y, "remove": remove, "done": toggleDone,
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
  for (const id of ["order", "filter"]) $(id).addEventListener("change", () => showGallery(open));
  document.addEventListener("click", (event) => {
    if (event.target.closest(".sheet") || !event.target.closest("#file-menu")) $("file-menu").open = false;
  });
  document.addEventListener("keydown", onKey);
  window.addEventListener("beforeunload", (event) => { if (unsaved.size) event.preventDefault(); });
  document.addEventListener("visibilitychange", () => { if (unsaved.size) save(); });
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
  if (state.numbering > numbering) {  // what is drawn has other classes on the server
    drafts.clear();
    unsaved.clear();
    hidden.clear();
    shown.key = "";
    current.classIndex = editor.classIndex = 1;
  }
  numbering = state.numbering;
  if (JSON.stringify(editor.colors) !== JSON.stringify(state.colors)) {
    editor.colors = state.colors;
    editor.repaint();
  }
  if (current.classIndex > state.classes.length) current.classIndex = editor.classIndex = 1;
  showProgress();
  showGallery(open);
  showClasses(chooseClass, askToRemoveClass);
  showSettings();
  showLearning();
  await showPicture();
});
prepare();
refresh();
