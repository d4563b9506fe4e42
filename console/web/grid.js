// A grid of cards that draws only those in sight, so that thousands scroll as smoothly as ten.
//
// Items have an `id`. `draw(item)` returns the card's element, once for each time it comes into
// sight; an element may have a `leave` function that is called when it goes out of sight.

import { h, styled } from './dom.js';

const GAP = 12;
const ROWS_BEYOND = 2;

export class Grid {
  constructor({ draw, label, onEnd = () => {}, onScroll = () => {} }) {
    this.draw = draw;
    this.onEnd = onEnd;
    this.onScroll = onScroll;
    this.items = [];
    this.shown = new Map(); // id -> element
    this.current = null; // id of the card that Tab reaches
    this.sheet = h('div', { class: 'grid-sheet', role: 'list', 'aria-label': label });
    this.element = h('div', { class: 'grid', onkeydown: (event) => this.move(event) }, this.sheet);
    this.element.addEventListener('scroll', () => { this.update(); this.onScroll(); }, { passive: true });
    this.element.addEventListener('focusin', (event) => {
      const card = event.target.closest('[data-id]');
      if (card) this.stand(card.dataset.id);
    });
    this.watcher = new ResizeObserver(() => { this.measure(); this.update(true); });
    this.watcher.observe(this.element);
  }

  close() {
    this.watcher.disconnect();
    for (const element of this.shown.values()) element.leave?.();
    this.shown.clear();
  }

  get atTop() { return this.element.scrollTop < 40; }

  get hasFocus() { return this.element.contains(document.activeElement); }

  set(items) {
    this.items = items;
    this.update(true);
  }

  top() {
    this.element.scrollTop = 0;
    this.update(true);
  }

  measure() {
    const width = this.sheet.clientWidth;
    const style = getComputedStyle(this.element);
    const narrowest = Math.min(parseFloat(style.getPropertyValue('--card-narrowest')), Math.max(110, (width - GAP) / 2));
    this.columns = Math.max(1, Math.floor((width + GAP) / (narrowest + GAP)));
    this.width = (width - GAP * (this.columns - 1)) / this.columns;
    this.height = this.width + parseFloat(style.getPropertyValue('--card-caption'));
  }

  update(moved = false) {
    if (!this.columns) this.measure();
    const rowHeight = this.height + GAP;
    const rows = Math.ceil(this.items.length / this.columns);
    if (moved) styled(this.sheet, { height: `${Math.max(0, rows * rowHeight - GAP)}px` });
    const top = this.element.scrollTop;
    const first = Math.max(0, Math.floor(top / rowHeight) - ROWS_BEYOND) * this.columns;
    const last = Math.min(this.items.length,
      (Math.ceil((top + this.element.clientHeight) / rowHeight) + ROWS_BEYOND) * this.columns);
    if (!moved && first === this.first && last === this.last) return;
    this.first = first;
    this.last = last;

    const wanted = new Set();
    for (let index = first; index < last; index += 1) wanted.add(this.items[index].id);
    for (const [id, element] of this.shown) {
      if (!wanted.has(id)) {
        element.leave?.();
        element.remove();
        this.shown.delete(id);
      }
    }
    if (!this.shown.has(this.current)) this.current = this.items[first]?.id ?? null;
    let place = this.sheet.firstElementChild; // elements stand in the order of the items
    for (let index = first; index < last; index += 1) {
      const item = this.items[index];
      let element = this.shown.get(item.id);
      if (!element) {
        element = this.draw(item);
        element.dataset.id = item.id;
        element.setAttribute('role', 'listitem');
        this.shown.set(item.id, element);
      }
      if (element === place) place = place.nextElementSibling;
      else this.sheet.insertBefore(element, place);
      element.setAttribute('aria-setsize', this.items.length);
      element.setAttribute('aria-posinset', index + 1);
      const link = element.firstElementChild;
      link.tabIndex = item.id === this.current ? 0 : -1;
      const column = index % this.columns;
      const row = Math.floor(index / this.columns);
      styled(element, {
        width: `${this.width}px`,
        height: `${this.height}px`,
        transform: `translate(${column * (this.width + GAP)}px, ${row * rowHeight}px)`,
      });
    }
    if (last === this.items.length && this.items.length) this.onEnd();
  }

  // One card at a time is in the order of Tab; arrows move between them.
  stand(id) {
    const before = this.shown.get(this.current);
    if (before) before.firstElementChild.tabIndex = -1;
    this.current = id;
    this.shown.get(id).firstElementChild.tabIndex = 0;
  }

  move(event) {
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: this.columns, ArrowUp: -this.columns,
      Home: -this.items.length, End: this.items.length,
      PageDown: this.columns * 3, PageUp: -this.columns * 3,
    };
    const step = steps[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    const at = this.items.findIndex((item) => item.id === this.current);
    const index = Math.min(this.items.length - 1, Math.max(0, at + step));
    if (index < 0) return;
    event.preventDefault();
    const row = Math.floor(index / this.columns) * (this.height + GAP);
    const view = this.element;
    if (row < view.scrollTop) view.scrollTop = row;
    else if (row + this.height > view.scrollTop + view.clientHeight) view.scrollTop = row + this.height - view.clientHeight;
    this.update();
    this.shown.get(this.items[index].id)?.firstElementChild.focus({ preventScroll: true });
  }
}
