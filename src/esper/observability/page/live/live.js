// A page that follows a run: parts and data come from the server, and are drawn by the scripts of the report.

const shown = { run: null, order: [], data: null, isPressed: false };
const stale = new Set();
const mayAsk = document.getElementById("commands") !== null;
const inView = new Set();

/** Make an element as another one is; drawings, and what a reader has opened, stay. */
function become(old, now) {
  if (old.nodeType !== now.nodeType || old.nodeName !== now.nodeName || old.id !== now.id) return old.replaceWith(now);
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== now.data) old.data = now.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE || old.classList.contains("drawing")) return;
  for (const { name } of [...old.attributes]) if (name !== "open" && !now.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  const [before, after] = [[...old.childNodes], [...now.childNodes]];
  before.forEach((child, i) => (i < after.length ? become(child, after[i]) : child.remove()));
  old.append(...after.slice(before.length));
}

/** Elements of HTML that the server has written. */
function parsed(text) {
  const place = document.createElement("template");
  place.innerHTML = text;
  return place.content.firstElementChild;
}

/** Put changes into the data: "set" a value, or "add" to the end of a list. */
function applyChanges(data, changes) {
  for (const [path, how, value] of changes) {
    const parent = path.slice(0, -1).reduce((at, key) => at[key], data);
    if (how === "set") parent[path.at(-1)] = value;
    else for (const one of value) parent[path.at(-1)].push(one);
  }
}

/** Do something that may rebuild a section, and give the focus back to the element that stands where it was. */
async function keepingFocus(section, act) {
  const active = section.contains(document.activeElement) ? document.activeElement : null;
  const path = [];
  for (let node = active; node !== null && node !== section; node = node.parentElement) path.unshift([...node.parentElement.children].indexOf(node));
  await act();
  if (active === null || active.isConnected) return;
  path.reduce((node, i) => node?.children[i], section)?.focus({ preventScroll: true });
}

/** Draw what has changed and is in view, one picture after the other; between two of them the reader is answered. */
async function drawStale() {
  if (shown.isDrawing) return;
  shown.isDrawing = true;
  for (;;) {
    const name = shown.order.find((one) => stale.has(one) && inView.has(one));
    if (name === undefined) break;
    if (!shown.isPressed) {
      stale.delete(name);
      await keepingFocus(document.getElementById(name), () => CHARTS[name](shown.data)).catch((error) => setTimeout(() => { throw error; }));
    }
    await new Promise((done) => setTimeout(done, 0));
    await new Promise(requestAnimationFrame);
  }
  shown.isDrawing = false;
}

const watching = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) isIntersecting ? inView.add(target.id) : inView.delete(target.id);
  drawStale();
}, { rootMargin: "300px" });

/** Show parts that are new or have changed. */
async function showParts(parts) {
  for (const [name, text] of Object.entries(parts)) {
    const [old, now] = [document.getElementById(name), parsed(text)];
    await keepingFocus(old, () => become(old, now));
    for (const table of document.getElementById(name).querySelectorAll("table[data-sortable]")) makeSortable(table);
    if (name in CHARTS) stale.add(name);
  }
  if (mayAsk) offerCommands(shown.data);
}

/** Begin with a run, or once more with the same one. */
async function showAll({ run, order, parts, data }) {
  const isOther = run !== shown.run;
  if (isOther) {
    forgetChoices();
    document.getElementById("sections").replaceChildren(...order.map((id) => html("section", { id })));
    for (const id of order) watching.observe(document.getElementById(id));
  }
  Object.assign(shown, { run, order, data });
  for (const [name, text] of Object.entries(parts)) if (document.getElementById(name).tagName !== parsed(text).tagName) {
    const now = html(parsed(text).tagName.toLowerCase(), { id: name });
    document.getElementById(name).replaceWith(now);
    watching.observe(now);
  }
  await showParts(parts);
  if (isOther) followReading();
  drawStale();
}

/** Show what has changed. */
async function showChange({ parts = {}, data = [] }) {
  applyChanges(shown.data, data);
  const keys = new Set(data.map(([path]) => path[0]));
  const isGeneral = [...keys].some((key) => !(key in CHARTS));
  for (const name of Object.keys(CHARTS)) if (keys.has(name) || isGeneral) stale.add(name);
  await showParts(parts);
  drawStale();
}

/** Say how the connection is. */
function sayConnection(text, isLive) {
  const place = document.getElementById("connection");
  place.textContent = text;
  place.classList.toggle("lost", !isLive);
}

/** Hear of a run, for as long as it takes; a server that has gone is asked again. */
function listen() {
  shown.source?.close();
  const source = new EventSource(`events${location.search}`);
  shown.source = source;
  let queue = Promise.resolve();
  const then = (act) => ({ data }) => {
    queue = queue.then(() => (source === shown.source ? act(JSON.parse(data)) : undefined));
  };
  source.addEventListener("all", then(showAll));
  source.addEventListener("change", then(showChange));
  source.addEventListener("page", ({ data }) => {
    if (data !== document.body.dataset.page) location.reload();
  });
  source.onopen = () => sayConnection("live", true);
  source.onerror = () => {
    sayConnection("The server does not answer; what is shown is from before. Trying again.", false);
    if (source.readyState === EventSource.CLOSED && source === shown.source) setTimeout(listen, 1000);
  };
}

addEventListener("pointerdown", () => (shown.isPressed = true));
for (const name of ["pointerup", "pointercancel", "blur"]) addEventListener(name, () => (shown.isPressed = false));
if (mayAsk) startCommands(shown);
openForPrint();
listen();
