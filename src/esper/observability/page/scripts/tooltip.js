// One tooltip and one spoken line for the whole page.

const tip = html("div", { id: "tooltip", role: "tooltip" });
const spoken = html("div", { id: "spoken", class: "unseen", "aria-live": "polite" });
document.body.append(tip, spoken);

/** Show a title, pairs of name and value, and a note near a point of the window. */
function showTip({ title, pairs = [], note = null }, x, y) {
  tip.replaceChildren(html("strong", {}, title), html("dl", {}, ...pairs.flatMap(([name, value]) => [html("dt", {}, name), html("dd", {}, value)])));
  if (note) tip.append(html("p", {}, note));
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth - 8 ? x - 14 - width : x + 14;
  const top = y + 14 + height > innerHeight - 8 ? y - 14 - height : y + 14;
  tip.style.transform = `translate(${Math.max(8, Math.min(left, innerWidth - width - 8))}px, ${Math.max(8, top)}px)`;
  tip.classList.add("shown");
}

/** Take the tooltip away. */
function hideTip() {
  tip.classList.remove("shown");
}

/** The content of a tooltip as one sentence, for those who do not see it. */
function tipText({ title, pairs = [], note = null }) {
  return [title, ...pairs.map(([name, value]) => `${name} ${value}`), note].filter(Boolean).join(", ");
}

/** Say what the keyboard has reached. */
function speak(content) {
  spoken.textContent = tipText(content);
}

/** Give an element a tooltip by pointer and by focus. */
function explain(node, content) {
  node.addEventListener("pointermove", (event) => showTip(content, event.clientX, event.clientY));
  node.addEventListener("pointerleave", hideTip);
  node.addEventListener("focus", () => {
    if (!node.matches(":focus-visible")) return;
    const box = node.getBoundingClientRect();
    showTip(content, box.left + Math.min(box.width, 200) / 2, box.bottom - 8);
  });
  node.addEventListener("blur", hideTip);
  return node;
}

/** Let the arrow keys move among many elements of which only one is in the tab order. */
function roam(nodes) {
  nodes.forEach((node, index) => {
    node.setAttribute("tabindex", index === 0 ? "0" : "-1");
    node.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      const next = nodes[index + step];
      if (next === undefined) return;
      event.preventDefault();
      node.setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  });
}

addEventListener("keydown", (event) => {
  if (event.key === "Escape") hideTip();
});
addEventListener("scroll", hideTip, { passive: true });
