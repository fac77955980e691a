// Requests to the server. Every function returns what the server answers, or throws an Error with its one line.

async function request(method, path, body, type) {
  const headers = type ? {"content-type": type} : {};
  let response;
  try {
    response = await fetch(path, {method, body, headers, credentials: "same-origin"});
  } catch {
    throw new Error("The server does not answer. Is seggpt app still running?");
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  const error = new Error(told.error || `The server answers ${response.status}`);
  error.status = response.status;
  throw error;
}

const json = (method, path, value) => request(method, path, JSON.stringify(value), "application/json");
const image = (key, what = "") => `api/images/${key}${what && "/"}${what}`;

export const thumbnailAddress = (key, version) => `${image(key, "thumbnail")}?v=${encodeURIComponent(version)}`;
export const panelAddress = (name) => `api/learning/panel?v=${encodeURIComponent(name)}`;

export const readState = async (since, first) =>
  (await request("GET", `api/session?since=${since}&first=${encodeURIComponent(first || "")}`)).json();
export const addFile = async (file) => {
  const path = file.name.toLowerCase().endsWith(".zip") ? "api/archive" : "api/images";
  const name = file.path || file.webkitRelativePath || file.name;  // with its folders, as two may hold the same names
  return (await request("POST", `${path}?name=${encodeURIComponent(name)}`, file)).json();
};
export const addBoards = () => request("POST", "api/boards");
export const removeImage = (key) => request("DELETE", image(key));
export const removeAll = (keep) => request("DELETE", `api/images?keep=${keep ? 1 : 0}`);
export const setClasses = (names) => json("POST", "api/classes", {names});
export const removeClass = (index, labels) => request("DELETE", `api/classes/${index}?ignore=${labels === "ignore"}`);
export const setSettings = (values) => json("POST", "api/settings", values);
export const look = (key, index) => request("POST", `${image(key, "look")}?index=${index}`);
export const setDone = (key, done) => request("POST", `${image(key, "done")}?done=${done ? 1 : 0}`);
export const cutOut = async (key, {x, y, width, height}, seed) =>
  decode(await request("POST", `${image(key, "cut")}?x=${x}&y=${y}&width=${width}&height=${height}&seed=${seed}`));
export const promote = (key) => request("POST", image(key, "promote"));
export const clearDraft = (key) => request("DELETE", image(key, "draft"));
export const clearLabel = (key) => request("DELETE", image(key, "label"));
export const startLearning = (steps, again) => json("POST", "api/learning", {steps, again});
export const stopLearning = () => request("DELETE", "api/learning");

// Pictures whose pixels are numbers: class indices, or confidence.

async function decode(response) {
  const bitmap = await createImageBitmap(await response.blob(), {colorSpaceConversion: "none"});
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const values = new Uint8Array(bitmap.width * bitmap.height);
  for (let place = 0; place < values.length; place++) values[place] = pixels[4 * place];
  return values;
}

async function encode(values, width, height) {
  const part = new ImageData(width, height), pixels = new Uint32Array(part.data.buffer);
  for (let place = 0; place < values.length; place++) pixels[place] = 0xff000000 | values[place] * 0x010101;
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(part, 0, 0);
  return canvas.convertToBlob({type: "image/png"});
}

export const readPicture = async (key) => createImageBitmap(await (await request("GET", image(key, "picture"))).blob());
export const readNumbers = async (key, what) => decode(await request("GET", image(key, what)));
// Stores labels as the "label" or the "draft" of an image.
export const putLabels = async ({key, width, height}, what, labels) =>
  request("PUT", image(key, what), await encode(labels, width, height), "image/png");
export const readMask = async (key, file, index) =>
  decode(await request("POST", `${image(key, "mask")}?class=${index}&name=${encodeURIComponent(file.name)}`, file));
