// Shows one picture with its labels: fit, zoom, pan, and what lies over the picture.

const LARGEST_SCALE = 40;

export class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.image = this.layer = this.confidence = null;
    this.scale = 1;
    this.left = this.top = 0;
    this.opacity = 0.55;
    this.hidden = new Set();  // classes that are not shown
    this.extra = () => {};  // draws what a tool shows, in pixels of the picture
    this.pending = false;
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  open(image) {
    const same = this.image && this.image.width === image?.width && this.image.height === image?.height;
    this.image = image;
    this.confidence = null;
    this.layer = image && new OffscreenCanvas(image.width, image.height);
    if (!same) this.fit();
    this.draw();
  }

  resize() {
    const ratio = window.devicePixelRatio || 1;
    const {width, height} = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.max(1, Math.round(width * ratio));
    this.canvas.height = Math.max(1, Math.round(height * ratio));
    this.fit();
  }

  fit() {
    if (!this.image) return this.draw();
    const {width, height} = this.canvas;
    this.scale = 0.96 * Math.min(width / this.image.width, height / this.image.height);
    this.left = (width - this.scale * this.image.width) / 2;
    this.top = (height - this.scale * this.image.height) / 2;
    this.draw();
  }

  // Zooms around a point of the canvas, in its own pixels.
  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    if (!this.image) return;
    const least = 0.2 * Math.min(this.canvas.width / this.image.width, this.canvas.height / this.image.height);
    const scale = Math.min(LARGEST_SCALE, Math.max(least, this.scale * factor));
    this.left = x - (x - this.left) * scale / this.scale;
    this.top = y - (y - this.top) * scale / this.scale;
    this.scale = scale;
    this.draw();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.draw();
  }

  // The place of a pointer on the canvas, in the canvas's own pixels.
  onCanvas(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
  }

  // The same in pixels of the picture.
  onImage(event) {
    const [x, y] = this.onCanvas(event);
    return [(x - this.left) / this.scale, (y - this.top) / this.scale];
  }

  // Colors the labels of a part of the picture anew.
  paint(labels, colors, [left, top, right, bottom]) {
    const {width, height} = this.image;
    const x0 = Math.max(0, left - 1), x1 = Math.min(width, right + 1);
    const y0 = Math.max(0, top - 1), y1 = Math.min(height, bottom + 1);
    if (x1 <= x0 || y1 <= y0) return;
    const part = new ImageData(x1 - x0, y1 - y0), pixels = new Uint32Array(part.data.buffer);
    const packed = [0, ...colors.map(([red, green, blue]) => 0xff000000 | blue << 16 | green << 8 | red)];
    for (let y = y0, place = 0; y < y1; y++) {
      for (let x = x0; x < x1; x++, place++) {
        const at = y * width + x, label = labels[at];
        if (!label) continue;
        // A white line around every object, as its color may be that of the picture.
        const edge = (x > 0 && labels[at - 1] !== label) || (x < width - 1 && labels[at + 1] !== label) ||
          (y > 0 && labels[at - width] !== label) || (y < height - 1 && labels[at + width] !== label);
        // What is ignored is striped.
        const stripe = (x + y) % 8 < 4 ? 0xff404040 : 0xffb0b0b0;
        pixels[place] = label === 255 ? stripe : edge ? 0xffffffff : packed[label] ?? 0;
        if (this.hidden.has(label)) pixels[place] = 0;
      }
    }
    this.layer.getContext("2d").putImageData(part, x0, y0);
    this.draw();
  }

  // Shows where the network was unsure: the darker violet, the less sure. Null hides it.
  showConfidence(values) {
    this.confidence = null;
    if (values) {
      const {width, height} = this.image;
      const part = new ImageData(width, height), pixels = new Uint32Array(part.data.buffer);
      for (let place = 0; place < values.length; place++) {
        pixels[place] = Math.round(0.85 * (255 - values[place])) << 24 | 0x5a003c;
      }
      this.confidence = new OffscreenCanvas(width, height);
      this.confidence.getContext("2d").putImageData(part, 0, 0);
    }
    this.draw();
  }

  draw() {
    if (this.pending) return;
    this.pending = true;
    requestAnimationFrame(() => {
      this.pending = false;
      this.drawNow();
    });
  }

  drawNow() {
    const {context, canvas} = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.image) return;
    context.setTransform(this.scale, 0, 0, this.scale, this.left, this.top);
    context.imageSmoothingEnabled = this.scale < 3;
    context.drawImage(this.image, 0, 0);
    context.imageSmoothingEnabled = false;
    context.globalAlpha = this.opacity;
    context.drawImage(this.layer, 0, 0);
    context.globalAlpha = 1;
    if (this.confidence) context.drawImage(this.confidence, 0, 0);
    this.extra(context, this.scale);
  }
}
