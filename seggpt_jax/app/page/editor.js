// Draws labels on a picture: brush, eraser, polygon, undo. Pointers of mice, pens and fingers are the same to it.

import {View} from "./view.js";

const MOST_UNDO = 30;
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
    this.cursor = this.stroke = null;
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

  // Shows a picture with labels, which are changed in place; null for none.
  open(image, labels) {
    this.image = image;
    this.history = [];
    this.corners = [];
    this.stroke = null;
    this.view.open(image);
    this.setLabels(labels ?? new Uint8Array(image ? image.width * image.height : 0));
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
    else if (this.stroke) {
      for (const each of event.getCoalescedEvents?.() ?? [event]) this.stamp(this.view.onImage(each));
    }
    this.pointers.set(event.pointerId, now);
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (this.stroke && !this.pointers.size) this.endStroke();
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

  // Draws from the last place of the stroke to this one.
  stamp([x, y]) {
    const [fromX, fromY] = this.stroke.last ?? [x, y];
    this.stroke.last = [x, y];
    const radius = this.radius, {width, height} = this.image;
    const value = this.tool === "eraser" ? 0 : this.classIndex;
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

  // A second finger came down: the first one was not meant to draw.
  abandonStroke() {
    if (this.stroke) this.setLabels(this.stroke.before);
    this.stroke = null;
  }

  // Keeps what the labels were in a part of the picture: whole copies of a large one would fill a phone's memory.
  remember(labels, [x0, y0, x1, y1]) {
    const rows = [];
    for (let y = y0; y < y1; y++) rows.push(labels.slice(y * this.image.width + x0, y * this.image.width + x1));
    this.history.push({rows, x0, y0});
    if (this.history.length > MOST_UNDO) this.history.shift();
  }

  undo() {
    if (this.corners.length) {
      this.corners.pop();
      this.view.draw();
    } else if (this.history.length) {
      const {rows, x0, y0} = this.history.pop();
      rows.forEach((row, place) => this.labels.set(row, (y0 + place) * this.image.width + x0));
      this.repaint();
      this.changed();
    }
  }

  // Replaces all labels, as a stroke that can be undone.
  replace(labels) {
    this.remember(this.labels, [0, 0, this.image.width, this.image.height]);
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
    if (this.cursor && (this.tool === "brush" || this.tool === "eraser")) {
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
