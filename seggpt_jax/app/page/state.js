// What the page knows: the server's state, kept up to date by asking for what has changed.

import {readState} from "./api.js";

const BUSY = 400, IDLE = 2000;  // milliseconds between two questions

export const state = {
  images: new Map(), order: [], classes: ["object"], colors: [], settings: {sensitivity: [], colors: []}, examples: [], round: 0,
  numbering: 0,
  session: "", needs_examples: true, changes: 0, progress: {answered: 0, total: 0}, learning: null, learned: [],
  ready: false, step_seconds: null,
};
export const current = {key: "", classIndex: 1};

// Whether images can be answered: by examples, or by a network that has learned a prompt.
export const answers = () => state.examples.length > 0 || !state.needs_examples;

const listeners = [];
export const listen = (listener) => listeners.push(listener);

let timer = 0, asking = null, failed = () => {};
export const onFailure = (handler) => { failed = handler; };

// Asks the server now; resolves when the answer is shown.
export async function refresh() {
  clearTimeout(timer);
  asking ??= ask().finally(() => { asking = null; });
  await asking;
}

async function ask() {
  let wait = IDLE;
  try {
    let told = await readState(state.changes, current.key);
    if (state.session && told.session !== state.session) {  // the page was started again
      const name = state.images.get(current.key)?.name;
      state.images.clear();
      told = await readState(0, "");
      current.key = told.images.find((each) => each.name === name)?.key ?? "";
    }
    const {images, ...rest} = told;
    for (const each of images) state.images.set(each.key, each);
    for (const key of state.images.keys()) if (!rest.order.includes(key)) state.images.delete(key);
    Object.assign(state, rest);
    if (!state.images.has(current.key)) current.key = state.order[0] ?? "";
    const {answered, total} = state.progress;
    const answering = answered < total && answers() && !state.settings.paused;
    wait = answering || ["running", "stopping"].includes(state.learning?.state) ? BUSY : IDLE;
    for (const listener of listeners) await listener();
  } catch (error) {
    failed(error);
    if (error.status === 401) return;
  }
  timer = setTimeout(refresh, document.hidden ? 4 * wait : wait);
}

// Changes something on the server, then asks what has become of it. Returns whether it worked.
export async function change(request) {
  try {
    await request;
  } catch (error) {
    failed(error);
    return false;
  } finally {
    await asking;
    await refresh();
  }
  return true;
}
