// Filters of faces: one form for the Live and the Search view.

import { button, h, icon } from './dom.js';
import { number, percent, t } from './i18n.js';

const TIMES = { any: 0, m5: 5, m60: 60, h24: 24 * 60, d7: 7 * 24 * 60 };
const EITHER = ['any', 'yes', 'no'];

export class Filters {
  constructor(changed) {
    this.changed = changed;
    this.cameras = new Set(); // names known
    this.clear(false);
    this.cameraList = h('div', { class: 'check-list' });
    this.cameraMenu = this.menu('camera', t('filter.cameras'), this.cameraList);
    this.more = h('div', { class: 'filter-fields' });
    this.moreMenu = this.menu('filter', t('filter.more'), this.more);
    this.reset = button(t('filter.clear'), { icon: 'close', kind: 'ghost', onclick: () => this.clear() });
    this.element = h('div', { class: 'filters', role: 'group', 'aria-label': t('filter.label') },
      this.cameraMenu, this.moreMenu, this.reset);
    this.build();
  }

  // A button with a panel that Escape and a click elsewhere close.
  menu(name, label, content) {
    const summary = h('summary', { class: 'button' }, icon(name), h('span', {}, label), h('span', { class: 'count' }));
    const menu = h('details', { class: 'menu' }, summary, h('div', { class: 'panel' }, content));
    menu.addEventListener('keydown', (event) => {
      if (event.key !== 'Escape' || !menu.open) return;
      menu.open = false;
      summary.focus();
    });
    menu.addEventListener('toggle', () => {
      if (!menu.open) return;
      const elsewhere = (event) => {
        if (menu.isConnected && menu.contains(event.target)) return;
        menu.open = false;
        document.removeEventListener('pointerdown', elsewhere);
      };
      document.addEventListener('pointerdown', elsewhere);
    });
    return menu;
  }

  build() {
    const field = (label, ...controls) => h('label', { class: 'field' }, h('span', { class: 'field-label' }, label), ...controls);
    const choice = (name, keys) => h('select', { onchange: (event) => this.put(name, event.target.value) },
      keys.map((key) => h('option', { value: key, selected: this[name] === key }, t(`filter.${name}.${key}`))));
    const bound = (side) => h('input', {
      type: 'number', min: '0', max: '120', inputmode: 'numeric', value: this.age[side] ?? '',
      'aria-label': t(`filter.age.${side}`), placeholder: t(`filter.age.${side}`),
      onchange: (event) => { this.age[side] = event.target.value === '' ? null : Number(event.target.value); this.tell(); },
    });
    const shown = h('output', {}, percent(this.score));
    this.more.replaceChildren(
      field(t('filter.time'), choice('time', Object.keys(TIMES))),
      field(t('filter.score'), h('span', { class: 'with-output' }, h('input', {
        type: 'range', min: '0', max: '1', step: '0.05', value: String(this.score),
        oninput: (event) => { this.score = Number(event.target.value); shown.textContent = percent(this.score); this.tell(); },
      }), shown)),
      h('fieldset', { class: 'field' }, h('legend', { class: 'field-label' }, t('filter.age')), h('span', { class: 'pair' }, bound('min'), bound('max'))),
      field(t('estimate.smile'), choice('smile', EITHER)),
      field(t('estimate.gender'), choice('gender', EITHER)));
    this.cameraList.replaceChildren(...[...this.cameras].sort().map((name) => h('label', { class: 'check' },
      h('input', {
        type: 'checkbox', checked: this.chosen.has(name),
        onchange: (event) => { this.chosen[event.target.checked ? 'add' : 'delete'](name); this.tell(); },
      }), h('span', {}, name))));
    if (!this.cameras.size) this.cameraList.replaceChildren(h('p', { class: 'faint' }, t('filter.no_cameras')));
    this.mark();
  }

  // Start with these cameras alone.
  choose(cameras) {
    for (const camera of cameras) {
      this.cameras.add(camera);
      this.chosen.add(camera);
    }
    this.build();
  }

  know(camera) {
    if (this.cameras.has(camera)) return;
    this.cameras.add(camera);
    this.build();
  }

  clear(tell = true) {
    this.chosen = new Set();
    this.time = 'any';
    this.score = 0;
    this.age = { min: null, max: null };
    this.smile = 'any';
    this.gender = 'any';
    if (tell) {
      this.build();
      this.changed();
    }
  }

  put(name, value) {
    this[name] = value;
    this.tell();
  }

  tell() {
    this.mark();
    this.changed();
  }

  mark() {
    const others = [this.time !== 'any', this.score > 0, this.age.min !== null || this.age.max !== null,
      this.smile !== 'any', this.gender !== 'any'].filter(Boolean).length;
    const put = (menu, count) => {
      menu.querySelector('.count').textContent = count ? number(count) : '';
      menu.classList.toggle('active', count > 0);
    };
    put(this.cameraMenu, this.chosen.size);
    put(this.moreMenu, others);
    this.reset.hidden = !(others + this.chosen.size);
  }

  since() {
    return TIMES[this.time] ? Date.now() - TIMES[this.time] * 60_000 : null;
  }

  // The same filters for the services.
  form() {
    const side = (choice) => (choice === 'yes' ? { min: 0.5 } : choice === 'no' ? { max: 0.4999 } : {});
    const since = this.since();
    return {
      cameras: [...this.chosen],
      captured_from: since ? new Date(since).toISOString() : null,
      min_face_score: this.score,
      age: this.age,
      smile: side(this.smile),
      gender: side(this.gender),
    };
  }

  // Whether a face that came live passes.
  passes(face) {
    const { age, smile, gender } = face.estimates;
    const side = (choice, estimate) => choice === 'any' || (estimate && (estimate.value >= 0.5) === (choice === 'yes'));
    const since = this.since();
    return (!this.chosen.size || this.chosen.has(face.camera))
      && (!since || face.captured >= since)
      && face.score >= this.score
      && (this.age.min === null || age?.value >= this.age.min)
      && (this.age.max === null || age?.value <= this.age.max)
      && side(this.smile, smile) && side(this.gender, gender);
  }
}
