// Small pictures of faces: asked for when a card comes into sight, a few at a time, newest wish
// first, and kept in memory only.

import { blob, facePath } from './api.js';

const KEPT = 800;
const AT_ONCE = 4;
const RETRY_MS = 5000;

const kept = new Map(); // face id -> object URL, least recently used first
const failed = new Map(); // face id -> when
let wishes = [];
let running = 0;

// Calls `show` with the address of the picture, or with null when there is none to be had.
// Returns a function that takes the wish back.
export function preview(id, show) {
  const address = kept.get(id);
  if (address) {
    kept.delete(id);
    kept.set(id, address);
    show(address);
    return () => {};
  }
  if (Date.now() - (failed.get(id) ?? 0) < RETRY_MS) {
    show(null);
    return () => {};
  }
  const wish = { id, show };
  wishes.push(wish);
  next();
  return () => { wishes = wishes.filter((other) => other !== wish); };
}

// Forgets all pictures, when another person signs in.
export function forgetPreviews() {
  for (const address of kept.values()) URL.revokeObjectURL(address);
  kept.clear();
  failed.clear();
  wishes = [];
}

async function next() {
  if (running >= AT_ONCE || !wishes.length) return;
  const { id, show } = wishes.pop();
  if (kept.has(id)) {
    show(kept.get(id));
    next();
    return;
  }
  running += 1;
  try {
    const address = URL.createObjectURL(await blob(facePath(id, '/preview')));
    kept.set(id, address);
    failed.delete(id);
    if (kept.size > KEPT) {
      const [oldest, old] = kept.entries().next().value;
      kept.delete(oldest);
      URL.revokeObjectURL(old);
    }
    show(address);
  } catch {
    failed.set(id, Date.now());
    if (failed.size > KEPT) failed.delete(failed.keys().next().value);
    show(null);
  } finally {
    running -= 1;
    next();
  }
}
