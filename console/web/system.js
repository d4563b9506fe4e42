// System: are the services well, what do they run on, which cameras send, what went wrong.

import { ask, get, post } from './api.js';
import { button, h, icon, styled } from './dom.js';
import { bytes, clock, duration, moment, number, percent, t } from './i18n.js';

const EVERY_MS = 5000;
const CAMERAS_EVERY_MS = 15_000;
const QUIET_MS = 10 * 60_000;
const AS_BYTES = new Set(['store_bytes', 'index_bytes', 'cache_bytes']);
const AS_SECONDS = new Set(['newest_lag']);
const AT_MOST_SECONDS = /_p95$/;
// Figures that should be nought, and stand out when they are not.
const BAD = new Set(['feed_missed', 'missed']);

const figure = (name, value) => {
  if (value === null) return '–';
  if (AS_BYTES.has(name)) return bytes(value);
  if (AS_SECONDS.has(name)) return duration(1000 * value);
  if (AT_MOST_SECONDS.test(name)) return t('system.at_most', { value: duration(1000 * value) });
  return number(value);
};

const shortly = (provider) => provider.replace('ExecutionProvider', '');

// How long a service keeps what it keeps, and how much of it.
const keeps = ({ retention_seconds: seconds, retention_bytes: size, retention_results: results }) => (seconds
  ? t('system.keeps', { time: duration(1000 * seconds), most: size ? bytes(Number(size)) : t('system.results', { count: Number(results) }) }) : '');

