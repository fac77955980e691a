// Draws labels on a picture: brush, eraser, polygon, undo, redo. Pointers of mice, pens and fingers are the same to it.

import {View} from "./view.js";

const MOST_UNDO = 2 ** 27;  // pixels of all strokes that can be undone
export const IGNORE = 255;  // a pixel of which nobody knows what it shows
const BRUSHES = ["brush", "eraser", "ignore"];
const CLICK_REACH = 0.2;  // share of the longer side around a click in which its object is looked for
const LARGEST_BRUSH = 0.25;  // share of the longer side

export class Editor {
  // `changed` is called after each stroke.
  constructor(canvas, changed) {
    this.view = new View(canvas);
    this.view.extra = (context, scale) => this.drawTool(context, scale);
    this.changed = changed;
    this.tool = "brush";
    this.size = 24;
    this.classIndex = 1;
    this.colors = [];
    this.pointers = new Map();
    this.corners = [];
    this.cursor = this.stroke = this.box = null;
    this.locked = () => false;
    this.open(null, null);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => this.setCursor(null));
    canvas.addEventListener("dblclick", () => this.closePolygon());
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.view.zoom(Math.exp(-event.deltaY / 400), ...this.view.onCanvas(event));
    }, {passive: false});
  }

  // Shows a picture with labels, which are changed in place; null for none. `untouched` are those before all strokes.
  open(image, labels, untouched) {
    const same = image && image === this.image;
    labels ??= new Uint8Array(image ? image.width * image.height : 0);
    if (!same) this.corners = [];
    if (!same || labels.some((value, place) => value !== this.labels[place])) this.history = [], this.undone = [];
    this.image = image;
    this.stroke = null;
    this.view.open(image);
    this.setLabels(labels);
    this.untouched = (untouched ?? labels).slice();
  }

  // Whether the labels differ from those before all strokes.
  get touched() {
    return this.labels.some((value, place) => value !== this.untouched[place]);
  }

  setLabels(labels) {
    this.labels = labels;
    this.repaint();
  }

  repaint() {
    if (this.image) this.view.paint(this.labels, this.colors, [0, 0, this.image.width, this.image.height]);
  }

  get empty() {
    return !this.labels.some((value) => value);
  }

  get radius() {
    return Math.max(0.5, this.size / 200 * LARGEST_BRUSH * Math.max(this.image.width, this.image.height));
  }

  // ------------------------------------------------------------------------------------------------------- pointers

  down(event) {
    if (!this.image || this.locked()) return;
    this.view.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.view.onCanvas(event));
    if (this.pointers.size > 1) return this.abandonStroke();
    this.pans = this.tool === "pan" || event.button === 1 || event.button === 2;
    if (this.pans) return;
    if (this.tool === "polygon") return this.addCorner(event);
    if (this.tool === "box") {
      this.box = [...this.view.onImage(event), ...this.view.onImage(event)];
      return;
    }
    this.beginStroke();
    this.stamp(this.view.onImage(event));
  }

  move(event) {
    this.setCursor(this.image && event.pointerType !== "touch" ? this.view.onImage(event) : null);
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = this.view.onCanvas(event);
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, now);
    else if (this.pans) this.view.pan(now[0] - before[0], now[1] - before[1]);
    else if (this.box) this.box.splice(2, 2, ...this.view.onImage(event));
    else if (this.stroke) {
      for (const each of event.getCoalescedEvents?.() ?? [event]) this.stamp(this.view.onImage(each));
    }
    this.pointers.set(event.pointerId, now);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.stroke && !this.pointers.size) this.endStroke();
    if (this.box && !this.pointers.size) this.endBox();
  }

  pinch(id, before, now) {
    const [, other] = [...this.pointers].find(([each]) => each !== id);
    const distance = ([x, y]) => Math.hypot(x - other[0], y - other[1]);
    this.view.pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    this.view.zoom(distance(now) / Math.max(distance(before), 1), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
  }

  setCursor(place) {
    this.cursor = place;
    this.view.draw();
  }

  // -------------------------------------------------------------------------------------------------------- strokes

  beginStroke() {
    const {width, height} = this.image;
    this.stroke = {before: this.labels.slice(), last: null, box: [width, height, 0, 0]};
  }

  // Draws with the keyboard: moves the brush by its radius, or draws where it is.
  moveBrush(dx, dy) {
    if (!this.image || this.locked()) return;
    const {width, height} = this.image, [x, y] = this.cursor ?? [width / 2, height / 2];
    const place = (value, most) => Math.min(most, Math.max(0, value));
    this.setCursor([place(x + dx * this.radius, width), place(y + dy * this.radius, height)]);
    if (dx || dy || !BRUSHES.includes(this.tool)) return;
    this.beginStroke();
    this.stamp(this.cursor);
    this.endStroke();
  }

  // Draws from the last place of the stroke to this one.
  stamp([x, y]) {
    const [fromX, fromY] = this.stroke.last ?? [x, y];
    this.stroke.last = [x, y];
    const radius = this.radius, {width, height} = this.image;
    const value = {eraser: 0, ignore: IGNORE}[this.tool] ?? this.classIndex;
    const first = (a, b) => Math.max(0, Math.floor(Math.min(a, b) - radius));
    const end = (a, b, most) => Math.min(most, Math.ceil(Math.max(a, b) + radius) + 1);
    const x0 = first(x, fromX), x1 = end(x, fromX, width), y0 = first(y, fromY), y1 = end(y, fromY, height);
    const box = this.stroke.box;
    this.stroke.box = [Math.min(box[0], x0), Math.min(box[1], y0), Math.max(box[2], x1), Math.max(box[3], y1)];
    const dx = x - fromX, dy = y - fromY, length = dx * dx + dy * dy;
    for (let row = y0; row < y1; row++) {
      for (let column = x0; column < x1; column++) {
        const px = column + 0.5 - fromX, py = row + 0.5 - fromY;
        const share = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
        const inside = (px - share * dx) ** 2 + (py - share * dy) ** 2 <= radius * radius;
        if (inside) this.labels[row * width + column] = value;
      }
    }
    this.view.paint(this.labels, this.colors, [x0, y0, x1, y1]);
  }

  endStroke() {
    this.remember(this.stroke.before, this.stroke.box);
    this.stroke = null;
    this.changed();
  }

  // Asks for the object in the box, or for what is like the place of a click, and draws it.
  async endBox() {
    const {width, height} = this.image, [fromX, fromY, toX, toY] = this.box, image = this.image;
    this.box = null;
    this.view.draw();
    const click = Math.hypot(toX - fromX, toY - fromY) * this.view.scale < 6;
    const reach = click ? Math.max(8 * this.radius, CLICK_REACH * Math.max(width, height)) : 0;
    const cut = (value, most) => Math.round(Math.min(most, Math.max(0, value)));
    const x = cut(Math.min(fromX, toX) - reach, width), y = cut(Math.min(fromY, toY) - reach, height);
    const right = cut(Math.max(fromX, toX) + reach, width), bottom = cut(Math.max(fromY, toY) + reach, height);
    const box = {x, y, width: right - x, height: bottom - y}, index = this.classIndex;
    if (box.width < 2 || box.height < 2) return;
    const inside = await this.cutOut(box, click ? Math.ceil(this.radius) : 0);
    if (!inside || image !== this.image) return;
    const labels = this.labels.slice();
    inside.forEach((value, place) => {
      if (value) labels[(y + Math.floor(place / box.width)) * width + x + place % box.width] = index;
    });
    this.replace(labels, [x, y, right, bottom]);
  }

  // A second finger came down: the first one was not meant to draw.
  abandonStroke() {
    this.box = null;
    if (this.stroke) this.setLabels(this.stroke.before);
    this.stroke = null;
  }

  // Returns the labels of a part of the picture: whole copies of a large one would fill a phone's memory.
  part(labels, [x0, y0, x1, y1]) {
    const rows = [];
    for (let y = y0; y < y1; y++) rows.push(labels.slice(y * this.image.width + x0, y * this.image.width + x1));
    return {rows, box: [x0, y0, x1, y1]};
  }

  // Keeps what the labels were before a stroke.
  remember(labels, box) {
    this.history.push(this.part(labels, box));
    const pixels = ({box: [x0, y0, x1, y1]}) => Math.max(0, x1 - x0) * Math.max(0, y1 - y0);
    let sum = this.history.reduce((sum, each) => sum + pixels(each), 0);
    while (sum > MOST_UNDO && this.history.length > 1) sum -= pixels(this.history.shift());
    this.undone = [];
  }

  undo() {
    if (!this.corners.length) return this.exchange(this.history, this.undone);
    this.corners.pop();
    this.view.draw();
  }

  redo() {
    this.exchange(this.undone, this.history);
  }

  // Takes the last part from one list and puts what it replaces on the other.
  exchange(from, to) {
    if (!from.length) return;
    const {rows, box} = from.pop();
    to.push(this.part(this.labels, box));
    rows.forEach((row, place) => this.labels.set(row, (box[1] + place) * this.image.width + box[0]));
    this.repaint();
    this.changed();
  }

  // Replaces all labels, as a stroke that can be undone.
  replace(labels, box = [0, 0, this.image.width, this.image.height]) {
    this.remember(this.labels, box);
    this.setLabels(labels);
    this.changed();
  }

  // ------------------------------------------------------------------------------------------------------- polygons

  addCorner(event) {
    const place = this.view.onImage(event), first = this.corners[0];
    const near = first && Math.hypot(place[0] - first[0], place[1] - first[1]) * this.view.scale < 14;
    if (near && this.corners.length > 2) return this.closePolygon();
    this.corners.push(place);
    this.view.draw();
  }

  closePolygon() {
    const {width, height} = this.image ?? {}, corners = this.corners;
    this.corners = [];
    if (corners.length < 3) return this.view.draw();
    const context = new OffscreenCanvas(width, height).getContext("2d", {willReadFrequently: true});
    context.beginPath();
    corners.forEach(([x, y]) => context.lineTo(x, y));
    context.fill();
    const inside = context.getImageData(0, 0, width, height).data;
    this.replace(this.labels.map((value, place) => inside[4 * place + 3] > 127 ? this.classIndex : value));
  }

  cancelPolygon() {
    this.corners = [];
    this.view.draw();
  }

  // Draws the brush's outline and the open polygon.
  drawTool(context, scale) {
    const outline = (width, color) => {
      context.lineWidth = width / scale;
      context.strokeStyle = color;
      context.stroke();
    };
    if (this.box) {
      const [x, y, right, bottom] = this.box;
      context.beginPath();
      context.rect(x, y, right - x, bottom - y);
      outline(4, "rgb(0 0 0 / 70%)");
      outline(2, "#fff");
    }
    if (this.cursor && BRUSHES.includes(this.tool)) {
      context.beginPath();
      context.arc(...this.cursor, this.radius, 0, 2 * Math.PI);
      outline(3, "rgb(0 0 0 / 70%)");
      outline(1.2, "#fff");
    }
    if (this.corners.length) {
      context.beginPath();
      this.corners.forEach(([x, y]) => context.lineTo(x, y));
      if (this.cursor) context.lineTo(...this.cursor);
      outline(4, "rgb(0 0 0 / 70%)");
      outline(2, "#fff");
      const [x, y] = this.corners[0], side = 8 / scale;
      context.fillStyle = "#fff";
      context.fillRect(x - side / 2, y - side / 2, side, side);
    }
  }
}
