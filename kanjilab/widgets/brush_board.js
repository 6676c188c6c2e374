// A square to draw a skeleton in, by mouse, pen or touch; what is drawn lies over a picture that the kernel sends.
// The model holds `drawing` and `example`, as brush_board.py describes them; without a kernel (app/page/source/write.js)
// `opens` is false: nobody would read a picture that is opened.

const SIDE = 128; // of a skeleton, in its pixels: the unit of all coordinates
const PEN = 3.2, STEP = 0.7; // width of a stroke as it is shown, and the least way between two of its points
const PALM_MS = 2000; // so long after a pen was near, what touches the square is the hand that holds it
const STROKES_MOST = 300, POINTS_MOST = 2000, BYTES_MOST = 8e6;
const EMPTY = { strokes: [], under: new DataView(new ArrayBuffer(0)), of: "" };
const TYPES = "image/png,image/jpeg,image/webp,image/bmp,image/gif,image/tiff";

function node(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Whether two states show the same; what the kernel sends back is equal, but another object.
function same(one, other) {
  const bytes = ({ under }) => new Uint8Array(under.buffer, under.byteOffset, under.byteLength).join();
  const strokes = (state) => JSON.stringify(state.strokes);
  return one.of === other.of && strokes(one) === strokes(other) && bytes(one) === bytes(other);
}

const inside = (point) => point.every((value) => value >= 0 && value <= SIDE);
const rounded = (point) => point.map((value) => Math.round(10 * Math.min(SIDE, Math.max(0, value))) / 10);

// Where the way from a point on the paper to one beside it leaves the paper.
function edge(inner, outer) {
  const shares = inner.map((from, axis) => {
    const way = outer[axis] - from;
    return way ? ((way > 0 ? SIDE : 0) - from) / way : Infinity;
  });
  const share = Math.min(...shares, 1);
  return inner.map((from, axis) => from + share * (outer[axis] - from));
}

function render({ model, el }) {
  const id = `kanjilab-board-${Math.random().toString(36).slice(2)}`;
  const canvas = node("canvas", { tabIndex: -1 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Drawing surface");
  canvas.setAttribute("aria-describedby", id);
  const undo = node("button", { type: "button", className: "jupyter-button", textContent: "Undo" });
  const clear = node("button", { type: "button", className: "jupyter-button", textContent: "Clear" });
  const file = node("input", { type: "file", accept: TYPES });
  const open = node("label", { className: "open jupyter-button" }, file, "Open a picture");
  const said = node("p", { id, className: "soft" });
  said.setAttribute("role", "status");
  el.classList.add("kanjilab-board");
  el.append(canvas, node("div", {}, undo, clear, ...(model.get("opens") === false ? [] : [open])), said);

  const context = canvas.getContext("2d");
  let past = []; // states before the present one
  let now = { ...EMPTY };
  let image = null; // of `under`, decoded
  let drawing = null; // what is under the pen: its pointer, its kind, its strokes, and where it is beside the paper
  let penSeen = -Infinity; // when a pen was last near
  let problem = "";

  const line = (points) => {
    context.beginPath();
    points.forEach(([x, y], index) => (index ? context.lineTo(x, y) : context.moveTo(x, y)));
    if (points.length === 1) context.lineTo(points[0][0] + 0.01, points[0][1]);
    context.stroke();
  };

  const paint = () => {
    const pixels = Math.round(canvas.clientWidth * devicePixelRatio) || SIDE;
    if (canvas.width !== pixels) canvas.width = canvas.height = pixels;
    context.setTransform(pixels / SIDE, 0, 0, pixels / SIDE, 0, 0);
    context.fillStyle = "#fff";
    context.fillRect(0, 0, SIDE, SIDE);
    Object.assign(context, { strokeStyle: "#e3a39b", lineWidth: 0.5, lineCap: "butt", lineJoin: "round" });
    context.setLineDash([2, 2]);
    [[0, 0, SIDE, SIDE], [SIDE, 0, 0, SIDE], [SIDE / 2, 0, SIDE / 2, SIDE], [0, SIDE / 2, SIDE, SIDE / 2]].forEach(
      ([left, top, right, bottom]) => line([[left, top], [right, bottom]]),
    );
    context.setLineDash([]);
    if (image) context.drawImage(image, 0, 0, SIDE, SIDE);
    Object.assign(context, { strokeStyle: "#222", lineWidth: PEN, lineCap: "round" });
    now.strokes.forEach(line);
    drawing?.strokes.forEach(line);
  };

  const describe = () => {
    const count = now.strokes.length;
    const strokes = count ? `${count} stroke${count > 1 ? "s" : ""}` : "";
    const parts = [now.of && `the skeleton of ${now.of}`, strokes].filter(Boolean);
    said.textContent = problem || (parts.length ? `Drawn: ${parts.join(" and ")}.` : "Empty: draw here, or type a character.");
    undo.disabled = !past.length;
    clear.disabled = !parts.length;
  };

  const decode = async (bytes) => {
    if (!bytes.byteLength) return null;
    const lines = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const { width, height } = lines;
    const sheet = new OffscreenCanvas(width, height);
    const inside = sheet.getContext("2d");
    inside.drawImage(lines, 0, 0);
    const { data } = inside.getImageData(0, 0, width, height);
    const path = new OffscreenCanvas(width * 8, height * 8); // lines of one pixel, as wide as the pen's
    const pen = path.getContext("2d");
    pen.scale((8 * width) / SIDE, (8 * height) / SIDE);
    pen.fillStyle = "#222";
    for (let at = 0; at < width * height; at++) {
      if (data[4 * at] > 127) continue;
      pen.beginPath();
      pen.arc(((at % width) + 0.5) * (SIDE / width), (Math.floor(at / width) + 0.5) * (SIDE / height), PEN / 2, 0, 7);
      pen.fill();
    }
    return path;
  };

  // Shows another state; what was shown can be had back by undo.
  const show = async (next, keep = true) => {
    if (keep) past.push(now);
    const changed = next.under !== now.under;
    now = next;
    problem = "";
    describe();
    if (changed) {
      const found = await decode(next.under).catch(() => null);
      if (now.under !== next.under) return; // another has come since
      image = found;
    }
    paint();
  };

  const send = () => {
    model.set({ drawing: now, example: false });
    model.save_changes();
  };

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * SIDE, ((event.clientY - box.top) / box.height) * SIDE];
  };

  // Beside the paper nothing is drawn: the stroke ends at the edge, and where the pen comes back another begins.
  const extend = (point) => {
    const { strokes, outside } = drawing;
    const points = strokes.at(-1);
    if (!inside(point)) {
      if (!outside) points.push(rounded(edge(points.at(-1), point)));
      drawing.outside = point;
    } else if (outside) {
      strokes.push([rounded(edge(point, outside)), rounded(point)]);
      drawing.outside = null;
    } else if (Math.hypot(point[0] - points.at(-1)[0], point[1] - points.at(-1)[1]) >= STEP) {
      points.push(rounded(point));
    }
  };

  canvas.addEventListener("pointerdown", (event) => {
    const { pointerId, pointerType } = event;
    if (pointerType === "touch" && event.timeStamp - penSeen < PALM_MS) return;
    const palm = pointerType === "pen" && drawing?.kind === "touch"; // the hand came down before the pen
    if ((drawing && !palm) || event.button !== 0 || !event.isPrimary) return;
    if (pointerType === "pen") penSeen = event.timeStamp;
    event.preventDefault();
    canvas.focus({ preventScroll: true });
    canvas.setPointerCapture(pointerId);
    if (model.get("example")) {
      model.set("example", false);
      show({ ...EMPTY });
    }
    drawing = { pointer: pointerId, kind: pointerType, strokes: [[rounded(place(event))]], outside: null };
    paint();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "pen") penSeen = event.timeStamp;
    if (event.pointerId !== drawing?.pointer) return;
    const between = event.getCoalescedEvents?.() ?? [];
    for (const moved of between.length ? between : [event]) {
      if (drawing.strokes.at(-1).length < POINTS_MOST) extend(place(moved));
    }
    paint();
  });
  const finish = (event) => {
    if (event.pointerType === "pen") penSeen = event.timeStamp;
    if (event.pointerId !== drawing?.pointer) return;
    const { strokes } = drawing;
    drawing = null;
    if (event.type === "pointercancel" || now.strokes.length + strokes.length > STROKES_MOST) return paint();
    show({ ...now, strokes: [...now.strokes, ...strokes] });
    send();
  };
  canvas.addEventListener("pointerup", finish);
  canvas.addEventListener("pointercancel", finish);

  undo.addEventListener("click", () => {
    if (!past.length) return;
    show(past.pop(), false);
    send();
  });
  clear.addEventListener("click", () => {
    show({ ...EMPTY });
    send();
  });
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    file.value = ""; // so that the same can be opened again
    if (!chosen) return;
    if (chosen.size > BYTES_MOST) {
      problem = `${chosen.name} has more than 8 MB: make the picture smaller.`;
      return describe();
    }
    const bytes = await chosen.arrayBuffer();
    model.send({ event: "open", name: chosen.name }, undefined, [bytes]);
  });
  // Ctrl+Z undoes; no key reaches JupyterLab, where it would edit the notebook.
  el.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey)) undo.click();
  });

  const sent = () => {
    const late = drawing && model.get("example"); // an example that comes when the pen is already down
    if (!late && !same(model.get("drawing"), now)) show(model.get("drawing"));
  };
  model.on("change:drawing", sent);
  const seen = new IntersectionObserver(([entry]) => {
    if (!entry.isIntersecting) return;
    model.send({ event: "seen" });
    seen.disconnect();
  });
  seen.observe(canvas);
  const sized = new ResizeObserver(paint);
  sized.observe(canvas);
  show(model.get("drawing"), false);
  return () => {
    model.off("change:drawing", sent);
    seen.disconnect();
    sized.disconnect();
  };
}

export default { render };
