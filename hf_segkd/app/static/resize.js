// Pillow's bilinear resize, to the bit. Unlike the library's own it averages when it shrinks.
export function resized(image, width, height) {
  const row = width * image.channels;
  const narrow = resample(image.data, image.height, image.width, width, image.channels);
  return new image.constructor(resample(narrow, 1, image.height, height, row), width, height, image.channels);
}

// Of `lines` lines of `from` cells of `cell` values each: as many lines of `to` cells.
function resample(data, lines, from, to, cell) {
  const out = new Uint8ClampedArray(lines * to * cell);
  const scale = from / to, reach = Math.max(scale, 1);
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - reach + 0.5), 0);
    const end = Math.min(Math.trunc(centre + reach + 0.5), from);
    const weights = [];
    for (let j = first; j < end; j++) weights.push(Math.max(1 - Math.abs((j + 0.5 - centre) / reach), 0));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const whole = weights.map((weight) => Math.round((weight / total) * 2 ** 22));
    for (let line = 0; line < lines; line++)
      for (let value = 0; value < cell; value++) {
        let sum = 2 ** 21;
        whole.forEach((weight, j) => (sum += weight * data[(line * from + first + j) * cell + value]));
        out[(line * to + i) * cell + value] = Math.floor(sum / 2 ** 22);
      }
  }
  return out;
}