export function systemView(session) {
  const admin = session.roles.includes('admin');
  const health = h('div', { class: 'services' });
  const pages = h('div', { class: 'pages' });
  const cameraRows = h('tbody');
  const errors = h('div');
  const grants = h('div');
  const audit = h('div');
  const state = h('span', { class: 'facts', role: 'status' });
  const cameraTable = h('div', { class: 'table-frame', tabindex: '0', role: 'region', 'aria-label': t('system.cameras') }, h('table', {},
    h('thead', {}, h('tr', {}, ['fact.camera', 'fact.edge', 'system.camera.last', 'system.camera.faces', 'fact.score'].map((key) => h('th', { scope: 'col' }, t(key))))), cameraRows));
  const box = (title, hint, ...content) => h('section', { class: 'panel-box' }, h('h2', {}, title), hint ? h('p', { class: 'faint' }, hint) : null, ...content);
  const element = h('section', { class: 'view system' },
    h('header', { class: 'bar' }, h('h1', {}, t('system.title')), state),
    h('div', { class: 'system-columns' },
      h('div', { class: 'whole' }, box(t('system.services'), null, health)),
      h('div', { class: 'column' },
        box(t('system.cameras'), t('system.cameras.hint'), cameraTable),
        box(t('system.grants'), t('system.grants.hint'), grants),
        box(t('system.errors'), t('system.errors.hint'), errors)),
      h('div', { class: 'column' },
        box(t('system.figures'), t('system.figures.hint'), pages),
        admin ? box(t('system.audit'), null, audit) : null,
        admin ? box(t('system.forget'), t('system.forget.hint'), forgetForm()) : null)));

  function drawServices(services) {
    health.replaceChildren(...services.map((each) => h('div', { class: 'service', dataset: { state: each.state } },
      h('div', { class: 'service-head' }, h('span', { class: 'dot' }), h('strong', {}, t(`service.${each.kind}`)), h('span', { class: 'chip' }, t(`service.state.${each.state}`))),
      h('div', { class: 'faint' }, each.address, each.state === 'serving' ? ` · ${duration(each.milliseconds)}` : ''),
      each.runs ? h('div', { class: 'faint' }, each.runs.error ?? t('system.runs', { ...each.runs, count: each.runs.threads, provider: shortly(each.runs.provider) })) : null)));
    const well = services.filter((each) => each.state === 'serving').length;
    state.textContent = t('system.well', { well, all: services.length });
  }

  function drawPages(list) {
    pages.replaceChildren(...list.map((page) => h('div', { class: 'figures' },
      h('h3', {}, page.kind ? t(`service.${page.kind}`) : t('system.page.unread'), h('span', { class: 'faint' }, ` ${page.address}`)),
      page.runs?.provider ? h('p', { class: 'faint' }, [t('system.provider', { provider: shortly(page.runs.provider), bundle: page.runs.model_bundle }), keeps(page.runs)].filter(Boolean).join(' · ')) : null,
      h('dl', { class: 'figure-grid' }, Object.entries(page.figures).map(([name, value]) => h('div', { class: BAD.has(name) && value ? 'figure bad' : 'figure' },
        h('dt', {}, t(`figure.${page.kind}.${name}`)), h('dd', {}, figure(name, value))))))));
    if (!list.length) pages.replaceChildren(h('p', { class: 'faint' }, t('system.page.none')));
    const faults = list.flatMap((page) => page.errors.map((error) => ({ ...error, kind: page.kind })));
    errors.replaceChildren(faults.length ? h('div', { class: 'table-frame' }, h('table', {}, h('thead', {}, h('tr', {}, ['system.error.service', 'system.error.call', 'system.error.code', 'system.error.count'].map((key) => h('th', { scope: 'col' }, t(key))))),
      h('tbody', {}, faults.map((each) => h('tr', {}, h('td', {}, t(`service.${each.kind}`)), h('td', {}, each.method), h('td', {}, h('code', {}, each.code)), h('td', { class: 'number' }, number(each.calls)))))))
      : h('p', { class: 'all-well' }, icon('check'), t('system.errors.none')));
  }

  function drawCameras(cameras) {
    cameraRows.replaceChildren(...cameras.map((each) => h('tr', {},
      h('td', {}, h('a', { href: `#/live?camera=${encodeURIComponent(each.camera)}`, class: 'plain' }, each.camera)), h('td', {}, each.edge),
      h('td', { class: Date.now() - each.last > QUIET_MS ? 'faint' : '' }, clock(each.last)),
      h('td', { class: 'number' }, number(each.faces)),
      h('td', {}, h('span', { class: 'with-output' }, styled(h('span', { class: 'measure' }), { '--part': each.mean_score }), percent(each.mean_score))))));
    if (!cameras.length) cameraRows.replaceChildren(h('tr', {}, h('td', { colspan: '5', class: 'faint' }, t('system.cameras.none'))));
  }

  const table = (heads, rows) => h('div', { class: 'table-frame', tabindex: '0', role: 'region', 'aria-label': heads.map((key) => t(key)).join(', ') },
    h('table', {}, h('thead', {}, h('tr', {}, heads.map((key) => h('th', { scope: 'col' }, t(key))))), h('tbody', {}, rows)));

  function scopeOf(grant) {
    const parts = [grant.face, grant.camera, grant.captured_from ? t('system.from', { time: moment(grant.captured_from) }) : '', grant.captured_until ? t('system.until', { time: moment(grant.captured_until) }) : ''];
    return parts.filter(Boolean).join(' · ');
  }

  async function drawGrants() {
    const list = await get('/api/grants');
    grants.replaceChildren(list.length ? table(['system.grant.for', 'system.grant.why', 'system.grant.until', 'system.grant.end'], list.map((each) => h('tr', {},
      h('td', { class: 'wraps' }, scopeOf(each)), h('td', { class: 'wraps' }, each.purpose, h('span', { class: 'faint' }, ` ${each.by}`)), h('td', {}, moment(each.expires)),
      h('td', {}, button(t('system.grant.revoke'), { icon: 'bin', kind: 'ghost', quiet: true, onclick: () => ask(`/api/grants/${encodeURIComponent(each.id)}?edge=${encodeURIComponent(each.edge)}`, { method: 'DELETE' }).then(drawGrants).catch(fault) })))))
      : h('p', { class: 'faint' }, t('system.grants.none')));
  }

  async function drawAudit() {
    const logs = await get('/api/audit');
    audit.replaceChildren(...logs.flatMap((log) => [
      log.problems.length ? h('div', { class: 'note bad' }, icon('alert'), h('span', {}, log.problems[0])) : h('p', { class: 'all-well' }, icon('check'), t('system.audit.whole', { count: log.lines, edge: log.edge })),
      table(['system.audit.time', 'system.audit.who', 'system.audit.what', 'system.grant.why'], log.newest.map((line) => h('tr', {},
        h('td', {}, clock(Date.parse(line.time))), h('td', {}, line.who), h('td', { class: 'wraps' }, h('strong', {}, line.action), h('span', { class: 'faint' }, ` ${line.what}`)), h('td', { class: 'wraps' }, line.why))))]));
  }

  function forgetForm() {
    const faces = h('input', { autocomplete: 'off', spellcheck: 'false' });
    const camera = h('input', { maxlength: '64', autocomplete: 'off' });
    const before = h('input', { type: 'datetime-local' });
    const reason = h('input', { required: true, maxlength: '200', autocomplete: 'off' });
    const sure = h('input', { type: 'checkbox', required: true });
    const told = h('p', { role: 'status' });
    const field = (key, control) => h('label', { class: 'field' }, h('span', { class: 'field-label' }, t(key)), control);
    return h('form', { class: 'filter-fields', onsubmit: async (event) => {
      event.preventDefault();
      try {
        const answer = await post('/api/forget', {
          face_ids: faces.value.split(/[\s,]+/).filter(Boolean), camera: camera.value.trim(),
          before: before.value ? new Date(before.value).toISOString() : null, reason: reason.value.trim(),
        });
        told.textContent = t('system.forget.done', { count: answer.faces });
        sure.checked = false;
        await drawAudit();
      } catch (error) { told.textContent = error.message; }
    } }, field('system.forget.faces', faces), field('system.forget.camera', camera), field('system.forget.before', before), field('system.forget.reason', reason),
    h('label', { class: 'check' }, sure, h('span', {}, t('system.forget.sure'))), h('button', { class: 'button danger', type: 'submit' }, icon('bin'), h('span', {}, t('system.forget.do'))), told);
  }

  const fault = (error) => { state.textContent = error.words ?? error.message; };
  const poll = () => get('/api/system').then((content) => { drawServices(content.services); drawPages(content.pages); }).catch(fault);
  const pollCameras = () => get('/api/cameras').then(drawCameras).catch(fault);
  poll();
  drawGrants().catch(fault);
  if (admin) drawAudit().catch(fault);
  pollCameras();
  const timers = [setInterval(poll, EVERY_MS), setInterval(pollCameras, CAMERAS_EVERY_MS)];
  return { element, title: t('system.title'), close: () => timers.forEach(clearInterval) };
}
