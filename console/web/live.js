// Live: faces as they arrive, newest first.
//
// The stream brings what is new, the search brings what was before; both are joined by face id. New
// faces go on top while the person is at the top; otherwise they wait, so that nothing moves away
// under the eye or the finger, and a button says how many.

import { post } from './api.js';
import { faceCard } from './card.js';
import { announce, button, h, icon } from './dom.js';
import { Filters } from './filters.js';
import { Grid } from './grid.js';
import { duration, number, t } from './i18n.js';

const MOST_FACES = 10_000;
const HISTORY = 200;
const LATE_MS = 3000;
const RATE_SECONDS = 10;

export function liveView(parameters) {
  let faces = []; // newest first, at most MOST_FACES
  let waiting = []; // arrived and not shown, newest first
  const ids = new Set();
  const arrivals = []; // [time, count] of the last seconds
  let paused = false;
  let nextPage = ''; // of what was before; null: there is nothing more
  let loading = false;
  let history; // the search that pages are of
  let missed = 0;
  let lag = 0;
  let state = 'connecting';
  let generation = 0; // a change of filters makes answers under way stale

  const filters = new Filters(() => { restart(); });
  filters.choose(parameters.getAll('camera'));
  const grid = new Grid({ draw: faceCard, label: t('live.faces'), onEnd: () => older(), onScroll: () => { if (grid.atTop && !paused) release(); } });
  const stateChip = h('span', { class: 'chip state' });
  const facts = h('span', { class: 'facts' });
  const missedChip = h('span', { class: 'chip warn', hidden: true });
  const pause = button(t('live.pause'), { icon: 'pause', onclick: () => toggle(), 'aria-pressed': 'false' });
  const more = h('button', { type: 'button', class: 'pill', hidden: true, onclick: () => { release(); grid.top(); } });
  const empty = h('div', { class: 'empty', hidden: true });
  const element = h('section', { class: 'view live' },
    h('header', { class: 'bar' },
      h('h1', {}, t('live.title')), stateChip, missedChip, facts,
      h('div', { class: 'bar-end' }, filters.element, pause)),
    h('div', { class: 'grid-frame' }, more, grid.element, empty));

  function toggle() {
    paused = !paused;
    pause.setAttribute('aria-pressed', String(paused));
    pause.replaceChildren(icon(paused ? 'play' : 'pause'), h('span', {}, t(paused ? 'live.resume' : 'live.pause')));
    if (!paused) { release(); grid.top(); }
    show();
  }

  const holds = () => paused || !grid.atTop || grid.hasFocus;

  function take(fresh) {
    const news = fresh.filter((face) => !ids.has(face.id) && filters.passes(face));
    for (const face of fresh) filters.know(face.camera);
    if (!news.length) return;
    for (const face of news) ids.add(face.id);
    waiting = news.reverse().concat(waiting);
    if (!holds()) release();
  }

  function release() {
    if (!waiting.length) return;
    faces = waiting.concat(faces);
    waiting = [];
    if (faces.length > MOST_FACES) {
      for (const face of faces.splice(MOST_FACES)) ids.delete(face.id);
      nextPage = null;
    }
    grid.set(faces);
    show();
  }

  // The next page of what was before.
  async function older() {
    if (loading || nextPage === null || faces.length >= MOST_FACES) return;
    loading = true;
    const mine = generation;
    if (!nextPage) history = { ...filters.form(), limit: HISTORY };
    try {
      const { hits, next_page: next } = await post('/api/search', { ...history, page: nextPage });
      if (mine !== generation) return;
      nextPage = next || null;
      join(hits);
    } catch { /* the stream's state tells that analytics is away; asked again when it is back */ } finally {
      loading = false;
      show();
    }
  }

  function join(hits) {
    const news = hits.filter((face) => !ids.has(face.id));
    for (const face of hits) filters.know(face.camera);
    for (const face of news) ids.add(face.id);
    faces = faces.concat(news).sort((a, b) => b.captured - a.captured);
    grid.set(faces);
  }

  // After a gap: what came while we were away.
  async function newest() {
    const mine = generation;
    try {
      const { hits } = await post('/api/search', { ...filters.form(), limit: HISTORY });
      if (mine === generation) join(hits);
    } catch { /* as above */ }
    show();
  }

  function restart() {
    generation += 1;
    faces = [];
    waiting = [];
    ids.clear();
    nextPage = '';
    loading = false;
    grid.set(faces);
    grid.top();
    older();
    show();
  }

  function rate() {
    const since = Date.now() - RATE_SECONDS * 1000;
    while (arrivals.length && arrivals[0][0] < since) arrivals.shift();
    return arrivals.reduce((sum, [, count]) => sum + count, 0) / RATE_SECONDS;
  }

  function show() {
    const late = state === 'open' && lag > LATE_MS;
    const shown = paused && state === 'open' ? 'paused' : late ? 'late' : state;
    const words = shown === 'late' ? t('live.state.late', { lag: duration(lag) }) : t(`live.state.${shown}`);
    if (stateChip.dataset.state !== shown && stateChip.dataset.state) announce(words);
    stateChip.dataset.state = shown;
    stateChip.replaceChildren(h('span', { class: 'dot' }), words);
    missedChip.hidden = !missed;
    missedChip.textContent = t('live.missed', { count: missed });
    missedChip.title = t('live.missed.why');
    const perSecond = rate();
    facts.textContent = [
      t('live.count', { count: faces.length }),
      t('live.cameras', { count: filters.cameras.size }),
      perSecond ? t('live.rate', { value: number(perSecond, 1) }) : null,
      state === 'open' && perSecond ? t('live.lag', { value: duration(lag) }) : null,
    ].filter(Boolean).join('  ·  ');
    more.hidden = !waiting.length;
    more.replaceChildren(icon('up'), t('live.waiting', { count: waiting.length }));
    empty.hidden = faces.length > 0 || loading;
    empty.replaceChildren(icon('person'), h('p', {}, t(filters.reset.hidden ? 'live.empty' : 'live.empty.filtered')));
  }

  const source = new EventSource('/api/live');
  const read = (event) => JSON.parse(event.data);
  let opened = false;
  source.addEventListener('ready', () => {
    state = 'open';
    if (opened) newest();
    else older();
    opened = true;
    show();
  });
  source.addEventListener('faces', (event) => {
    const content = read(event);
    state = 'open';
    missed += content.missed;
    lag = content.lag_ms;
    arrivals.push([Date.now(), content.faces.length]);
    take(content.faces);
    show();
  });
  source.addEventListener('pulse', () => { if (state === 'open') lag = 0; show(); });
  source.addEventListener('away', (event) => {
    const { code } = read(event);
    state = code === 'ACCESS_DENIED' ? 'refused' : 'away';
    show();
  });
  source.addEventListener('error', () => {
    state = 'lost';
    // Refused rather than lost: asking tells whether the session is over.
    if (source.readyState === EventSource.CLOSED) post('/api/search', { limit: 1 }).catch(() => {});
    show();
  });
  const ticking = setInterval(show, 1000);
  show();

  return {
    element,
    title: t('live.title'),
    close() {
      source.close();
      clearInterval(ticking);
      grid.close();
    },
  };
}
