// Alerts: faces of a watchlist that were seen, and the watchlists themselves.

import { ask, get, postForm } from './api.js';
import { faceCard } from './card.js';
import { announce, button, h, icon } from './dom.js';
import { Grid } from './grid.js';
import { clock, moment, number, t } from './i18n.js';

const EVERY_MS = 3000;
const MOST_ALERTS = 2000;

export function alertsView() {
  let cursor = 0;
  let alerts = [];
  let closed = false;

  const grid = new Grid({ draw: (alert) => faceCard(alert.face, { similarity: alert.similarity, label: `${alert.label} · ${alert.watchlist}` }), label: t('alerts.title') });
  const facts = h('span', { class: 'facts', role: 'status' });
  const fault = h('div', { class: 'note bad', role: 'alert', hidden: true });
  const empty = h('div', { class: 'empty', hidden: true }, icon('bell'), h('p', {}, t('alerts.empty')));
  const off = h('div', { class: 'note', hidden: true }, icon('lock'), h('span', {}, t('alerts.off')));
  const lists = h('div', { class: 'lists' });
  const columns = h('div', { class: 'alert-columns' }, h('div', { class: 'grid-frame' }, grid.element, empty), lists);
  const element = h('section', { class: 'view alerts' },
    h('header', { class: 'bar' }, h('h1', {}, t('alerts.title')), facts), off, fault, columns);

  const say = (error) => {
    if (error.code === 'WATCHLISTS_OFF') {
      off.hidden = false;
      columns.hidden = true;
      return;
    }
    fault.hidden = false;
    fault.replaceChildren(icon('alert'), h('span', {}, error.words ?? error.message), h('code', {}, error.code ?? ''));
  };
  const attempt = async (work) => {
    fault.hidden = true;
    try { await work(); } catch (error) { say(error); }
  };

  async function poll() {
    try {
      const answer = await get(`/api/alerts?after=${cursor}`);
      if (closed) return;
      const first = cursor === 0;
      ({ cursor } = answer);
      if (answer.alerts.length) {
        alerts = answer.alerts.map((each) => ({ ...each, id: `${each.watchlist}/${each.entry}/${each.face.id}` })).concat(alerts).slice(0, MOST_ALERTS);
        grid.set(alerts);
        if (!first) {
          const [newest] = answer.alerts;
          announce(t('alerts.new', { label: newest.label, camera: newest.face.camera, time: clock(newest.raised) }));
        }
      }
      facts.textContent = t('alerts.count', { count: alerts.length });
      empty.hidden = alerts.length > 0;
    } catch (error) {
      say(error);
    }
  }

  // -- watchlists

  const path = (...parts) => `/api/watchlists/${parts.map(encodeURIComponent).join('/')}`;
  const remove = (where) => attempt(async () => { await ask(where, { method: 'DELETE' }); await drawLists(); alerts = []; cursor = 0; grid.set(alerts); await poll(); });

  function entryForm(list) {
    const label = h('input', { required: true, maxlength: '200', placeholder: t('alerts.entry.label'), 'aria-label': t('alerts.entry.label'), autocomplete: 'off' });
    const file = h('input', { type: 'file', accept: 'image/*', class: 'file', required: true, 'aria-label': t('alerts.entry.picture') });
    return h('form', { class: 'entry-form', onsubmit: (event) => {
      event.preventDefault();
      attempt(async () => {
        const form = new FormData();
        form.set('label', label.value.trim());
        form.set('picture', file.files[0]);
        await postForm(path(list.id, 'entries'), form);
        await drawLists();
      });
    } }, label, file, h('button', { class: 'button', type: 'submit' }, t('alerts.entry.add')));
  }

  function listBox(list) {
    return h('section', { class: 'panel-box' },
      h('div', { class: 'list-head' }, h('h2', {}, list.id), h('span', { class: 'chip' }, t('alerts.threshold', { value: number(list.threshold, 2) })),
        button(t('alerts.remove', { name: list.id }), { icon: 'bin', kind: 'ghost push', quiet: true, onclick: () => remove(path(list.id)) })),
      h('p', { class: 'faint' }, list.purpose),
      h('ul', { class: 'entries' }, list.entries.map((entry) => h('li', {},
        h('span', { class: 'entry' }, h('strong', {}, entry.label), h('span', { class: 'faint' }, entry.outdated ? t('alerts.entry.outdated') : entry.expires ? t('alerts.entry.until', { time: moment(entry.expires) }) : '')),
        button(t('alerts.remove', { name: entry.label }), { icon: 'bin', kind: 'ghost', quiet: true, onclick: () => remove(path(list.id, 'entries', entry.id)) })))),
      entryForm(list));
  }

  function newList() {
    const name = h('input', { required: true, pattern: '[A-Za-z0-9._-]{1,64}', autocomplete: 'off' });
    const purpose = h('input', { required: true, maxlength: '200', autocomplete: 'off' });
    const threshold = h('input', { type: 'number', min: '0', max: '1', step: '0.01', value: '0.8', required: true });
    const field = (label, control) => h('label', { class: 'field' }, h('span', { class: 'field-label' }, label), control);
    return h('details', { class: 'panel-box' }, h('summary', {}, t('alerts.new_list')), h('form', { class: 'filter-fields', onsubmit: (event) => {
      event.preventDefault();
      attempt(async () => {
        await ask(path(name.value.trim()), { method: 'PUT', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify({ purpose: purpose.value.trim(), threshold: Number(threshold.value) }) });
        await drawLists();
      });
    } }, field(t('alerts.list.name'), name), field(t('alerts.list.purpose'), purpose), field(t('alerts.list.threshold'), threshold),
    h('p', { class: 'faint' }, t('alerts.list.hint')), h('button', { class: 'button primary', type: 'submit' }, t('alerts.list.make'))));
  }

  async function drawLists() {
    const found = await get('/api/watchlists');
    lists.replaceChildren(...found.map(listBox), newList());
  }

  attempt(drawLists);
  poll();
  const timer = setInterval(() => { if (off.hidden) poll(); }, EVERY_MS);
  return {
    element,
    title: t('alerts.title'),
    close() {
      closed = true;
      clearInterval(timer);
      grid.close();
    },
  };
}
