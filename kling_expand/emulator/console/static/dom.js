// Helpers for the page. Elements are created one by one, never from HTML text.

export const by = (id) => document.getElementById(id);

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

// Writes a text only if it differs, because a screen reader announces every write.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const say = (text) => write(by("said"), text);

// Keeps one child per key, in the given order. `make` creates a child, `update` runs each time.
export function keyed(list, items, key, make, update) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let place = list.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let child = known.get(name);
    if (!child) {
      child = make(item);
      child.dataset.key = name;
    }
    known.delete(name);
    update(child, item);
    // Moves a child only if needed, because a moved child loses the focus.
    if (child === place) place = place.nextElementSibling;
    else list.insertBefore(child, place);
  }
  for (const child of known.values()) child.remove();
}
