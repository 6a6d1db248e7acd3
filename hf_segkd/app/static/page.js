// Runs the student that models.json names on a picture, in the browser. No picture leaves it.
import { resized } from "./resize.js";

const MAX_PIXELS = 25_000_000; // as in app.py
const SHOWN_SIDE = 1280; // the mask has the size of what is shown
const NAMES = { webgpu: "the graphics card (WebGPU)", wasm: "the processor (WebAssembly)" };
const $ = (id) => document.getElementById(id);
const networks = {}; // one for each device, loaded when it is first asked for
let library, settings, picture, turn = 0;

function tell(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
}

async function start() {
  tell("Loading the library ...");
  settings = await (await fetch("models.json")).json();
  document.title = $("title").textContent = settings.title;
  $("student").textContent = settings.student;
  $("student").href = `${settings.hub}/${settings.student}`;
  library = await import("@huggingface/transformers").catch((error) => {
    throw new Error(`transformers.js cannot be loaded, from where index.html says: ${error.message}`);
  });
  library.env.remoteHost = `${settings.hub}/`;
  for (const device of await devices()) $("device").add(new Option(NAMES[device], device));
  settings.examples.forEach(addExample);
  $("picture").onchange = () => $("picture").files.length && show($("picture").files[0]);
  $("device").onchange = () => picture && show(picture);
  $("opacity").oninput = () => ($("classes").style.opacity = $("opacity").value);
  for (const kind of ["dragover", "dragleave", "drop"])
    addEventListener(kind, (event) => {
      event.preventDefault();
      $("drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop" && event.dataTransfer.files.length) show(event.dataTransfer.files[0]);
    });
  tell("Choose a picture.");
}

// What can compute, the best first; a graphics card in software is slower than the processor itself.
async function devices() {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) return ["wasm"];
  return adapter.info.isFallbackAdapter ? ["wasm", "webgpu"] : ["webgpu", "wasm"];
}

function addExample(file, index) {
  const button = document.createElement("button");
  const image = Object.assign(document.createElement("img"), { src: file, alt: `Example ${index + 1}` });
  button.append(image);
  button.onclick = async () => show(await (await fetch(file)).blob());
  $("examples").append(button);
}

async function show(blob) {
  const mine = ++turn; // a later picture makes this one obsolete
  picture = blob;
  $("legend").hidden = true;
  for (const id of ["photo", "classes"]) $(id).width = $(id).height = 0;
  try {
    tell("Reading the picture ...");
    const image = await read(blob);
    const device = $("device").value;
    networks[device] ??= load(device);
    const network = await networks[device].catch((error) => {
      delete networks[device];
      throw new Error(`The network cannot be loaded for ${NAMES[device]}: ${error.message ?? error}`);
    });
    if (mine !== turn) return;
    tell("Computing ...");
    await new Promise((done) => setTimeout(done, 20)); // else the words would not be seen
    const { mask, milliseconds } = await segment(network, image);
    if (mine !== turn) return;
    drawClasses(mask, network.model.config.id2label);
    tell(`${milliseconds.toFixed(1)} ms for the network's forward pass on ${NAMES[device]}.`);
  } catch (error) {
    console.error(error);
    if (mine === turn) tell(error.message ?? String(error), true);
  }
}

// The picture's own values, upright and without colour management, as Python reads it; and shows it.
async function read(blob) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error("This picture cannot be used: the browser cannot read the file as a picture.");
  });
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS)
    throw new Error(`This picture cannot be used: it has ${width} x ${height} pixels, and the limit is ${MAX_PIXELS}.`);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  const scale = Math.min(1, SHOWN_SIDE / Math.max(width, height));
  for (const id of ["photo", "classes"]) {
    $(id).width = Math.max(1, Math.round(width * scale));
    $(id).height = Math.max(1, Math.round(height * scale));
  }
  $("photo").getContext("2d").drawImage(bitmap, 0, 0, $("photo").width, $("photo").height);
  return new library.RawImage(context.getImageData(0, 0, width, height).data, width, height, 4).rgb();
}

async function load(device) {
  const progress_callback = ({ status, file, progress }) =>
    status === "progress" && file.endsWith(".onnx") && tell(`Loading the network: ${Math.round(progress)} %`);
  const { AutoImageProcessor, SegformerForSemanticSegmentation } = library;
  const processor = await AutoImageProcessor.from_pretrained(settings.student);
  const options = { device, dtype: "fp32", progress_callback };
  return { processor, model: await SegformerForSemanticSegmentation.from_pretrained(settings.student, options) };
}

// The class of each pixel that is shown, and the time of the fastest of up to five passes in half a second.
async function segment({ model, processor }, image) {
  const { width, height } = processor.config.size;
  const inputs = await processor(resized(image, width, height));
  const times = [];
  let outputs;
  for (const begin = performance.now(); times.length < 5 && performance.now() - begin < 500; ) {
    const before = performance.now();
    outputs = await model(inputs);
    times.push(performance.now() - before);
  }
  const size = [$("classes").height, $("classes").width];
  const [{ segmentation }] = processor.post_process_semantic_segmentation(outputs, [size]);
  return { mask: segmentation.data, milliseconds: Math.min(...times) };
}

function drawClasses(mask, names) {
  const palette = Object.values(names).map((name) => settings.colours[name]);
  const image = new ImageData($("classes").width, $("classes").height);
  const counts = palette.map((_, index) => ({ index, pixels: 0 }));
  mask.forEach((index, pixel) => {
    image.data.set(palette[index], 4 * pixel);
    image.data[4 * pixel + 3] = 255;
    counts[index].pixels++;
  });
  $("classes").getContext("2d").putImageData(image, 0, 0);
  const present = counts.filter(({ pixels }) => pixels).sort((one, other) => other.pixels - one.pixels);
  const rows = present.map(({ index, pixels }) => {
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = `rgb(${palette[index]})`;
    const name = Object.assign(document.createElement("th"), { scope: "row" });
    name.append(swatch, names[index]);
    const share = document.createElement("td");
    share.textContent = `${((100 * pixels) / mask.length).toFixed(1)} %`;
    const row = document.createElement("tr");
    row.append(name, share);
    return row;
  });
  $("legend").tBodies[0].replaceChildren(...rows);
  $("legend").hidden = false;
}

start().catch((error) => tell(error.message, true));
